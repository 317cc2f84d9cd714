"""The C library as NumPy functions; the only package that imports the extension.

`operations`, `layer`, `layers` and `sampling` have a function for each entry point, `context` has the threads and the
instruction set that they run with, `prefetch` chooses a context's hint, `timing` says where its time
goes, `views` has the arrays as C sees them, and `native` the extension.
"""

from pymixtral.ops.context import Context, available_isas, built_isas
from pymixtral.ops.layer import Batch, Layer, Observer, layer_attention, layer_experts
from pymixtral.ops.layers import EVERY, Choices, Stack, run_layers
from pymixtral.ops.operations import (
    attention,
    cache_write,
    embed,
    encode,
    exp,
    matmul,
    quantize_activations,
    rms_norm,
    rope,
    rope_table,
    route,
    silu_mul,
)
from pymixtral.ops.prefetch import PrefetchTrial, asked_prefetch, default_prefetch
from pymixtral.ops.sampling import NEVER, SamplerRow, sample
from pymixtral.ops.threads import MAX_THREADS, Threads, thread_limits
from pymixtral.ops.timing import LINE, PARTS, PartTime, ThreadTime, read, read_timing, start_timing, stop_timing
from pymixtral.ops.views import NUMERICS_VERSION, PAGE, BoundMatrix, CacheLayer, Delta, Pair, Runs

__all__ = [
    "EVERY",
    "LINE",
    "MAX_THREADS",
    "NEVER",
    "NUMERICS_VERSION",
    "PAGE",
    "PARTS",
    "Batch",
    "BoundMatrix",
    "CacheLayer",
    "Choices",
    "Context",
    "Delta",
    "Layer",
    "Observer",
    "Pair",
    "PartTime",
    "PrefetchTrial",
    "Runs",
    "SamplerRow",
    "Stack",
    "ThreadTime",
    "Threads",
    "asked_prefetch",
    "attention",
    "available_isas",
    "built_isas",
    "cache_write",
    "default_prefetch",
    "embed",
    "encode",
    "exp",
    "layer_attention",
    "layer_experts",
    "matmul",
    "quantize_activations",
    "read",
    "read_timing",
    "rms_norm",
    "rope",
    "rope_table",
    "route",
    "run_layers",
    "sample",
    "silu_mul",
    "start_timing",
    "stop_timing",
    "thread_limits",
]
