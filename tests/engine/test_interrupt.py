"""Whatever strikes a caller, by a signal or otherwise, ends its request soon and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pymixtral import Mixtral
from pymixtral.errors import ClosedError, NativeError
from pymixtral.model.kv_cache import Sequence

PROMPT = "Once upon a time there was a king who had three daughters"


@pytest.fixture(scope="module")
def slow(endless: Path) -> Iterator[Mixtral]:
    with Mixtral(endless, n_ctx=1 << 16, n_batch=1 << 16, n_threads=1) as engine:
        yield engine


LONG = [1] + [300] * 60_000


def interrupt_after(seconds: float, times: int = 1) -> threading.Thread:
    def work() -> None:
        for _ in range(times):
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def computing(model: Mixtral) -> bool:
    loop = model.core.engine._loop
    return loop is not None and bool(loop.watch._current)


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_an_interrupt_ends_a_long_prompt_and_the_engine_goes_on(slow: Mixtral) -> None:
    short = slow.generate(PROMPT, max_tokens=5, temperature=0).tokens
    for call in (slow.logits, slow.generate):
        thread = interrupt_after(0.5)
        with pytest.raises(KeyboardInterrupt):
            call(LONG)  # type: ignore[operator]
        thread.join()
        assert slow.generate(PROMPT, max_tokens=5, temperature=0).tokens == short


@pytest.mark.parametrize("end", ["cancel", "close", "drop"])
def test_a_stream_may_be_ended_from_another_thread_while_its_prompt_is_computed(slow: Mixtral, end: str) -> None:
    passes = slow.stats().passes
    stream = slow.stream(LONG)
    wait_until(lambda: computing(slow))
    if end == "drop":
        del stream
    else:
        thread = threading.Thread(target=getattr(stream, end))
        thread.start()
        assert list(stream) == []
        thread.join()
        assert stream.finish_reason == ("cancelled" if end == "cancel" else None)
    wait_until(lambda: not computing(slow))
    stats = slow.stats()
    assert (stats.prefilling, stats.decoding, stats.passes) == (0, 0, passes)  # nothing was computed to its end
    assert slow.generate(PROMPT, max_tokens=2).tokens


def test_a_deadline_ends_a_text_in_the_middle_of_its_prompt(slow: Mixtral) -> None:
    completion = slow.generate(LONG, timeout=0.3)
    assert (completion.finish_reason, completion.tokens) == ("deadline", [])
    assert slow.generate(PROMPT, max_tokens=2).finish_reason == "length"


def test_a_request_that_waits_never_begins_once_it_is_cancelled(slow: Mixtral) -> None:
    with slow_single(slow) as model:
        first = model.stream(LONG)
        wait_until(lambda: computing(model))
        second = model.stream(PROMPT, max_tokens=3)
        second.cancel()
        first.cancel()
        assert list(second) == []
        assert second.finish_reason == "cancelled"
        assert model.stats().passes == 0


def slow_single(slow: Mixtral) -> Mixtral:
    return Mixtral(slow.path, n_ctx=1 << 16, n_batch=1 << 16, n_threads=1, max_batch=1)


def test_closing_does_not_wait_for_a_prompt(slow: Mixtral) -> None:
    model = slow_single(slow)
    stream = model.stream(LONG)
    wait_until(lambda: computing(model))
    model.close()
    assert stream.stats.prompt_seconds == 0  # its pass did not end
    with pytest.raises(Exception, match="closed"):
        next(stream)


def test_an_interrupt_ends_a_calibration_although_its_traceback_is_kept(slow: Mixtral) -> None:
    observers = slow.observers()
    thread = interrupt_after(0.5)
    with pytest.raises(KeyboardInterrupt) as kept:
        slow.observe(LONG, observers)
    thread.join()
    wait_until(lambda: not computing(slow))
    assert observers[-1].n_tokens.sum() == 0  # the pass did not come to its end
    assert slow.generate(PROMPT, max_tokens=2).tokens
    assert kept.tb


@pytest.mark.parametrize("call", ["generate", "next"])
def test_an_interrupt_ends_a_text_although_its_traceback_and_stream_are_kept(slow: Mixtral, call: str) -> None:
    passes = slow.stats().passes
    stream = slow.stream(LONG) if call == "next" else None
    thread = interrupt_after(0.5)
    with pytest.raises(KeyboardInterrupt) as kept:
        next(stream) if stream else slow.generate(LONG)
    thread.join()
    wait_until(lambda: not slow.stats().prefilling)
    assert slow.stats().passes == passes
    assert kept.tb


def test_a_second_close_waits_for_what_the_first_one_waits_for(tiny_q8_0: Path) -> None:
    model = Mixtral(tiny_q8_0, n_ctx=64)
    begun, go_on = threading.Event(), threading.Event()

    def waits(*_: object) -> None:
        begun.set()
        assert go_on.wait(60)

    stream = model.stream(PROMPT, max_tokens=3, logits_processor=waits)
    assert begun.wait(60)
    threads = [threading.Thread(target=model.close) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(0.2)
        assert thread.is_alive()  # the pass may still read the weights
    go_on.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    with pytest.raises(ClosedError):
        list(stream)


@pytest.fixture
def engine(tiny_q8_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0, n_ctx=256) as engine:
        yield engine


@pytest.mark.parametrize("method", ["reserve", "truncate", "advance"])
def test_an_exception_in_the_caches_bookkeeping_ends_one_request(
    engine: Mixtral, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [*engine.tokenize(PROMPT), *range(300, 400)]
    expected = engine.logits(ids)
    whole = getattr(Sequence, method)

    def fails(sequence: Sequence, n: int) -> None:
        if len(sequence.pages):
            raise MemoryError("no memory")
        whole(sequence, n)

    with monkeypatch.context() as patch:
        patch.setattr(Sequence, method, fails)
        if method == "reserve":  # the prefix is in the cache, so it has pages
            with pytest.raises(
                NativeError, match=r"memory for the next tokens of a text of 71, found too little \(no "
            ):
                engine.logits([*ids[:70], 5], last_only=True)
    assert (engine.logits(ids, last_only=True) == expected[-1]).all()
    assert engine.stats().used_pages == 0
    assert (engine.logits([1] * engine.n_ctx).shape) == (engine.n_ctx, 4096)


STORM = """
import os, signal, subprocess, sys
from pymixtral import Mixtral

