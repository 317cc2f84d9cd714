"""A fault that a sanitizer must end the process for: run by tests/native/sanitize to see that it
would.
"""

from __future__ import annotations

import sys

from pymixtral import ops
from pymixtral.ops.native import ffi, lib

N = 5000
x = ffi.new("float[]", N)
y = ffi.new("char[]", 4 * N + 8)
with ops.Context(1, "scalar") as ctx:
    if sys.argv[1] == "overrun":
        lib.pmx_exp(ctx.pointer, ffi.cast("float *", y), x, N + 1000)
    else:
        lib.pmx_exp(ctx.pointer, ffi.cast("float *", y + 1), x, N)
