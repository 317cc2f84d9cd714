"""The type of each tensor in the GGUF file: by a recipe's name, and by name patterns of the user.

A recipe is a type for all matrices, or one of the mixes of pymixtral.inspection.mixes; a pattern for all, "*", makes others of one type.
Norms and the router stay f32 whatever is asked: they are a thousandth of the weights, and the router's choice is discrete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from pymixtral.errors import InvalidArgumentError
from pymixtral.files.names import merged_name, tensor_class
from pymixtral.inspection.inventory import Inventory, Part
from pymixtral.inspection.mixes import fitting
from pymixtral.inspection.mixes import types as mix_types

from .sources.targets import Target

Type = GGMLQuantizationType

_TYPES = (Type.F32, Type.BF16, Type.F16, Type.Q8_0, Type.Q5_K, Type.Q4_K, Type.Q3_K)
TYPES = {kind.name.lower(): kind for kind in _TYPES}
"""Recipes of one type."""

MIXES = (
    *("q6_k", "q5_1", "q5_k_m", "q5_k_s", "q5_0", "q4_1", "q4_k_m", "q4_k_s", "iq4_nl", "q4_0", "iq4_xs"),
    *("q3_k_l", "q3_k_m", "q3_k_s", "q2_k"),
)
"""Recipes of several."""

RECIPES = (
    *("f32", "f16", "bf16", "q8_0", "q6_k", "q5_1", "q5_k_m", "q5_k_s", "q5_0", "q5_k", "q4_1", "q4_k_m", "q4_k_s", "iq4_nl", "q4_0"),
    *("q4_k", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "q3_k", "q2_k"),
)
"""All of them, from most bits to fewest."""

_OTHERS = (Type.Q6_K, Type.Q5_1, Type.Q5_0, Type.Q4_1, Type.IQ4_NL, Type.Q4_0, Type.IQ4_XS, Type.Q2_K)
TENSOR_TYPES = TYPES | {kind.name.lower(): kind for kind in _OTHERS}
"""What a single tensor can be asked to be."""

_FILE_TYPES = {
    Type.F32: LlamaFileType.ALL_F32,
    Type.BF16: LlamaFileType.MOSTLY_BF16,
    Type.F16: LlamaFileType.MOSTLY_F16,
    Type.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    Type.Q6_K: LlamaFileType.MOSTLY_Q6_K,
    Type.Q5_K: LlamaFileType.MOSTLY_Q5_K_S,
    Type.Q5_1: LlamaFileType.MOSTLY_Q5_1,
    Type.Q5_0: LlamaFileType.MOSTLY_Q5_0,
    Type.Q4_K: LlamaFileType.MOSTLY_Q4_K_S,
    Type.Q4_1: LlamaFileType.MOSTLY_Q4_1,
    Type.Q4_0: LlamaFileType.MOSTLY_Q4_0,
    Type.IQ4_NL: LlamaFileType.MOSTLY_IQ4_NL,
    Type.IQ4_XS: LlamaFileType.MOSTLY_IQ4_XS,
    Type.Q3_K: LlamaFileType.MOSTLY_Q3_K_S,
    Type.Q2_K: LlamaFileType.MOSTLY_Q2_K,
}


def kept_f32(target: Target) -> bool:
    """Norms and routers."""
    return tensor_class(target.name) in ("norms", "router")


def wanted_types(targets: Sequence[Target], recipe: str) -> list[Type]:
    """The type that a recipe wants for each tensor, whatever its columns. Raises InvalidArgumentError for an unknown recipe."""
    if recipe not in RECIPES:
        raise InvalidArgumentError(f"type is {recipe!r}; expected one of {', '.join(RECIPES)}")
    if recipe in TYPES:
        return [Type.F32 if kept_f32(target) else TYPES[recipe] for target in targets]
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
                    f"{pattern!r} matches single experts, which have types of their own with --per-expert (per_expert=True)"
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


def row_bytes(kind: Type, cols: int) -> int:
    block, size = GGML_QUANT_SIZES[kind]
    return int(cols // block * size)


def file_type(recipe: str | None, bytes_by_type: Counter[Type]) -> LlamaFileType:
    """GGUF's general.file_type: of the recipe, or without one that of the type with most bytes."""
    mixed = getattr(LlamaFileType, f"MOSTLY_{recipe.upper()}", None) if recipe else None
    if isinstance(mixed, LlamaFileType):
        return mixed
    return _FILE_TYPES[TYPES[recipe] if recipe in TYPES else bytes_by_type.most_common(1)[0][0]]
