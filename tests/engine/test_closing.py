"""The end of an engine: closed, dropped, or closed while texts are generated."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pymixtral import Mixtral
from pymixtral.errors import ClosedError

PROMPT = "Once upon a time there was a king who had three daughters"


def test_a_closed_engine_raises_and_may_be_closed_again(tiny_q8_0: Path) -> None:
    engine = Mixtral(tiny_q8_0, n_ctx=64)
    stream = engine.stream(PROMPT, max_tokens=10)
    assert next(stream)
    loop = engine.core.engine._loop
    assert loop
    memory: list[weakref.ref[Any]] = [weakref.ref(loop.pages.cache.k), weakref.ref(loop._model.weights.head.data)]
    del loop
    engine.close()
    engine.close()
    gc.collect()
    assert [reference() for reference in memory] == [None, None]
    calls: list[Callable[[], object]] = [
        lambda: engine.tokenize(PROMPT),
        lambda: engine.detokenize([5]),
        lambda: engine.logits([5]),
        lambda: engine.generate(PROMPT),
        lambda: engine.stream([5]),
    ]
    for call in calls:
        with pytest.raises(ClosedError):
            call()
    with pytest.raises(ClosedError), engine:
        pass


def test_a_dropped_engine_goes_by_itself(tiny_q8_0: Path) -> None:
    engine = Mixtral(tiny_q8_0, n_ctx=64)
    engine.generate(PROMPT, max_tokens=3)
    thread, loop = engine.core.engine._thread, engine.core.engine._loop
    assert loop
    cache = weakref.ref(loop.pages.cache.k)
    del loop, engine
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()
    gc.collect()
    assert cache() is None


def test_closing_ends_the_texts_of_other_threads(tiny_q8_0: Path) -> None:
    engine = Mixtral(tiny_q8_0, n_ctx=2048, n_threads=1)
    begun = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while True:
                for _ in engine.stream(PROMPT):
                    begun.set()
        except ClosedError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    engine.close()
    for thread in threads:
        thread.join(60)
    assert len(errors) == 3


def test_progress_may_close_the_model(tiny_q8_0: Path) -> None:
    with Mixtral(tiny_q8_0, n_ctx=256, n_batch=16) as engine:
        # Long, so that the text has not ended when its reader comes to the first notice of progress.
        stream = engine.stream([5] * 100, progress=lambda *_: engine.close(), max_tokens=150, ignore_eos=True)
        with pytest.raises(ClosedError):
            list(stream)
