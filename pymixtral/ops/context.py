"""Contexts of the C library: its threads, its scratch memory and the instruction set it uses."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

from pymixtral.arguments import integer
from pymixtral.errors import ClosedError, UnsupportedError
from pymixtral.ops.native import check, ffi, lib
from pymixtral.ops.threads import MAX_THREADS, thread_limits


def built_isas() -> list[str]:
    """The instruction sets of this build, slowest first."""
    names: list[str] = []
    while (name := lib.pmx_isa_name(len(names))) != ffi.NULL:
        names.append(ffi.string(name).decode())
    return names


def available_isas() -> list[str]:
    """Those of built_isas() that this machine runs."""
    return [name for i, name in enumerate(built_isas()) if lib.pmx_isa_available(i)]


class Context:
    """Threads and scratch memory of the C library; one call at a time.

    n_threads: 1 to 256; None: what affinity, cgroup quota and physical cores allow. isa: one of available_isas(); None: the environment's
    PYMIXTRAL_ISA, else the fastest. Raises InvalidArgumentError for other numbers of threads, UnsupportedError for an unknown or
    unavailable instruction set.
    """

    def __init__(self, n_threads: int | None = None, isa: str | None = None) -> None:
        self._pointer: Any = None
        if n_threads is None:
            n_threads = thread_limits().default
        n_threads = integer("n_threads", n_threads, 1, MAX_THREADS)
        isa = isa or os.environ.get("PYMIXTRAL_ISA") or None
        if isa is not None and isa not in available_isas():
            raise UnsupportedError(f"expected an instruction set of this build and machine ({', '.join(available_isas())}), found '{isa}'")
        out = ffi.new("pmx_ctx **")
        check(lib.pmx_ctx_create(out, n_threads, ffi.NULL if isa is None else isa.encode()))
        self._pointer = out[0]

    @property
    def pointer(self) -> Any:
        """The C context. Raises ClosedError after close()."""
        if self._pointer is None:
            raise ClosedError("expected an open context, found one that was closed")
        return self._pointer

    @property
    def isa(self) -> str:
        return str(ffi.string(lib.pmx_ctx_isa(self.pointer)).decode())

    @property
    def n_threads(self) -> int:
        return int(lib.pmx_ctx_threads(self.pointer))

    def cancel(self, on: bool = True) -> None:
        """Makes the call under way, and later ones, end with CanceledError, until set to False. Any thread may call it."""
        lib.pmx_ctx_cancel(self.pointer, on)

    def close(self) -> None:
        """Ends the threads and frees the scratch; may be called again. No call may be under way."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None:
            lib.pmx_ctx_destroy(pointer)

    def __enter__(self) -> Context:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
