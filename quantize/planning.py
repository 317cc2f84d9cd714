"""What a quantization will write: types and importance of the tensors, and the file's size."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from gguf import GGMLQuantizationType, LlamaFileType

from pymixtral import ops
from pymixtral.arguments import integer, number, shown
from pymixtral.errors import InvalidArgumentError, UnsupportedError
from pymixtral.files import imatrix
from pymixtral.files.importance import Importance
from pymixtral.files.names import TensorName, merged_name
from pymixtral.files.types import block_weights, row_bytes, show_type
from pymixtral.files.writing import padding
from pymixtral.units import show_bytes

from .budget import CANDIDATES, NEED_IMPORTANCE, Choice, choose
from .recipe import TENSOR_TYPES, file_type, fit, kept_f32, overrides, wanted_types
from .report import report_row, show_notes
from .sources.checkpoint import Checkpoint
from .sources.targets import Target

ALIGNMENT = 32  # GGUF's default

_EMBEDDING = "token_embd.weight"  # a token looks up one of its rows: it has no input

Type = GGMLQuantizationType

_Row = TypeVar("_Row")
_Types = dict[str, str]


@dataclass(frozen=True, eq=False)
class PlannedTensor:
    """A tensor of the file to be.

    Attributes:
        target: the tensor.
        type: the type that it is written in.
        importance: of its columns; None where they count alike.
    """

    target: Target
    type: Type
    importance: Importance | None = None

    @property
    def n_weights(self) -> int:
        """The number of its weights."""
        return prod(self.target.shape)

    @property
    def n_bytes(self) -> int:
        """The bytes of its blocks."""
        return row_bytes(self.type, self.n_weights)


@dataclass(frozen=True)
class Request:
    """What a user asks for: one of recipe, target_bytes and target_bpw, and the rest.

    Attributes:
        recipe: its name.
        target_bytes: the file's size.
        target_bpw: bits per weight.
        tensors: patterns and types of single tensors.
        imatrix: the file of an importance matrix.
    """

    recipe: str | None
    target_bytes: int | None = None
    target_bpw: float | None = None
    tensors: Sequence[tuple[str, str]] = ()
    imatrix: Path | None = None


@dataclass(frozen=True, eq=False)
class Plan:
    """What a quantization will write.

    Attributes:
        name: what was asked for.
        tensors: in the order of the file.
        file_type: GGUF's general.file_type.
        choice: how well the types were chosen for a size; None for a recipe.
        notes: what a user should know, a sentence each.
    """

    name: str
    tensors: tuple[PlannedTensor, ...]
    file_type: LlamaFileType
    choice: Choice | None
    notes: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensors' data, with what aligns it."""
        return sum(tensor.n_bytes + padding(tensor.n_bytes, ALIGNMENT) for tensor in self.tensors)

    @property
    def n_weights(self) -> int:
        """Of all tensors together."""
        return sum(tensor.n_weights for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Of all tensors together."""
        return 8 * sum(tensor.n_bytes for tensor in self.tensors) / self.n_weights

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON has it; sizes in bytes."""
        return {
            "type": self.name,
            "n_bytes": self.n_bytes,
            "n_weights": self.n_weights,
            "bits_per_weight": self.bits_per_weight,
            "objective": self.choice.objective if self.choice else None,
            "tensors": [
                {
                    "name": tensor.target.name,
                    "type": show_type(tensor.type),
                    "shape": tensor.target.shape,
                    "n_bytes": tensor.n_bytes,
                }
                for tensor in self.tensors
            ],
            "notes": self.notes,
        }

    def __str__(self) -> str:
        """The plan as a terminal shows it: sizes by class, types by layer."""
        lines = [
            f"{self.name}: {show_bytes(self.n_bytes)} of tensors, {self.bits_per_weight:.3f} bits per weight",
            "",
            f"  {'tensors':<18}{'types':<34}{'size':>12}{'bits':>8}",
        ]
        groups: dict[str, list[PlannedTensor]] = {}
        for tensor in self.tensors:
            groups.setdefault(report_row(tensor.target.name), []).append(tensor)
        for group, tensors in groups.items():
            types = Counter(show_type(tensor.type) for tensor in tensors)
            n_bytes = sum(tensor.n_bytes for tensor in tensors)
            n_weights = sum(tensor.n_weights for tensor in tensors)
            first, *rest = textwrap.wrap(", ".join(f"{n} {name}" for name, n in types.items()), 33)
            lines.append(f"  {group:<18}{first:<34}{show_bytes(n_bytes):>12}{8 * n_bytes / n_weights:>8.2f}")
            lines += [f"  {'':<18}{part}" for part in rest]
        lines += ["", *self._grid()]
        if self.choice:
            objective = f"objective: {self.choice.objective:.6g}, the weighted sum of squared relative errors"
            lines += ["", f"  {objective}"]
        return "\n".join([*lines, *show_notes(self.notes)])

    def _grid(self) -> list[str]:
        """The types of each layer's matrices, and of each expert's that has its own.

        Equal lines that follow one another are one.
        """
        layers: dict[int, tuple[_Types, dict[int, _Types]]] = {}
        columns: dict[str, None] = {}
        for tensor in self.tensors:
            name = TensorName.parse(tensor.target.name)
            if name is not None and name.layer is not None and not kept_f32(tensor.target):
                columns[name.stem] = None
                layer, experts = layers.setdefault(name.layer, ({}, {}))
                row = layer if name.expert is None else experts.setdefault(name.expert, {})
                row[name.stem] = show_type(tensor.type)
        width = 14 if layers[0][1] else 8
        short = [column.removeprefix("attn_").removeprefix("ffn_") for column in columns]
        lines = [f"  {'layers':<{width}}" + "".join(f"{column:>9}" for column in short)]
        for numbers, (layer, experts) in _runs(layers):
            for head, row in [(numbers, layer), *((f"  expert {several}", row) for several, row in _runs(experts))]:
                cells = "".join(f"{row.get(column, ''):>9}" for column in columns)
                lines.append(f"  {head:<{width}}{cells.rstrip()}")
        return lines


def _runs(rows: Mapping[int, _Row]) -> Iterator[tuple[str, _Row]]:
    """Equal rows that follow one another as one, with their numbers."""
    for _, group in groupby(rows.items(), lambda item: item[1]):
        (first, row), *others = group
        yield f"{first}-{others[-1][0]}" if others else str(first), row


def make_plan(
    checkpoint: Checkpoint, request: Request, context: ops.Context, header_bytes: int, progress: bool
) -> Plan:
    """Decides what will be written.

    Args:
        checkpoint: the open checkpoint.
        request: what a user asks for.
        context: the threads that encode samples.
        header_bytes: of the file without its tensors.
        progress: a bar on stderr, when that is a terminal.

    Returns:
        The plan.

    Raises:
        InvalidArgumentError: the request makes no sense for this checkpoint.
        UnsupportedError: the type cannot hold the codes of packed matrices as it should.
        ModelFileError: the importance matrix is broken.
        CheckpointError: weights cannot be encoded.
    """
    targets = checkpoint.targets
    asked = [request.recipe, request.target_bytes, request.target_bpw]
    if sum(value is not None for value in asked) != 1:
        raise InvalidArgumentError(
            f"expected one of a type, a target size and target bits per weight, found {shown(asked)}"
        )
    importance, notes = _importance(targets, request.imatrix)
    if any(merged_name(target.name) != target.name for target in targets):
        notes.insert(
            0, "each expert has a tensor of its own: pymixtral runs such a file, llama.cpp has refused them since 2024"
        )
    fixed = overrides(targets, request.tensors)
    choice = None
    if request.recipe is not None:
        types = _keeping_codes(checkpoint, request.recipe) or wanted_types(targets, request.recipe)
        wanted = [fixed.get(target.name, kind) for target, kind in zip(targets, types, strict=True)]
        name = request.recipe
    else:
        n_weights = sum(prod(target.shape) for target in targets)
        if request.target_bytes is not None:
            target_bytes = integer("target_bytes", request.target_bytes, 0)
            name = f"target size {show_bytes(target_bytes)}"
            budget = target_bytes - header_bytes - ALIGNMENT * len(targets)
        else:
            bpw = number("target_bpw", request.target_bpw, 0, 32)
            name = f"target {bpw:g} bits per weight"
            budget = int(bpw * n_weights / 8)
        choice = choose(context, checkpoint, fixed, importance, budget, progress)
        wanted = [choice.types[target.name] for target in targets]
        best = CANDIDATES[-1]
        if all(choice.types[name] == best for name in choice.errors):
            notes.append(
                f"every matrix that was to be chosen is {show_type(best)}, the best choice: "
                "the target is larger than it takes"
            )
    tensors = tuple(
        PlannedTensor(target, fit(target, kind), importance.get(target.name))
        for target, kind in zip(targets, wanted, strict=True)
    )
    notes += [*_packing_notes(checkpoint, tensors), *_blind(tensors)]
    by_type: Counter[Type] = Counter()
    for tensor in tensors:
        by_type[tensor.type] += tensor.n_bytes
    return Plan(name, tensors, file_type(request.recipe, by_type), choice, (*_unfit(tensors, wanted), *notes))


def _keeping_codes(checkpoint: Checkpoint, recipe: str) -> list[Type] | None:
    """The types of all tensors if a recipe is a type that can hold the codes of the checkpoint's packed matrices.

    These have that type then; other matrices, which were left as floats, are q8_0.
    """
    kind = TENSOR_TYPES.get(recipe)
    if checkpoint.packing is None or kind not in checkpoint.packing.kept_as:
        return None
    packed = [tensor for target in checkpoint.targets if not kept_f32(target) for tensor in checkpoint.packed(target)]
    if unordered := [tensor.name for tensor in packed if tensor.g_idx is not None]:
        if kind != Type.Q4_1:  # q4_1 is asked for to keep codes, q4_0 also for its size
            return None
        raise UnsupportedError(
            f"{checkpoint.path}: {unordered[0]}: expected columns in the order of their groups for {recipe}, which "
            "keeps their codes, found another order (g_idx, of desc_act): ask for a type that is encoded again, such "
            "as q5_k_m"
        )
    return [
        Type.F32 if kept_f32(target) else kind if checkpoint.packed(target) else Type.Q8_0
        for target in checkpoint.targets
    ]


def _packing_notes(checkpoint: Checkpoint, tensors: Sequence[PlannedTensor]) -> list[str]:
    """Which packed matrices are encoded again, and what would keep their codes."""
    packing = checkpoint.packing
    if packing is None:
        return []
    ordered: list[PlannedTensor] = []
    others: list[PlannedTensor] = []
    for tensor in tensors:
        if parts := checkpoint.packed(tensor.target):
            (ordered if all(part.g_idx is None for part in parts) else others).append(tensor)
    notes = []
    if Type.Q4_0 in packing.kept_as and any(tensor.type == Type.Q4_1 for tensor in ordered):
        notes.append("the quantization is symmetric: q4_0 keeps its codes too, in a tenth fewer bytes than q4_1")
    again = [tensor for tensor in ordered if tensor.type not in packing.kept_as] + others
    if again := [tensor for tensor in again if tensor.type != Type.F32]:
        notes.append(
            f"{len(again)} tensors of {packing.method} are encoded again, which adds errors to its own, such as "
            f"{again[0].target.name} in {show_type(again[0].type)}" + ": as q4_1 their codes are kept" * (not others)
        )
    return notes


def _importance(targets: Sequence[Target], path: Path | None) -> tuple[dict[str, Importance], list[str]]:
    if path is None:
        return {}, []
    matrix = imatrix.read(path)
    matrices = [target for target in targets if not kept_f32(target)]
    found: dict[str, Importance | None] = {}
    for name, group in groupby(matrices, lambda target: merged_name(target.name)):
        members = list(group)
        importance = matrix.importance(name, sum(len(target.sources) for target in members), members[0].cols)
        for i, target in enumerate(members):
            found[target.name] = importance.part(i) if importance and not target.merged else importance
    present = {name: importance for name, importance in found.items() if importance is not None}
    if not present:
        raise InvalidArgumentError(
            f"{path}: expected entries for this checkpoint's tensors, such as {matrices[1].name}, found none"
        )
    notes = []
    missing = [name for name in found if name not in present and name != _EMBEDDING]
    if missing:
        notes.append(
            f"{path.name} has nothing for {len(missing)} matrices, whose columns count alike, such as {missing[0]}"
        )
    if hardly := matrix.hardly_seen():
        experts = ", ".join(f"{layer} {', '.join(map(str, seen))}" for layer, seen in list(hardly.items())[:4])
        more = ", ..." * (len(hardly) > 4)
        notes.append(f"experts hardly seen in calibration take after their layer's mean: {experts}{more}")
    return present, notes


def _blind(tensors: Sequence[PlannedTensor]) -> list[str]:
    """Matrices that an importance matrix would have served: not the embedding, which has no input."""
    blind = [tensor for tensor in tensors if tensor.type in NEED_IMPORTANCE and tensor.importance is None]
    names = [tensor.target.name for tensor in blind if tensor.target.name != _EMBEDDING]
    if not names:
        return []
    return [
        f"matrices of 2 bits that no importance matrix covers, which costs models more than the errors tell: "
        f"{len(names)}, such as {names[0]} (pymixtral calibrate makes importance matrices)"
    ]


def _unfit(tensors: Sequence[PlannedTensor], wanted: Sequence[Type]) -> list[str]:
    groups: dict[tuple[str, int], list[str]] = {}
    for tensor, kind in zip(tensors, wanted, strict=True):
        if tensor.type != kind:
            groups.setdefault((show_type(tensor.type), block_weights(kind)), []).append(tensor.target.name)
    return [
        f"{len(names)} matrices are {kind}, as their rows do not divide into blocks of {block}, such as {names[0]}"
        for (kind, block), names in groups.items()
    ]
