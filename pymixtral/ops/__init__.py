"""The C library as NumPy functions; the only room that knows the extension.

`operations` has a function for each entry point, `context` the threads and the instruction set that they run with, `native` the
extension itself.
"""

from pymixtral.ops.context import Context, available_isas
from pymixtral.ops.operations import (
    PAGE,
    BoundMatrix,
    CacheLayer,
    Layer,
    Observer,
    Pass,
    Rotation,
    Runs,
    attention,
    cache_write,
    embed,
    encode,
    exp,
    layer_attention,
    layer_experts,
    matmul,
    quantize_activations,
    rms_norm,
    rope,
    rope_table,
    route,
    silu_mul,
)

__all__ = [
    "PAGE",
    "BoundMatrix",
    "CacheLayer",
    "Context",
    "Layer",
    "Observer",
    "Pass",
    "Rotation",
    "Runs",
    "attention",
    "available_isas",
    "cache_write",
    "embed",
    "encode",
    "exp",
    "layer_attention",
    "layer_experts",
    "matmul",
    "quantize_activations",
    "rms_norm",
    "rope",
    "rope_table",
    "route",
    "silu_mul",
]
