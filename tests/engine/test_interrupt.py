"""Ctrl-C inside the engine: it ends the computation soon, and nothing of it stays."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pymixtral import Mixtral
from pymixtral.engine.interrupt import run_beside
from pymixtral.errors import CanceledError
from pymixtral.model.kv_cache import Sequence
from pymixtral.quantize import quantize
from support.checkpoints import Shape, make_checkpoint

PROMPT = "Once upon a time there was a king who had three daughters"


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixtral]:
    """A model whose attention takes half a minute and more for its whole context, in one C call
    after the other.
    """
    directory = tmp_path_factory.mktemp("slow")
    make_checkpoint(directory / "slow", Shape(n_heads=16, n_kv_heads=1, n_ctx=1 << 16), seed=1)
    quantize(directory / "slow", directory / "slow.gguf", "q8_0", progress=False)
    with Mixtral(directory / "slow.gguf", n_ctx=1 << 16, n_batch=1 << 16, n_threads=1) as engine:
        yield engine


def interrupt_after(seconds: float, times: int = 1) -> threading.Thread:
    def work() -> None:
        for _ in range(times):
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_an_interrupt_ends_a_long_prompt_within_a_second_and_the_engine_goes_on(slow: Mixtral) -> None:
    short = slow.generate(PROMPT, max_tokens=5, temperature=0).tokens
    prompt = [1] + [300] * 60_000
    for call in (slow.logits, slow.generate):
        thread = interrupt_after(0.5)
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            call(prompt)
        assert 0.4 < time.monotonic() - begin < 1.5
        thread.join()
        assert slow.generate(PROMPT, max_tokens=5, temperature=0).tokens == short


@pytest.fixture
def engine(tiny_q8_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0, n_ctx=256) as engine:
        yield engine


@pytest.mark.parametrize("method", ["reserve", "truncate", "advance"])
def test_an_interrupt_inside_the_caches_bookkeeping_costs_nothing(
    engine: Mixtral, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [*engine.tokenize(PROMPT), *range(300, 400)]
    expected = engine.logits(ids)
    whole = getattr(Sequence, method)

    def half(sequence: Sequence, n: int) -> None:
        pages, length = sequence.pages, sequence.length
        whole(sequence, n)
        if method == "reserve":
            sequence.pages = pages  # taken, not yet in the list
        if method == "truncate":
            sequence.length = length  # given back, still counted
        raise KeyboardInterrupt

    engine.logits(ids[:70], last_only=True)
    with monkeypatch.context() as patch:
        patch.setattr(Sequence, method, half)
        with pytest.raises(KeyboardInterrupt):
            engine.logits([*ids[:20], 5, *ids[20:]], last_only=True)
    assert (engine.logits(ids, last_only=True) == expected[-1]).all()
    assert (engine.logits([1] * engine.n_ctx).shape) == (engine.n_ctx, 4096)


def test_a_call_beside_returns_or_raises_what_it_would_here() -> None:
    assert run_beside(lambda: 5, lambda: None) == 5
    with pytest.raises(ZeroDivisionError):
        run_beside(lambda: 1 // 0, lambda: None)
    assert run_beside(threading.get_ident, lambda: None) != threading.get_ident()


def test_an_interrupt_waits_until_the_call_has_ended_however_impatient() -> None:
    canceled, ended = threading.Event(), threading.Event()

    def call() -> None:
        canceled.wait(20)
        time.sleep(0.3)  # more interrupts come here
        ended.set()
        raise CanceledError("canceled")

    thread = interrupt_after(0.1, times=3)
    with pytest.raises(KeyboardInterrupt):
        run_beside(call, canceled.set)
    assert ended.is_set()
    thread.join()
