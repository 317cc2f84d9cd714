"""Types by name: what types the tensors of a model have in a file that is called q4_k_m.

Such a name, or q4_0, is a mix: some tensors of the model have more bits than the rest. The rules
are those of llama.cpp's default mixes, made without an importance matrix, but for one: in a
Mixtral, the matrices that every token passes have types of their own (EVERY_TOKEN). Sizes are those
of published files, of Mixtrals within 0.6%.
"""

from __future__ import annotations

from collections.abc import Callable

from gguf import GGMLQuantizationType

from pymixtral.errors import InvalidArgumentError
from pymixtral.files.names import TensorName
from pymixtral.files.types import ENCODED_TYPES, FLOAT_TYPES, bits_per_weight, block_weights, show_type
from pymixtral.inspection.inventory import Inventory, Part

Type = GGMLQuantizationType


_VARIANTS = {
    "q5_k_m": Type.Q5_K,
    "q5_k_s": Type.Q5_K,
    "q4_k_m": Type.Q4_K,
    "q4_k_s": Type.Q4_K,
    "q3_k_l": Type.Q3_K,
    "q3_k_m": Type.Q3_K,
    "iq3_m": Type.IQ3_S,
    "q3_k_s": Type.Q3_K,
    "iq2_m": Type.IQ2_S,
}
_OWN = {show_type(kind): kind for kind in ENCODED_TYPES if f"{show_type(kind)}_s" not in _VARIANTS}

MIXES = dict(sorted((_VARIANTS | _OWN).items(), key=lambda mix: -bits_per_weight(mix[1])))
"""By name, the type of most matrices; from the largest to the smallest file."""

EVERY_TOKEN = {
    **dict.fromkeys(
        (Type.IQ2_XXS, Type.IQ2_XS, Type.IQ2_S, Type.Q2_K, Type.IQ3_XXS, Type.IQ3_S, Type.Q3_K), (Type.Q4_K, Type.Q5_K)
    ),
    Type.IQ4_XS: (Type.Q5_K, Type.Q5_K),
    Type.IQ4_NL: (Type.Q5_K, Type.Q5_K),
    Type.Q4_0: (Type.Q5_K, Type.Q5_K),
    Type.Q4_1: (Type.Q5_K, Type.Q5_K),
    Type.Q4_K: (Type.Q5_K, Type.Q5_K),
    Type.Q5_0: (Type.Q5_0, Type.Q6_K),
    Type.Q5_1: (Type.Q5_1, Type.Q6_K),
    Type.Q5_K: (Type.Q5_K, Type.Q6_K),
}
"""By the experts' type, the type of attn_q and attn_output, and that of attn_k, attn_v and the
embedding; with an experts' type that is not here, all have it.

With eight experts and more these matrices are some 3% of the weights, but every token passes them.
llama.cpp leaves the embedding and attn_q in the experts' type, and has attn_k and attn_v in q8_0,
which is more than they need. The bytes that are saved there and spent on the others take a seventh
(4 bits) to two fifths (q2_k) off the divergence of tests/data/tiny-mixtral. Mixtral 8x7B becomes
smaller than with llama.cpp's rules, except in q3_k_l (0.3% larger, attn_output was q3_k), q4_0
(0.2%), q2_k and iq4_xs (0.03% and less)."""

_NARROW = {
    **dict.fromkeys(
        (Type.IQ2_XXS, Type.IQ2_XS, Type.IQ2_S, Type.Q2_K, Type.IQ3_XXS, Type.IQ3_S, Type.Q3_K, Type.IQ4_XS),
        Type.IQ4_NL,
    ),
    Type.Q4_K: Type.Q5_0,
    Type.Q5_K: Type.Q5_1,
    Type.Q6_K: Type.Q8_0,
}
"""Of types with blocks of 256, those with blocks of 32 and not fewer bits."""


def mixed(inventory: Inventory, mix: str) -> Inventory:
    """A model in the types of a mix.

    Args:
        inventory: the model's tensors.
        mix: a name of MIXES.

    Returns:
        The same tensors in the types that fitting() makes of the mix's.

    Raises:
        InvalidArgumentError: an unknown mix.
    """
    kinds = [fitting(kind, part.shape[-1]) for kind, part in zip(types(inventory, mix), inventory.parts, strict=True)]
    retyped = [Part(part.name, kind, part.shape) for kind, part in zip(kinds, inventory.parts, strict=True)]
    return Inventory(retyped, inventory.n_experts, inventory.experts_used)


