"""What the C entry points say when they refuse a call."""

from __future__ import annotations

import re

from pymixtral.ops.native import ffi, lib


def refused(status: int, expected: int = lib.PMX_EINVAL) -> str:
    """Checks a refusal and returns its message, which names an argument."""
    assert status == expected
    assert lib.pmx_bad_row() == -1
    message = bytes(ffi.string(lib.pmx_message())).decode()
    assert re.fullmatch(r"(row \d+ of )?[a-z][\w\[\].>, -]*: expected .+, found .+", message), message
    return message
