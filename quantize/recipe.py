"""The type of each tensor in the GGUF file: by a recipe's name, and by name patterns of the user.

A recipe is a type for all matrices, or one of the mixes of pymixtral.inspection.mixes; a pattern for all, "*", makes others of one type.
Norms and the router stay f32 whatever is asked: they are a thousandth of the weights, and the router's choice is discrete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

from gguf import GGMLQuantizationType, LlamaFileType

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

RECIPES = tuple(sorted(_BASES, key=lambda name: -bits_per_weight(_BASES[name])))
"""All recipes, from most bits to fewest: the mixes, and the types that no mix is named after."""


def kept_f32(target: Target) -> bool:
    """Norms and routers."""
    return tensor_class(target.name) in ("norms", "router")


def wanted_types(targets: Sequence[Target], recipe: str) -> list[Type]:
    """The type that a recipe wants for each tensor, whatever its columns. Raises InvalidArgumentError for an unknown recipe."""
    if recipe not in RECIPES:
        raise InvalidArgumentError(f"type is {recipe!r}; expected one of {', '.join(RECIPES)}")
    if recipe not in MIXES:
        return [Type.F32 if kept_f32(target) else TENSOR_TYPES[recipe] for target in targets]
    n_experts = max(Counter(merged_name(target.name) for target in targets for _ in target.sources).values())
    return mix_types(Inventory([Part(target.name, Type.F32, target.shape) for target in targets], n_experts), recipe)


def overrides(targets: Sequence[Target], patterns: Sequence[tuple[str, str]]) -> dict[str, Type]:
    """Type by tensor name for (pattern, type) pairs, the last that matches a name. Patterns are those of fnmatch, on whole GGUF names; that
    of a merged tensor stands for its experts' where these are single.

    Raises InvalidArgumentError for an unknown type and for a pattern that matches no tensor, or none but norms and routers.
    """
    result: dict[str, Type] = {}
    for pattern, name in patterns:
        if name not in TENSOR_TYPES:
            raise InvalidArgumentError(f"type of {pattern!r} is {name!r}; expected one of {', '.join(TENSOR_TYPES)}")
        matched = [t for t in targets if fnmatchcase(t.name, pattern) or fnmatchcase(merged_name(t.name), pattern)]
        if not matched:
            if any(fnmatchcase(part.name, pattern) for target in targets for part in target.split()):
                raise InvalidArgumentError(
                    f"{pattern!r} matches single experts, which have types of their own with per_expert=True"
                )
            raise InvalidArgumentError(
                f"{pattern!r} matches no tensor; expected a whole name or a pattern, such as 'blk.*.ffn_down_exps.weight'"
            )
        matrices = [target for target in matched if not kept_f32(target)]
        if not matrices:
            raise InvalidArgumentError(f"{pattern!r} matches {matched[0].name}; norms and routers stay f32: expected a pattern for others")
        result |= {target.name: TENSOR_TYPES[name] for target in matrices}
    return result


def fit(target: Target, wanted: Type) -> Type:
    """The type that a tensor is written in: the wanted one, or what its columns allow."""
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
