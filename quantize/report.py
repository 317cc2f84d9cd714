"""What a quantization did to a model: sizes and errors by class of tensor."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from .formats import decode

ERROR_STRIDE = 16
"""Errors are measured on every 16th row, which takes about a fifth of the run time; on all rows it would take four times the rest."""

_CLASSES = {
    "embedding": ("token_embd",),
    "attention": ("attn_q", "attn_k", "attn_v", "attn_output"),
    "experts gate": ("ffn_gate_exps",),
    "experts up": ("ffn_up_exps",),
    "experts down": ("ffn_down_exps",),
    "feed-forward gate": ("ffn_gate",),
    "feed-forward up": ("ffn_up",),
    "feed-forward down": ("ffn_down",),
    "norms and router": ("attn_norm", "ffn_norm", "output_norm", "ffn_gate_inp"),
    "output": ("output",),
}


@dataclass(frozen=True)
class ClassReport:
    """The tensors of one class. types: how many tensors have each type; relative_error: ||w - decoded|| / ||w|| over the measured rows."""

    name: str
    types: dict[str, int]
    n_weights: int
    n_bytes: int
    relative_error: float


@dataclass(frozen=True)
class Report:
    """The result of quantize(). file_bytes: the size of dest; seconds: the run time; notes: what a user should know, a sentence each."""

    source: Path
    dest: Path
    type: str
    file_bytes: int
    seconds: float
    classes: tuple[ClassReport, ...]
    notes: tuple[str, ...]

    @property
    def n_weights(self) -> int:
        return sum(entry.n_weights for entry in self.classes)

    @property
    def bits_per_weight(self) -> float:
        """Of the tensors' data, headers and vocabulary not counted."""
        return 8 * sum(entry.n_bytes for entry in self.classes) / self.n_weights

    def __str__(self) -> str:
        """The report as a terminal shows it."""
        lines = [
            f"{self.dest}: {size(self.file_bytes)}, {self.bits_per_weight:.2f} bits per weight, "
            f"{quantity(self.n_weights)} weights, {self.seconds:.1f} s",
            "",
            f"  {'tensors':<20}{'types':<20}{'weights':>10}{'size':>12}{'error':>10}",
        ]
        for entry in self.classes:
            types = ", ".join(f"{n} {name}" for name, n in entry.types.items())
            error = "exact" if entry.relative_error == 0 else f"{100 * entry.relative_error:.3g}%"
            lines.append(f"  {entry.name:<20}{types:<20}{quantity(entry.n_weights):>10}{size(entry.n_bytes):>12}{error:>10}")
        lines += ["", f"  error: ||w - decoded|| / ||w||, measured on every {ERROR_STRIDE}th row"]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


@dataclass
class _Sums:
    types: Counter[str] = field(default_factory=Counter)
    n_weights: int = 0
    n_bytes: int = 0
    error: float = 0.0
    norm: float = 0.0


class ErrorMeter:
    """Adds up counts and squared errors, class by class, while the file is written."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, _Sums] = defaultdict(_Sums)

    def add_tensor(self, name: str, kind: GGMLQuantizationType, n_weights: int, n_bytes: int) -> None:
        sums = self._sums[tensor_class(name)]
        sums.types[kind.name.lower()] += 1
        sums.n_weights += n_weights
        sums.n_bytes += n_bytes

    def add_rows(self, name: str, kind: GGMLQuantizationType, weights: NDArray[np.float32], data: NDArray[np.uint8]) -> None:
        """weights: float32 [rows, cols]; data: uint8 [rows, row_bytes], the same rows encoded. Measures every 16th."""
        sums = self._sums[tensor_class(name)]
        exact = weights[::ERROR_STRIDE].astype(np.float64)
        sums.norm += float(np.square(exact).sum())
        exact -= decode(kind, np.ascontiguousarray(data[::ERROR_STRIDE]))
        sums.error += float(np.square(exact).sum())

    def classes(self) -> tuple[ClassReport, ...]:
        return tuple(
            ClassReport(group, dict(sums.types), sums.n_weights, sums.n_bytes, math.sqrt(sums.error / sums.norm) if sums.norm else 0.0)
            for group in _CLASSES
            if (sums := self._sums.get(group))
        )


def tensor_class(name: str) -> str:
    """The class of a GGUF tensor name such as blk.3.attn_q.weight."""
    stem = name.removesuffix(".weight").rpartition(".")[2]
    return next(group for group, stems in _CLASSES.items() if stem in stems)


def size(n_bytes: int) -> str:
    """1536 -> "1.5 KiB"."""
    return _scaled(n_bytes, 1024, ("bytes", "KiB", "MiB", "GiB", "TiB"))


def quantity(n: int) -> str:
    """46_700_000_000 -> "46.7 G"."""
    return _scaled(n, 1000, ("", "k", "M", "G", "T"))


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    step = 0
    while value >= base and step < len(units) - 1:
        value, step = value / base, step + 1
    return f"{value:.0f} {units[0]}".rstrip() if step == 0 else f"{value:.1f} {units[step]}"
