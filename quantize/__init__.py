"""Checkpoints to GGUF."""

from .adapters import Conversion, convert_adapter
from .convert import plan, quantize
from .planning import Plan
from .report import ClassReport, Report, TensorReport

__all__ = ["ClassReport", "Conversion", "Plan", "Report", "TensorReport", "convert_adapter", "plan", "quantize"]
