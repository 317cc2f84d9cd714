"""What a quantization did to a model: sizes and errors by class of tensor."""

from __future__ import annotations

import math
import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from pymixtral.arrays import F32
from pymixtral.escapes import escaped
from pymixtral.files.names import FFN_STEMS, TensorName
from pymixtral.files.types import show_type
from pymixtral.units import show_bytes, show_count

ERROR_STRIDE = 16
"""Errors are measured on every 16th row of a chunk. That is a small part of the run time; on all
rows it would be most of it."""

_ROWS = (
    *("embedding", "attention", "experts gate", "experts up", "experts down"),
    *("feed-forward gate", "feed-forward up", "feed-forward down", "norms and router", "output"),
)
"""The rows of a table of classes: those of files.names, but experts and feed-forward in three."""


@dataclass(frozen=True)
class ClassReport:
    """The tensors of one class.

    Attributes:
        name: the class.
        types: how many tensors have each type.
        n_weights: of all of them.
        n_bytes: of all of them.
        relative_error: ||w - decoded|| / ||w|| over the measured rows.
    """

    name: str
    types: dict[str, int]
    n_weights: int
    n_bytes: int
    relative_error: float

    @property
    def bits_per_weight(self) -> float:
        """Of its tensors together."""
        return 8 * self.n_bytes / self.n_weights


