"""Importance matrices: how large the inputs of each weight matrix were on a calibration text.

Of each column there is the sum of its squared inputs. The quantizer gives columns with larger
inputs smaller errors. pymixtral.evaluation.calibration measures a matrix, pymixtral.files.imatrix
reads and writes its files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from pymixtral.arrays import F32, F64
from pymixtral.errors import InvalidArgumentError
from pymixtral.files.names import TensorName, expert_name

PRIOR_TOKENS = 32
"""What the layer's mean counts beside an expert's own tokens: of one that saw 32 tokens half of the
importance is its own, of one that saw 3200 tokens 99%."""

HARDLY_SEEN = 8 * PRIOR_TOKENS
"""Experts that saw fewer tokens are reported: more than a ninth of their importance is the layer's
mean."""

FLOOR = 1e-4
"""The least importance of a column, as a part of its matrix's mean: what was silent on the
calibration text may speak on another."""


_FUSED = {
    **dict.fromkeys(("ffn_gate", "ffn_up"), "ffn_gate_up"),
    **dict.fromkeys(("attn_q", "attn_k", "attn_v"), "attn_qkv"),
}
"""Matrices with one input, by the name that they have where a program stores them as one."""


@dataclass(frozen=True, eq=False)
class Entry:
    """The inputs of one tensor.

    Attributes:
        sums: float64 [n_matrices, cols], squared inputs added up.
        counts: float64 [n_matrices], the tokens that were added up.
    """

    sums: F64
    counts: F64

    def split(self, n_matrices: int) -> Entry:
        """The same as the inputs of n_matrices matrices.

        dat files have all experts of a tensor in one row with one count. In such a row an expert
        that saw nothing has the same number everywhere.
        """
        if len(self.sums) == n_matrices or len(self.sums) != 1 or self.sums.size % n_matrices:
            return self
        sums = self.sums.reshape(n_matrices, -1)
        seen = sums.min(axis=1) != sums.max(axis=1)
        return Entry(np.where(seen[:, None], sums, 0.0), np.where(seen, self.counts, 0.0))


@dataclass(frozen=True, eq=False)
class Importance:
    """How much the columns of one tensor's matrices matter.

    Attributes:
        weights: float32 [n_matrices, cols], positive; the mean of each row is 1.
        energy: float64 [n_matrices], the mean squared input of each matrix times the part of the
            tokens that it sees.
        counts: float64 [n_matrices], the tokens that each matrix saw.
    """

    weights: F32
    energy: F64
    counts: F64

    def part(self, i: int) -> Importance:
        """That of matrix i alone."""
        return Importance(self.weights[i : i + 1], self.energy[i : i + 1], self.counts[i : i + 1])


@dataclass
class ImportanceMatrix:
    """What was measured of a model.

    Attributes:
        entries: by GGUF tensor name, such as blk.0.ffn_gate_exps.weight. Those that were measured
            with a tensor for each expert (blk.0.ffn_gate.3.weight), or with gate and up in one
            (blk.0.ffn_gate_up_exps.weight), are found by importance() too.
        datasets: the names of the texts.
        n_windows: windows of n_ctx tokens that were read.
        n_ctx: tokens of a window.
        digest: of the texts and n_ctx, so that a calibration goes on only with what it began with;
            "" where it is unknown.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    n_windows: int = 0
    n_ctx: int = 0
    digest: str = ""

    def importance(self, name: str, n_matrices: int, cols: int) -> Importance | None:
        """How much the columns of a tensor matter.

        With S an expert's sums, n its tokens, and m the mean over all tokens and experts of the
        layer, its mean squared inputs are (S + 32 m) / (n + 32): an expert that was hardly seen is
        shrunk towards the layer's mean. Nothing is less than 1e-4 of a row's mean; a row that is
        zero throughout counts as all ones.

        Args:
            name: the tensor's name.
            n_matrices: its experts, or 1.
            cols: its columns.

        Returns:
            The importance, or None without an entry.

        Raises:
            InvalidArgumentError: for an entry of another shape.
        """
        entry = self._entry(name, n_matrices, cols)
        if entry is None:
            return None
        if entry.sums.shape != (n_matrices, cols):
            raise _of_another_model(name, (n_matrices, cols), entry)
        total = entry.counts.sum()
        mean = entry.sums.sum(axis=0) / max(total, 1.0)
        shrunk = (entry.sums + PRIOR_TOKENS * mean) / (entry.counts + PRIOR_TOKENS)[:, None]
        squares = shrunk if n_matrices > 1 else mean[None]
        level = squares.mean(axis=1)
        weights = np.maximum(squares / np.where(level > 0, level, 1.0)[:, None], FLOOR)
        weights[level == 0] = 1.0
        weights /= weights.mean(axis=1, keepdims=True)
        share = (entry.counts + PRIOR_TOKENS) / (total + PRIOR_TOKENS * n_matrices)
        return Importance(weights.astype(np.float32), level * share, entry.counts)

    def _entry(self, name: str, n_matrices: int, cols: int) -> Entry | None:
        """What was measured of a tensor: of all its matrices together, and of single experts."""
        parsed = TensorName.parse(name)
        fused = _FUSED.get(parsed.stem, "") if parsed else ""
        for stored in (name, name.replace(parsed.stem, fused) if parsed and fused else name):
            found = ImportanceMatrix()
            if entry := self.entries.get(stored):
                found.entries[stored] = entry.split(n_matrices)
            if parsed and parsed.merged:
                self._add_experts(found, stored, n_matrices, cols)
            if found.entries:
                return found.entries[stored]
        return None

    def _add_experts(self, found: ImportanceMatrix, name: str, n_experts: int, cols: int) -> None:
        entries = [self.entries.get(expert_name(name, e)) for e in range(n_experts)]
        if not any(entries):
            return
        sums, counts = np.zeros((n_experts, cols)), np.zeros(n_experts)
        for e, entry in enumerate(entries):
            if entry:
                if entry.sums.shape != (1, cols):
                    raise _of_another_model(expert_name(name, e), (1, cols), entry)
                sums[e], counts[e] = entry.sums[0], entry.counts[0]
        found.add(name, sums, counts)

    def add(self, name: str, sums: F64, counts: F64) -> None:
        """Adds to a tensor's inputs.

        Args:
            name: the tensor's name.
            sums: float64 [n_matrices, cols], squared inputs added up.
            counts: float64 [n_matrices], the tokens that were added up.

        Raises:
            InvalidArgumentError: for another shape than that of the tensor's entry.
        """
        new = Entry(sums, counts)
        if old := self.entries.get(name):
            old, new = old.split(len(sums)), new.split(len(old.sums))
            if old.sums.shape != new.sums.shape:
                raise InvalidArgumentError(
                    f"importance matrix: {name}: expected matrices of one model, "
                    f"found the shapes {list(old.sums.shape)} and {list(sums.shape)}"
                )
            new = Entry(old.sums + new.sums, old.counts + new.counts)
        self.entries[name] = new

    def hardly_seen(self) -> dict[str, dict[int, int]]:
        """The experts that saw fewer than HARDLY_SEEN tokens.

        Returns:
            By layer, such as blk.0, the tokens of each such expert.
        """
        seen: dict[int, dict[int, float]] = {}
        for key, entry in self.entries.items():
            name = TensorName.parse(key.replace("ffn_gate_up", "ffn_gate"))
            if name is None or name.layer is None or name.stem != "ffn_gate" or name.tensor_class != "experts":
                continue
            layer = seen.setdefault(name.layer, {})
            for e, count in enumerate(entry.counts) if name.merged else [(name.expert or 0, entry.counts[0])]:
                layer[e] = layer.get(e, 0.0) + float(count)
        found = {}
        for number, tokens in seen.items():
            if experts := {e: int(n) for e, n in tokens.items() if n < HARDLY_SEEN}:
                found[f"blk.{number}"] = experts
        return found


def _of_another_model(name: str, expected: tuple[int, int], entry: Entry) -> InvalidArgumentError:
    (rows, cols), (found_rows, found_cols) = expected, entry.sums.shape
    return InvalidArgumentError(
        f"importance matrix: {name}: expected {rows} x {cols} columns, found {found_rows} x {found_cols}: "
        "it was made for another model"
    )


def merge(matrices: Iterable[ImportanceMatrix]) -> ImportanceMatrix:
    """The sum of several matrices of one model.

    Raises:
        InvalidArgumentError: where their shapes differ.
    """
    result = ImportanceMatrix()
    for matrix in matrices:
        for name, entry in matrix.entries.items():
            result.add(name, entry.sums, entry.counts)
        result.datasets = list(dict.fromkeys([*result.datasets, *matrix.datasets]))
        result.n_windows += matrix.n_windows
        result.n_ctx = result.n_ctx or matrix.n_ctx
    return result
