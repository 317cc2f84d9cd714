"""Checkpoints to GGUF."""

from .convert import plan, quantize
from .planning import Plan
from .report import ClassReport, Report, TensorReport

__all__ = ["ClassReport", "Plan", "Report", "TensorReport", "plan", "quantize"]
