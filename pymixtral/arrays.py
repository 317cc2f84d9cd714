"""Names for the types of arrays that functions take and return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

F16 = NDArray[np.float16]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]

IdArray = NDArray[np.integer[Any]]
"""Token ids of any integer type."""

Ids = Sequence[int] | IdArray
"""Token ids as a caller may give them."""
