"""Who waits longest is next."""

from __future__ import annotations

import threading

from pymixtral.cluster.turns import Turns


def test_threads_come_in_the_order_in_which_they_ask() -> None:
    turns, order, threads = Turns(), list[int](), []
    with turns:
        for i in range(8):

            def take(i: int = i) -> None:
                with turns:
                    order.append(i)

            thread = threading.Thread(target=take)
            thread.start()
            while len(turns._waiting) <= i:
                thread.join(0.001)
            threads.append(thread)
        assert not order
    for thread in threads:
        thread.join(60)
    assert order == list(range(8))


def test_one_at_a_time() -> None:
    turns, inside, most = Turns(), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(300):
            with turns:
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (inside, most) == (0, 1)
    with turns:  # it is free afterwards
        pass
