"""The type of each tensor in the GGUF file."""

from __future__ import annotations

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from pymixtral.errors import InvalidArgumentError

from .layout import Target

TYPES = {
    "f32": GGMLQuantizationType.F32,
    "bf16": GGMLQuantizationType.BF16,
    "f16": GGMLQuantizationType.F16,
    "q8_0": GGMLQuantizationType.Q8_0,
    "q4_0": GGMLQuantizationType.Q4_0,
}
FILE_TYPES = {
    GGMLQuantizationType.F32: LlamaFileType.ALL_F32,
    GGMLQuantizationType.BF16: LlamaFileType.MOSTLY_BF16,
    GGMLQuantizationType.F16: LlamaFileType.MOSTLY_F16,
    GGMLQuantizationType.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    GGMLQuantizationType.Q4_0: LlamaFileType.MOSTLY_Q4_0,
}


def parse_type(name: str) -> GGMLQuantizationType:
    """The type of that name. Raises InvalidArgumentError."""
    if name not in TYPES:
        raise InvalidArgumentError(f"type is {name!r}; expected one of {', '.join(TYPES)}")
    return TYPES[name]


def tensor_type(target: Target, asked: GGMLQuantizationType) -> GGMLQuantizationType:
    """The type that a tensor is written in when the user asks for `asked`.

    Norms and the router stay f32: they are a thousandth of the weights, and the router's choice is discrete. A matrix whose
    rows do not divide into the type's blocks becomes f16.
    """
    if len(target.shape) == 1 or target.name.endswith("ffn_gate_inp.weight"):
        return GGMLQuantizationType.F32
    if target.cols % GGML_QUANT_SIZES[asked][0]:
        return GGMLQuantizationType.F16
    return asked


def row_bytes(kind: GGMLQuantizationType, cols: int) -> int:
    block, size = GGML_QUANT_SIZES[kind]
    return int(cols // block * size)
