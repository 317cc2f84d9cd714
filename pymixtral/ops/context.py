"""Contexts of the C library: threads, scratch memory and an instruction set."""

from __future__ import annotations

import os
import re
from types import TracebackType
from typing import Any

from pymixtral.arguments import integer, shown
from pymixtral.errors import ClosedError, InvalidArgumentError, UnsupportedError
from pymixtral.ops.native import check, ffi, lib
from pymixtral.ops.threads import MAX_THREADS, thread_limits


def built_isas() -> list[str]:
    """List the instruction sets of this build.

    Returns:
        Names such as "scalar" and "avx2", slowest first.
    """
    names: list[str] = []
    while (name := lib.pmx_isa_name(len(names))) != ffi.NULL:
        names.append(ffi.string(name).decode())
    return names


def available_isas() -> list[str]:
    """List the instruction sets of this build that this machine runs.

    Returns:
        Names, slowest first.
    """
    return [name for i, name in enumerate(built_isas()) if lib.pmx_isa_available(i)]


class Context:
    """Threads and scratch memory of the C library.

    It serves one call at a time. A call that meets another thread's raises InvalidArgumentError and
    leaves its arrays as they were; the other thread's goes on. Threads that compute at the same
    time have a context each.

    Args:
        n_threads: 1 to 256; None: as many as the CPU affinity, the cgroup's quota and the number of
            physical cores allow.
        isa: one of available_isas(); None: what the environment's PYMIXTRAL_ISA names, else the
            fastest.

    Raises:
        InvalidArgumentError: for another number of threads.
        UnsupportedError: for an instruction set that this build or this machine does not have.
        NativeError: if there is no memory, or a thread cannot be started.
    """

    def __init__(self, n_threads: int | None = None, isa: str | None = None) -> None:
        self._pointer: Any = None
        self._prefetch = "near"
        self._planes = 1
        if n_threads is None:
            n_threads = thread_limits().default
        n_threads = integer("n_threads", n_threads, 1, MAX_THREADS)
        isa = isa or os.environ.get("PYMIXTRAL_ISA") or None
        if isa is not None and isa not in available_isas():
            raise UnsupportedError(
                f"expected an instruction set of this build and machine ({', '.join(available_isas())}), found '{isa}'"
            )
        out = ffi.new("pmx_ctx **")
        check(lib.pmx_ctx_create(out, n_threads, ffi.NULL if isa is None else isa.encode()))
        # Freed with its last reference: another thread may be in cancel() while this one closes.
        self._pointer = ffi.gc(out[0], lib.pmx_ctx_destroy)

    @property
    def pointer(self) -> Any:
        """The C context.

        Raises:
            ClosedError: after close().
        """
        if self._pointer is None:
            raise ClosedError("expected an open context, found one that was closed: make a new one")
        return self._pointer

    @property
    def isa(self) -> str:
        """The name of the instruction set in use."""
        return str(ffi.string(lib.pmx_ctx_isa(self.pointer)).decode())

    @property
    def n_threads(self) -> int:
        """The number of threads in use."""
        return int(lib.pmx_ctx_threads(self.pointer))

    @property
    def prefetch(self) -> str:
        """Where kernels of one token put the weights that come next, and how early they ask for them.

        "near" is the first cache, as at first, "far" the second. "near:4096" asks for a line 4096 bytes,
        at most 1048576, before it is read; without a number these are 8192. The number counts in
        kernels that read rows one by one; others ask for a group of rows before they read it. No result
        depends on it.

        Raises:
            InvalidArgumentError: when it is set to another value.
        """
        return self._prefetch

    @prefetch.setter
    def prefetch(self, wanted: str) -> None:
        hint, ahead = parse_prefetch(wanted)
        hints = {"near": lib.PMX_PREFETCH_NEAR, "far": lib.PMX_PREFETCH_FAR}
        check(lib.pmx_ctx_prefetch(self.pointer, hints[hint], ahead))
        self._prefetch = hint if ahead == lib.PMX_AHEAD else f"{hint}:{ahead}"

    @property
    def planes(self) -> int:
        """How finely products round activations.

        With 1, as at first, they are int8. With 2, a second int8 rounds what the first left, so that
        they have some 16 bits.

        Raises:
            InvalidArgumentError: when it is set to another number.
        """
        return self._planes

    @planes.setter
    def planes(self, n: int) -> None:
        check(lib.pmx_ctx_planes(self.pointer, integer("planes", n, 1, 2)))
        self._planes = n

    def cancel(self, on: bool = True) -> None:
        """Cancel the call that is running and all later ones: they raise CanceledError.

        Any thread may call this. After close() it does nothing.

        Args:
            on: True cancels; False lets later calls run again.
        """
        pointer = self._pointer
        if pointer is not None:
            lib.pmx_ctx_cancel(pointer, on)

    def close(self) -> None:
        """End the threads and free the scratch memory. A second close() does nothing.

        A call that another thread has begun runs to its end, and they are freed then.
        """
        self._pointer = None

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def parse_prefetch(text: str) -> tuple[str, int]:
    """Read what Context.prefetch may be set to.

    Args:
        text: "near" or "far", perhaps with a colon and a number of bytes.

    Returns:
        "near" or "far", and the bytes.

    Raises:
        InvalidArgumentError: for another text.
    """
    match = re.fullmatch(r"(near|far)(?::([0-9]{1,7}))?", text, re.ASCII)
    ahead = int(match[2] or lib.PMX_AHEAD) if match else -1
    if match is None or ahead > lib.PMX_MAX_AHEAD:
        raise InvalidArgumentError(
            f"expected prefetch to be 'near' or 'far', or with bytes such as 'near:4096', at most {lib.PMX_MAX_AHEAD}, "
            f"found {shown(text)}: set one of them"
        )
    return match[1], ahead