class Struck(Exception):
    pass

left = struck = 0

def strike(_, frame):
    "Raises in the library only, a few times in a row."
    global left, struck
    while frame and "pymixtral" not in frame.f_code.co_filename:
        frame = frame.f_back
    if frame and left:
        left -= 1
        struck += 1
        raise Struck

kind, path = sys.argv[1:]
model = Mixtral(path, n_ctx=1 << 16, n_batch=4096, n_threads=2)
short = model.generate("Once upon a time", max_tokens=5, temperature=0).tokens
signals = {"alarm": ["ALRM"], "term": ["TERM", "HUP"], "int": ["INT"]}[kind]
for name in signals:
    signal.signal(getattr(signal, "SIG" + name), strike)
sender = subprocess.Popen(["sh", "-c", "while kill -0 $1; do for s in $2; do kill -$s $1; done; sleep 0.002; done",
                           "sh", str(os.getpid()), " ".join(signals)],
                          stderr=subprocess.DEVNULL, env={"PATH": os.defpath})
for i in range(40):
    left = 1 + i % 4
    while left:
        try:
            model.generate([1] + [300 + i] * 60_000)
        except Struck:
            pass
    assert model.generate("Once upon a time", max_tokens=5, temperature=0).tokens == short
sender.kill()
assert struck == 100
model.close()
print("held")
"""


@pytest.mark.parametrize("kind", ["alarm", "term", "int"])
def test_a_storm_of_signals_leaves_the_engine_whole(kind: str, endless: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", STORM, kind, endless], capture_output=True, text=True, timeout=300, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "held\n", "")


FORK = """
import os, sys, threading
from pymixtral import ClosedError, Mixtral

model = Mixtral(n_threads=2)
stream = model.stream("Once upon a time", max_tokens=1500, ignore_eos=True)
next(stream)
child = os.fork()
if not child:
    for call in (lambda: next(stream), lambda: model.generate("a"), lambda: model.stats(), lambda: model.stream("a")):
        try:
            call()
        except ClosedError as error:
            assert "open the model after the fork" in str(error), error
        else:
            raise AssertionError
    stream.cancel()
    model.close()
    with Mixtral(n_threads=1) as own:
        assert own.generate("The king", max_tokens=3).tokens
    sys.exit(7)
text = "".join(stream)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert len(stream.tokens) == 1500
print("held")
"""

EXIT = """
import sys, threading
from pymixtral import Mixtral

model = Mixtral(n_threads=2)
stream = model.stream("Once upon a time", ignore_eos=True)
next(stream)
reads = threading.Event()

def read():
    for _ in model.stream("The king", ignore_eos=True):
        reads.set()

threading.Thread(target=read, daemon=True).start()
reads.wait()
if sys.argv[1] == "error":
    raise SystemExit(5)
"""


def test_a_forked_process_is_told_to_open_its_own_model() -> None:
    # Python 3.12 and later warn of a fork beside threads.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "held\n", "")


@pytest.mark.parametrize(("how", "status"), [("end", 0), ("error", 5)])
def test_a_program_may_end_while_texts_are_generated(how: str, status: int) -> None:
    run = subprocess.run([sys.executable, "-c", EXIT, how], capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (status, "", "")


def test_a_thread_that_cannot_start_is_an_error(tiny_q8_0: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(NativeError, match="further thread"):
        Mixtral(tiny_q8_0)
