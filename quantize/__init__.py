"""Checkpoints to GGUF."""

from .convert import quantize
from .report import ClassReport, Report

__all__ = ["ClassReport", "Report", "quantize"]