@dataclass(frozen=True)
class TensorReport:
    """One tensor.

    Attributes:
        name: the tensor's name.
        type: the name of the type that it is written in.
        shape: slowest dimension first.
        n_bytes: of its data.
        relative_error: ||w - decoded|| / ||w|| over the measured rows.
        weighted_error: the same with squares weighted by the importance of their columns; None
            without importance.
        expert_errors: the relative error of each expert of a merged tensor, else empty.
        n_zeroed: weights that were not finite and are 0.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    n_bytes: int
    relative_error: float
    weighted_error: float | None
    expert_errors: tuple[float, ...]
    n_zeroed: int


@dataclass(frozen=True)
class Report:
    """The result of quantize().

    Attributes:
        source: the checkpoint.
        dest: the file that was written.
        type: what was asked for.
        file_bytes: the size of dest.
        seconds: the run time.
        classes: the tensors by class.
        tensors: in the order of the file.
        notes: what a user should know, a sentence each.
    """

    source: Path
    dest: Path
    type: str
    file_bytes: int
    seconds: float
    classes: tuple[ClassReport, ...]
    tensors: tuple[TensorReport, ...]
    notes: tuple[str, ...]

    @property
    def n_weights(self) -> int:
        """Of all tensors together."""
        return sum(entry.n_weights for entry in self.classes)

    @property
    def bits_per_weight(self) -> float:
        """Of the tensors' data, headers and vocabulary not counted."""
        return 8 * sum(entry.n_bytes for entry in self.classes) / self.n_weights

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON has it; sizes in bytes."""
        return asdict(self) | {
            "source": str(self.source),
            "dest": str(self.dest),
            "n_weights": self.n_weights,
            "bits_per_weight": self.bits_per_weight,
            "measured": f"every {ERROR_STRIDE}th row",
        }

    def __str__(self) -> str:
        """The report as a terminal shows it."""
        lines = [
            f"{escaped(str(self.dest))}: {show_bytes(self.file_bytes)}, {self.bits_per_weight:.2f} bits per weight, "
            f"{show_count(self.n_weights)} weights, {self.seconds:.1f} s",
            "",
            f"  {'tensors':<18}{'types':<24}{'weights':>9}{'size':>11}{'bits':>7}{'error':>8}",
        ]
        for entry in self.classes:
            first, *rest = textwrap.wrap(", ".join(f"{n} {name}" for name, n in entry.types.items()), 23)
            error = "exact" if entry.relative_error == 0 else f"{100 * entry.relative_error:.3g}%"
            sizes = f"{show_count(entry.n_weights):>9}{show_bytes(entry.n_bytes):>11}{entry.bits_per_weight:>7.2f}"
            lines += [f"  {entry.name:<18}{first:<24}{sizes}{error:>8}", *(f"  {'':<18}{part}" for part in rest)]
        lines += ["", f"  error: ||w - decoded|| / ||w||, measured on every {ERROR_STRIDE}th row"]
        return "\n".join([*lines, *show_notes(self.notes)])


@dataclass
class _Sums:
    """Squared errors and squares of the measured rows of a source, also with weighted columns."""

    error: float = 0.0
    norm: float = 0.0
    weighted_error: float = 0.0
    weighted_norm: float = 0.0


class ErrorMeter:
    """Adds up squared errors, source by source, while the file is written."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, defaultdict[int, _Sums]] = defaultdict(lambda: defaultdict(_Sums))

    def add_rows(
        self,
        name: str,
        source: int,
        weights: F32,
        decoded: F32,
        importance: F32 | None,
    ) -> None:
        """Adds the errors of rows.

        Args:
            name: the tensor's name.
            source: which of its sources the rows belong to.
            weights: float32 [rows, cols].
            decoded: the same, after encoding and decoding.
            importance: float32 [cols], or None.
        """
        sums = self._sums[name][source]
        exact = weights.astype(np.float64)
        norm, error = np.square(exact).sum(axis=0), np.square(exact - decoded).sum(axis=0)
        sums.norm += float(norm.sum())
        sums.error += float(error.sum())
        if importance is not None:
            sums.weighted_norm += float(norm @ importance)
            sums.weighted_error += float(error @ importance)

    def tensor(
        self, name: str, kind: GGMLQuantizationType, shape: tuple[int, ...], n_bytes: int, n_zeroed: int = 0
    ) -> TensorReport:
        """The report of one tensor. Arguments are TensorReport's attributes."""
        parts = [sums for _, sums in sorted(self._sums[name].items())]
        weighted_norm = sum(sums.weighted_norm for sums in parts)
        return TensorReport(
            name,
            show_type(kind),
            shape,
            n_bytes,
            _relative(sum(sums.error for sums in parts), sum(sums.norm for sums in parts)),
            _relative(sum(sums.weighted_error for sums in parts), weighted_norm) if weighted_norm else None,
            tuple(_relative(sums.error, sums.norm) for sums in parts) if len(shape) == 3 else (),
            n_zeroed,
        )

    def classes(self, tensors: Sequence[TensorReport]) -> tuple[ClassReport, ...]:
        """The reports of all classes that the tensors belong to."""
        groups: defaultdict[str, list[TensorReport]] = defaultdict(list)
        for tensor in tensors:
            groups[report_row(tensor.name)].append(tensor)
        return tuple(self._class(name, groups[name]) for name in _ROWS if name in groups)

    def _class(self, name: str, tensors: Sequence[TensorReport]) -> ClassReport:
        sums = [part for tensor in tensors for part in self._sums[tensor.name].values()]
        return ClassReport(
            name,
            dict(Counter(tensor.type for tensor in tensors)),
            sum(math.prod(tensor.shape) for tensor in tensors),
            sum(tensor.n_bytes for tensor in tensors),
            _relative(sum(part.error for part in sums), sum(part.norm for part in sums)),
        )


def _relative(error: float, norm: float) -> float:
    return math.sqrt(error / norm) if norm else 0.0


def report_row(name: str) -> str:
    """The row of a table of classes that a tensor belongs to.

    Args:
        name: the tensor's name, such as blk.3.ffn_up_exps.weight.

    Returns:
        The row's name, such as "experts up".
    """
    parsed = TensorName.parse(name)
    assert parsed is not None
    if parsed.stem in FFN_STEMS:
        return f"{parsed.tensor_class} {parsed.stem.removeprefix('ffn_')}"
    return "norms and router" if parsed.tensor_class in ("norms", "rope", "router") else parsed.tensor_class


def show_notes(notes: Sequence[str]) -> list[str]:
    """Notes as lines of at most 80 columns."""
    return [
        line
        for note in notes
        for line in textwrap.wrap(f"note: {note}", 78, initial_indent="  ", subsequent_indent="    ")
    ]
