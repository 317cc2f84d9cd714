"""The oracle: every operation of docs/numerics.md and the whole forward pass in plain NumPy.

This is what pymixtral computes, to the bit; tests compare the C kernels with it by `==`. Read it
beside docs/numerics.md, the contract: each function has the name of its section there, works on
all outputs at once, and loops over the one axis whose order the contract fixes. The row of a
NonFiniteError is the index along the first axis at which NaN or infinity was found.
"""

from pymixtral.reference.adapters import Deltas, adapted
from pymixtral.reference.arithmetic import exp, fma, sum8
from pymixtral.reference.attention import PAGE, Q8_0, attention, round_to_cache, shift_keys
from pymixtral.reference.blocks import dequantize
from pymixtral.reference.experts import experts, feed_forward, route, silu_mul
from pymixtral.reference.forward import forward, layer, layer_attention, logits, rms_norm
from pymixtral.reference.products import embed, matmul, quantize_activations
from pymixtral.reference.rotation import rope, rope_table

__all__ = [
    "PAGE",
    "Q8_0",
    "Deltas",
    "adapted",
    "attention",
    "dequantize",
    "embed",
    "exp",
    "experts",
    "feed_forward",
    "fma",
    "forward",
    "layer",
    "layer_attention",
    "logits",
    "matmul",
    "quantize_activations",
    "rms_norm",
    "rope",
    "rope_table",
    "round_to_cache",
    "route",
    "shift_keys",
    "silu_mul",
    "sum8",
]
