"""Where the time of a generated token goes: in which part of its pass, and why it is not less.

A token needs the time in which the machine reads its weights, at the read bandwidth. All the rest is
lost, and here it is divided without a remainder: a thread was late or waited for another, one thread
worked alone, C had to do other things than products with weights, Python worked, or weights were read
more slowly than the machine can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pymixtral.ops import PartTime


@dataclass(frozen=True)
class PartLine:
    """A part of a pass. Parts of the token's time are between 0 and 1.

    Attributes:
        name: one of pymixtral.ops.PARTS.
        microseconds: of a token.
        part: of the token's time.
        n_bytes: bytes of weights that a token reads in it.
        bandwidth: n_bytes by the time, in 10^9 bytes/s; 0 without either.
        limit: bandwidth divided by the machine's.
        alone: the part of the token's time in which the caller's thread worked alone here.
        late: the part of the token's time that threads came late, the mean of all threads.
        waiting: likewise, that they waited for others.
        busy: what each thread worked of the time in which threads shared the work; empty if they never did.
    """

    name: str
    microseconds: float
    part: float
    n_bytes: float
    bandwidth: float
    limit: float
    alone: float
    late: float
    waiting: float
    busy: tuple[float, ...]


@dataclass(frozen=True)
class Loss:
    """Where the time goes that reading at the limit would not take. All are parts of a token's time.

    Attributes:
        reading: the products with weights, beyond what reading them at the limit takes; perhaps below 0
            for weights that a cache of one core still has.
        other: what threads shared without reading weights, such as attention.
        alone: one thread worked, the others had nothing to do.
        late: threads came late.
        waiting: threads waited for the last one.
        python: everything outside of C.
    """

    reading: float
    other: float
    alone: float
    late: float
    waiting: float
    python: float


@dataclass(frozen=True)
class TimeLine:
    """The time of a generated token.

    Attributes:
        microseconds: of a token, by the clock.
        n_bytes: bytes of weights that a token reads.
        read_bandwidth: the limit, in 10^9 bytes/s.
        limit: the part of the token's time in which n_bytes could be read. With what `loss` has, it
            makes 1.
        loss: where the rest goes.
        parts: in the order of pymixtral.ops.PARTS.
    """

    microseconds: float
    n_bytes: float
    read_bandwidth: float
    limit: float
    loss: Loss
    parts: tuple[PartLine, ...]


def divide_time(times: Sequence[PartTime], seconds: float, n_tokens: int, read_bandwidth: float) -> TimeLine:
    """Divide the time of tokens.

    Args:
        times: of C, as Mixtral.timed() gives them.
        seconds: by the clock, for all tokens.
        n_tokens: how many there were.
        read_bandwidth: the machine's limit, in 10^9 bytes/s.

    Returns:
        The time of one token.
    """
    parts = tuple(_line(one, seconds, n_tokens, read_bandwidth) for one in times)
    other = alone = reading = 0.0
    for one, line in zip(times, parts, strict=True):
        least = line.n_bytes * n_tokens / read_bandwidth / 1e9 / seconds
        work = _mean([thread.busy for thread in one.threads]) / seconds
        if not one.n_bytes:
            other += work
            alone += line.alone
        elif one.n_regions:
            reading += work - least
            alone += line.alone
        else:  # a small matrix, which one thread reads
            alone += line.alone - least
    n_bytes = sum(line.n_bytes for line in parts)
    loss = Loss(
        reading=reading,
        other=other,
        alone=alone,
        late=sum(line.late for line in parts),
        waiting=sum(line.waiting for line in parts),
        python=1 - sum(line.part for line in parts),
    )
    limit = n_bytes * n_tokens / read_bandwidth / 1e9 / seconds
    return TimeLine(seconds / n_tokens * 1e6, n_bytes, read_bandwidth, limit, loss, parts)


def _line(one: PartTime, seconds: float, n_tokens: int, read_bandwidth: float) -> PartLine:
    bandwidth = one.n_bytes / one.seconds / 1e9 if one.n_bytes and one.seconds else 0.0
    return PartLine(
        name=one.name,
        microseconds=one.seconds / n_tokens * 1e6,
        part=one.seconds / seconds,
        n_bytes=one.n_bytes / n_tokens,
        bandwidth=bandwidth,
        limit=bandwidth / read_bandwidth,
        alone=(one.seconds - one.shared) / seconds,
        late=_mean([thread.late for thread in one.threads]) / seconds,
        waiting=_mean([thread.waiting for thread in one.threads]) / seconds,
        busy=tuple(thread.busy / one.shared for thread in one.threads) if one.shared else (),
    )


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
