"""What a model measures of itself: blocks that are timed, side by side and one inside the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from pymixtral import Mixtral, ops
from pymixtral.errors import ClosedError, InvalidArgumentError
from pymixtral.model.forward import Model


@pytest.fixture
def model() -> Iterator[Mixtral]:
    with Mixtral(n_ctx=64, n_threads=2) as opened:
        yield opened


def one_token(model: Mixtral) -> None:
    model.logits([1], last_only=True)


def n_heads(model: Mixtral, parts: list[ops.PartTime]) -> float:
    """How often the output matrix was read."""
    n_bytes: int = model.core.engine.call(lambda inner: inner.weights.head.data.nbytes)
    return parts[ops.PARTS.index("head")].n_bytes / n_bytes


def is_timed(model: Mixtral) -> bool:
    def stopped(inner: Model) -> bool:
        try:
            ops.stop_timing(inner.context)
        except InvalidArgumentError:
            return False
        return True

    return model.core.engine.call(stopped)


def test_a_block_inside_another_leaves_it_its_time(model: Mixtral) -> None:
    with model.timed() as outer:
        one_token(model)
        with model.timed() as inner:
            one_token(model)
        one_token(model)
    one_token(model)
    assert (n_heads(model, inner), n_heads(model, outer)) == (1, 3)
    for within, whole in zip(inner, outer, strict=True):
        assert 0 <= within.seconds <= whole.seconds
        assert 0 <= within.shared <= within.seconds + 1e-9
        for thread in within.threads:
            assert thread.late + thread.busy + thread.waiting == pytest.approx(within.shared, abs=1e-9)


def test_blocks_that_end_in_another_order(model: Mixtral) -> None:
    first, second = ExitStack(), ExitStack()
    early = first.enter_context(model.timed())
    one_token(model)
    late = second.enter_context(model.timed())
    one_token(model)
    first.close()
    one_token(model)
    second.close()
    assert (n_heads(model, early), n_heads(model, late)) == (2, 2)


def test_blocks_of_several_threads(model: Mixtral) -> None:
    found: list[list[ops.PartTime]] = []

    def work() -> None:
        for _ in range(5):
            with model.timed() as parts:
                one_token(model)
            found.append(parts)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 15
    assert all(parts[ops.PARTS.index("head")].n_bytes > 0 for parts in found)
    assert not is_timed(model)


def test_what_a_block_raises_leaves_it(model: Mixtral) -> None:
    def work(outer: list[ops.PartTime]) -> None:
        with model.timed():
            one_token(model)
        assert not outer
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), model.timed() as parts:
        work(parts)
    assert n_heads(model, parts) == 1


def test_a_closed_model_is_named(model: Mixtral) -> None:
    model.close()
    with pytest.raises(ClosedError), model.timed():
        pass


def test_an_interrupt_at_the_begin_leaves_nothing_on(model: Mixtral, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the engine is asked: before it is, and after it has begun."""
    genuine = model.core.engine.call
    for asked in (False, True):

        def call(ask: Callable[[Model], Any], asked: bool = asked) -> Any:
            monkeypatch.setattr(model.core.engine, "call", genuine)
            if asked:
                genuine(ask)
            raise KeyboardInterrupt

        monkeypatch.setattr(model.core.engine, "call", call)
        with pytest.raises(KeyboardInterrupt), model.timed():
            pass
        assert not is_timed(model)
    with model.timed() as parts:
        one_token(model)
    assert n_heads(model, parts) == 1
