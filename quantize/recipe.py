"""The type of each tensor in the GGUF file: by a recipe's name, and by name patterns of the user.

A recipe is one of the mixes of pymixtral.inspection.mixes, or a type for all matrices; a pattern
for all, "*", makes others of one type. Norms and the router stay f32 whatever is asked: they are a
thousandth of the weights, and the router's choice is discrete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

from gguf import GGMLQuantizationType, LlamaFileType

from pymixtral.arguments import shown
from pymixtral.errors import InvalidArgumentError
from pymixtral.files.names import merged_name, tensor_class
from pymixtral.files.types import ENCODED_TYPES, bits_per_weight, show_type
from pymixtral.inspection.inventory import Inventory, Part
from pymixtral.inspection.mixes import MIXES, fitting
from pymixtral.inspection.mixes import types as mix_types

from .sources.targets import Target

Type = GGMLQuantizationType

TENSOR_TYPES = {show_type(kind): kind for kind in ENCODED_TYPES}
"""By name, what a single tensor can be asked to be; from most bits to fewest."""

_BASES = {name: kind for name, kind in MIXES.items() if name not in TENSOR_TYPES} | TENSOR_TYPES

MAX_PATTERN = 256
"""Characters of a pattern: a tensor's name has at most 63. Compiling one of a million brackets takes hours."""

RECIPES = tuple(sorted(_BASES, key=lambda name: -bits_per_weight(_BASES[name])))
"""All recipes, from most bits to fewest: the mixes, and the types that no mix is named after."""


def kept_f32(target: Target) -> bool:
    """Whether a tensor is f32 in every recipe: norms, factors of rope and routers."""
    return tensor_class(target.name) in ("norms", "rope", "router")


def wanted_types(targets: Sequence[Target], recipe: str) -> list[Type]:
    """The types that a recipe wants.

    Args:
        targets: the tensors of the file.
        recipe: a name of RECIPES.

    Returns:
        The type of each tensor, whatever its columns.

    Raises:
        InvalidArgumentError: an unknown recipe.
    """
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise InvalidArgumentError(f"expected a type among {', '.join(RECIPES)}, found {shown(recipe)}")
    if recipe not in MIXES:
        return [Type.F32 if kept_f32(target) else TENSOR_TYPES[recipe] for target in targets]
    n_experts = max(Counter(merged_name(target.name) for target in targets for _ in target.sources).values())
    return mix_types(Inventory([Part(target.name, Type.F32, target.shape) for target in targets], n_experts), recipe)


def overrides(targets: Sequence[Target], patterns: Sequence[tuple[str, str]]) -> dict[str, Type]:
    """The types that a user wants for single tensors.

    Args:
        targets: the tensors of the file.
        patterns: pairs of pattern and type. Patterns are those of fnmatch, on whole GGUF names;
            where experts have tensors of their own, the name of the merged tensor stands for
            theirs.

    Returns:
        Type by tensor name: of the last pattern that matches the name.

    Raises:
        InvalidArgumentError: no such pairs, an unknown type, or a pattern that matches no tensor,
            or none but norms and routers.
    """
    result: dict[str, Type] = {}
    for pattern, name in _pairs(patterns):
        if len(pattern) > MAX_PATTERN:
            raise InvalidArgumentError(
                f"{shown(pattern)}: expected a pattern of at most {MAX_PATTERN} characters, found {len(pattern)}"
            )
        if name not in TENSOR_TYPES:
            raise InvalidArgumentError(
                f"{shown(pattern)}: expected a type among {', '.join(TENSOR_TYPES)}, found {shown(name)}"
            )
        matched = [t for t in targets if fnmatchcase(t.name, pattern) or fnmatchcase(merged_name(t.name), pattern)]
        if not matched:
            if any(fnmatchcase(part.name, pattern) for target in targets for part in target.split()):
                raise InvalidArgumentError(
                    f"{shown(pattern)}: expected a pattern for merged tensors, found one for single experts: these "
                    "have types of their own with per_expert=True"
                )
            raise InvalidArgumentError(
                f"{shown(pattern)}: expected a whole name or a pattern, such as 'blk.*.ffn_down_exps.weight', found "
                "that it matches no tensor"
            )
        matrices = [target for target in matched if not kept_f32(target)]
        if not matrices:
            raise InvalidArgumentError(
                f"{shown(pattern)}: expected a pattern for matrices, found that it matches {matched[0].name}: "
                "norms and routers stay f32"
            )
        result |= {target.name: TENSOR_TYPES[name] for target in matrices}
    return result


def _pairs(patterns: object) -> list[tuple[str, str]]:
    """The caller's pairs, checked to be such."""
    if not isinstance(patterns, (list, tuple)):
        raise InvalidArgumentError(
            "expected tensors to be a list of pairs of pattern and type, "
            f"found {type(patterns).__name__} {shown(patterns)}"
        )
    for pair in patterns:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise InvalidArgumentError(
                f"expected each of tensors to be a pair of pattern and type, found {shown(pair)}"
            )
    return [(pattern, name) for pattern, name in patterns]


def fit(target: Target, wanted: Type) -> Type:
    """The type that a tensor is written in: the wanted one, or what its columns allow instead."""
    return fitting(wanted, target.cols)


def file_type(recipe: str | None, bytes_by_type: Counter[Type]) -> LlamaFileType:
    """GGUF's general.file_type.

    Args:
        recipe: the file's recipe, or None.
        bytes_by_type: of a file without a recipe; its type is then that of most bytes.

    Returns:
        The number of the recipe or type, or where it has none, such as q4_k, of its small mix.
    """
    name = (recipe or bytes_by_type.most_common(1)[0][0].name).upper()
    names = (f"ALL_{name}", f"MOSTLY_{name}", f"MOSTLY_{name}_S")
    return next(LlamaFileType[found] for found in names if found in LlamaFileType.__members__)
