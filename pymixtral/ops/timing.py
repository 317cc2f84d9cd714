"""Where the time of a context's calls goes, and how fast memory is read."""

from __future__ import annotations

from dataclasses import dataclass

from pymixtral.arguments import integer, shown
from pymixtral.arrays import U8
from pymixtral.errors import InvalidArgumentError
from pymixtral.ops.context import Context
from pymixtral.ops.native import check, ffi, lib
from pymixtral.ops.views import as_input, pointer

PARTS = (
    *("other", "embedding", "norm", "qkv", "rope", "attention"),
    *("output", "router", "gate_up", "down", "head", "sampling"),
)
"""The parts of a pass, as pmx_part numbers them."""

LINE = 64
"""Bytes that read() counts as one."""

_HINTS = {None: -1, "near": lib.PMX_PREFETCH_NEAR, "far": lib.PMX_PREFETCH_FAR}


@dataclass(frozen=True)
class ThreadTime:
    """A thread in the regions of a part, the stretches whose work the threads share.

    Attributes:
        late: seconds from the beginning of a region to the thread's first item.
        busy: seconds from there to the end of its last item.
        waiting: seconds from there to the end of the region.
    """

    late: float
    busy: float
    waiting: float

    def __sub__(self, earlier: ThreadTime) -> ThreadTime:
        """What came after an earlier reading."""
        return ThreadTime(self.late - earlier.late, self.busy - earlier.busy, self.waiting - earlier.waiting)


@dataclass(frozen=True)
class PartTime:
    """What a part of the passes took.

    Attributes:
        name: one of PARTS.
        seconds: on the caller's thread.
        shared: of them, the seconds in regions. In the others the caller's thread works alone.
        n_regions: how many these were.
        n_bytes: bytes of the weights that were read.
        threads: each thread in the regions, the caller's first. Its three numbers add up to `shared`.
    """

    name: str
    seconds: float
    shared: float
    n_regions: int
    n_bytes: int
    threads: tuple[ThreadTime, ...]

    def __sub__(self, earlier: PartTime) -> PartTime:
        """What came after an earlier reading."""
        return PartTime(
            self.name,
            self.seconds - earlier.seconds,
            self.shared - earlier.shared,
            self.n_regions - earlier.n_regions,
            self.n_bytes - earlier.n_bytes,
            tuple(now - before for now, before in zip(self.threads, earlier.threads, strict=True)),
        )


def start_timing(ctx: Context) -> None:
    """Divide the time of the calls that follow among the parts of a pass, beginning at zero.

    No result depends on it.

    Args:
        ctx: no other thread may be in a call of it.

    Raises:
        InvalidArgumentError: if another thread is in a call.
        NativeError: if there is no memory.
    """
    check(lib.pmx_ctx_timing(ctx.pointer, 1))


def stop_timing(ctx: Context) -> list[PartTime]:
    """End what start_timing() began.

    Args:
        ctx: the same context.

    Returns:
        What each of PARTS took since then.

    Raises:
        InvalidArgumentError: without start_timing(), and if another thread is in a call.
    """
    times = read_timing(ctx)
    check(lib.pmx_ctx_timing(ctx.pointer, 0))
    return times


def read_timing(ctx: Context) -> list[PartTime]:
    """Read the times so far, and go on.

    Args:
        ctx: the context of start_timing().

    Returns:
        What each of PARTS took since then.

    Raises:
        InvalidArgumentError: without start_timing(), and if another thread is in a call.
    """
    n = ctx.n_threads
    parts, threads = ffi.new("pmx_part_time[]", len(PARTS)), ffi.new("pmx_thread_time[]", len(PARTS) * n)
    check(lib.pmx_ctx_times(ctx.pointer, parts, threads))
    return [
        PartTime(
            name,
            part.ns / 1e9,
            part.region_ns / 1e9,
            part.n_regions,
            part.bytes,
            tuple(ThreadTime(t.late_ns / 1e9, t.busy_ns / 1e9, t.waiting_ns / 1e9) for t in threads[i * n : i * n + n]),
        )
        for i, (name, part) in enumerate(zip(PARTS, parts, strict=True))
    ]


def read(ctx: Context, data: U8, n_streams: int = 1, hint: str | None = None) -> int:
    """Read memory on all threads, as fast as it can be read.

    Args:
        ctx: threads.
        data: uint8 [n], n a multiple of LINE.
        n_streams: 1, 2 or 4, the places that a thread reads at once.
        hint: where lines that come next are put, "near" or "far" as of Context.prefetch; None: nobody
            asks for them.

    Returns:
        The sum of the first 4 bytes of each line as little-endian integers, modulo 2**32.

    Raises:
        InvalidArgumentError: for another length, n_streams or hint.
        CanceledError: after Context.cancel().
    """
    data = as_input(data, 1, "u1")
    if len(data) % LINE:
        raise InvalidArgumentError(f"expected a multiple of {LINE} bytes, found {len(data)}: leave out the rest")
    n_streams = integer("n_streams", n_streams, 1, 4)
    if hint is not None and (not isinstance(hint, str) or hint not in _HINTS):
        raise InvalidArgumentError(f"expected hint to be 'near', 'far' or None, found {shown(hint)}")
    total = ffi.new("uint32_t *")
    check(lib.pmx_read(ctx.pointer, total, pointer(data), len(data) // LINE, n_streams, _HINTS[hint]))
    return int(total[0])
