"""The C library: the only module that imports the extension.

A status that the library returns becomes an exception of pymixtral.errors.
"""

from __future__ import annotations

from pymixtral._pmx import ffi, lib
from pymixtral.errors import (
    CanceledError,
    InvalidArgumentError,
    NativeError,
    NonFiniteError,
    PymixtralError,
    UnsupportedError,
)

__all__ = ["check", "ffi", "lib"]

_ERRORS: dict[int, type[PymixtralError]] = {
    lib.PMX_EINVAL: InvalidArgumentError,
    lib.PMX_ENOMEM: NativeError,
    lib.PMX_ETHREAD: NativeError,
    lib.PMX_EUNSUPPORTED: UnsupportedError,
    lib.PMX_ECANCELED: CanceledError,
    lib.PMX_EBUSY: InvalidArgumentError,
}


def check(status: int) -> None:
    """Raise the exception of a status, with the C library's message.

    Args:
        status: a pmx_status; PMX_OK raises nothing.

    Raises:
        PymixtralError: the subclass that belongs to the status.
    """
    if not status:
        return
    message = ffi.string(lib.pmx_message()).decode("utf-8", "replace")
    if status in (lib.PMX_ENONFINITE, lib.PMX_EOVERFLOW):
        raise NonFiniteError(message, lib.pmx_bad_row())
    raise _ERRORS[status](message)