def types(inventory: Inventory, mix: str) -> list[Type]:
    """The types that a mix wants.

    Args:
        inventory: the model's tensors.
        mix: a name of MIXES.

    Returns:
        The type of each tensor, whatever its columns. Norms and routers are f32.

    Raises:
        InvalidArgumentError: an unknown mix.
    """
    if mix not in MIXES:
        raise InvalidArgumentError(f"expected a type among {', '.join(MIXES)}, found {mix!r}")
    names = [TensorName.parse(part.name) for part in inventory.parts]
    n_layers = 1 + max((name.layer for name in names if name and name.layer is not None), default=-1)
    many = inventory.n_experts >= 8
    return [
        _type(part, name, mix, n_layers, many, inventory.tied)
        for part, name in zip(inventory.parts, names, strict=True)
    ]


def fitting(kind: Type, cols: int) -> Type:
    """The type that a matrix can have in place of a wanted one.

    Args:
        kind: the wanted type.
        cols: columns of the matrix.

    Returns:
        The wanted type, if rows divide into its blocks; else, as in llama.cpp, one with blocks of
        32 and not fewer bits; else f16.
    """
    if cols % block_weights(kind) == 0:
        return kind
    kind = _NARROW.get(kind, Type.F16)
    return Type.F16 if cols % block_weights(kind) else kind


def _type(part: Part, name: TensorName | None, mix: str, n_layers: int, many: bool, tied: bool) -> Type:
    """many: eight experts or more."""
    base, tensor_class = MIXES[mix], part.tensor_class
    if len(part.shape) == 1 or tensor_class == "router":
        return Type.F32
    if base in FLOAT_TYPES or name is None:
        return base
    if tensor_class == "output" or (tensor_class == "embedding" and tied):
        return Type.Q8_0 if base == Type.Q8_0 else Type.Q6_K
    if many and tensor_class in ("embedding", "attention"):
        large, small = EVERY_TOKEN.get(base, (base, base))
        return large if name.stem in ("attn_q", "attn_output") else small
    rule = _RULES.get(name.stem)
    return (rule(mix, name.layer or 0, n_layers) if rule else None) or base


def _more_bits(i: int, n: int) -> bool:
    """The first and the last eighth of the layers, and every third one between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _attn_v(mix: str, i: int, n: int) -> Type | None:
    if mix in ("q4_k_m", "q5_k_m"):
        return Type.Q6_K if _more_bits(i, n) else None
    if mix == "q3_k_m":
        return Type.Q5_K if i < 2 else Type.Q4_K
    if mix == "q4_k_s":
        return Type.Q5_K if i < 4 else None
    if MIXES[mix] in (Type.IQ2_XXS, Type.IQ2_XS, Type.IQ2_S, Type.IQ3_XXS, Type.IQ3_S):
        return Type.Q4_K
    return {"q2_k": Type.Q4_K, "q3_k_l": Type.Q5_K, "iq4_nl": Type.Q5_K, "iq4_xs": Type.Q5_K}.get(mix)


def _attn_output(mix: str, i: int, n: int) -> Type | None:  # noqa: ARG001
    return {
        "iq2_xxs": Type.IQ3_XXS,
        "iq2_xs": Type.IQ3_XXS,
        "iq2_s": Type.IQ3_S,
        "iq2_m": Type.IQ3_S,
        "q2_k": Type.Q3_K,
        "iq3_xxs": Type.IQ3_S,
        "iq3_m": Type.Q4_K,
        "q3_k_m": Type.Q4_K,
        "q3_k_l": Type.Q5_K,
    }.get(mix)


def _ffn_down(mix: str, i: int, n: int) -> Type | None:
    if mix in ("q4_k_m", "q5_k_m"):
        return Type.Q6_K if _more_bits(i, n) else None
    if mix in ("q4_k_s", "iq4_nl", "iq4_xs"):
        return Type.Q5_K if i < n // 8 else None
    if mix == "q3_k_m":
        return Type.Q5_K if i < n // 16 else Type.Q4_K
    if mix == "iq3_m":
        return Type.Q4_K if _more_bits(i, n) else None
    if mix in ("iq2_xxs", "iq2_xs"):
        return Type.IQ2_S if i < n // 8 else None
    if mix in ("iq2_m", "iq3_xxs"):
        return Type.IQ3_S if i < n // 8 else None
    return {"q2_k": Type.Q3_K, "q3_k_l": Type.Q5_K}.get(mix)


_RULES: dict[str, Callable[[str, int, int], Type | None]] = {
    "attn_v": _attn_v,
    "attn_output": _attn_output,
    "ffn_down": _ffn_down,
}
