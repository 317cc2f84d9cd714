"""The time of a token, divided: by hand, and without a remainder whatever the numbers are."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymixtral.evaluation.time_line import divide_time
from pymixtral.ops import PartTime, ThreadTime


def test_two_parts_by_hand() -> None:
    """Two tokens in 100 s, on two threads; the machine reads 1 GB/s."""
    gate_up = PartTime("gate_up", 60.0, 50.0, 8, 20 * 10**9, (ThreadTime(0, 48, 2), ThreadTime(4, 40, 6)))
    attention = PartTime("attention", 20.0, 10.0, 8, 0, (ThreadTime(1, 9, 0), ThreadTime(1, 5, 4)))
    router = PartTime("router", 5.0, 0.0, 0, 10**9, (ThreadTime(0, 0, 0), ThreadTime(0, 0, 0)))
    line = divide_time([gate_up, attention, router], 100.0, 2, 1.0)
    assert line.microseconds == pytest.approx(50e6)
    assert line.n_bytes == 10.5e9
    assert line.limit == pytest.approx(0.21)
    assert asdict(line.loss) == pytest.approx(
        {
            "reading": 0.44 - 0.20,  # 44 s busy, where 20 s were enough
            "other": 0.07,
            "alone": 0.10 + 0.10 + 0.04,  # of the router 1 s is reading
            "late": 0.02 + 0.01,
            "waiting": 0.04 + 0.02,
            "python": 0.15,
        }
    )
    first, second, third = line.parts
    assert (first.part, first.bandwidth, first.limit) == pytest.approx((0.6, 1 / 3, 1 / 3))
    assert first.busy == pytest.approx((0.96, 0.8))
    assert (second.bandwidth, second.limit) == (0, 0)
    assert (third.bandwidth, third.busy) == (pytest.approx(0.2), ())


seconds = st.floats(0, 10)


@st.composite
def times(draw: st.DrawFn, n_threads: int) -> PartTime:
    shared = draw(seconds)
    threads = []
    for _ in range(n_threads):
        late, end = sorted([draw(st.floats(0, 1)), draw(st.floats(0, 1))])
        threads.append(ThreadTime(late * shared, (end - late) * shared, (1 - end) * shared))
    n_bytes = draw(st.integers(0, 10**12))
    return PartTime("down", shared + draw(seconds), shared, int(shared > 0), n_bytes, tuple(threads))


@given(st.integers(1, 4).flatmap(lambda n: st.lists(times(n), min_size=1, max_size=5)), seconds, st.integers(1, 9))
def test_nothing_is_left_over(parts: list[PartTime], python: float, n_tokens: int) -> None:
    total = sum(part.seconds for part in parts) + python + 1e-3
    line = divide_time(parts, total, n_tokens, 50.0)
    assert line.limit + sum(asdict(line.loss).values()) == pytest.approx(1, abs=1e-6, rel=1e-9 * (1 + line.limit))
    assert sum(part.microseconds for part in line.parts) <= line.microseconds * (1 + 1e-9)
