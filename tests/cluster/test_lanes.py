"""A pipeline in one process: the same bits as a model alone, whatever the micro-batches do."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pymixtral import AsyncMixtral, HostLostError, Mixtral
from pymixtral.cluster.lanes import Lanes
from pymixtral.cluster.messages import Copied, Done, Rotated, Work
from pymixtral.cluster.pipeline import PipelinedMixtral
from pymixtral.cluster.pipelined_model import PipelinedModel
from pymixtral.cluster.stages import Stage, StagePlan
from pymixtral.engine.stats import EngineStats
from pymixtral.errors import (
    CanceledError,
    ClosedError,
    DeadlineError,
    InvalidArgumentError,
    ModelFileError,
    NativeError,
    NonFiniteError,
    UnsupportedError,
)
from pymixtral.model.forward import Model
from pymixtral.model.kv_cache import Sequence
from support.local_stages import LocalChain, open_local
from support.texts import lone, same

PROMPT = "Once upon a time there was a king who had three daughters"


@pytest.fixture(scope="module")
def model(tiny_q8_0: Path) -> Iterator[PipelinedMixtral]:
    """Three stages, with room for so few pages that texts give way to others."""
    with open_local(tiny_q8_0, 3, n_ctx=256, n_threads=1, cache_bytes=pages(tiny_q8_0, 3 * 8)) as model:
        yield model


def pages(path: Path, n: int) -> int:
    with Mixtral(path, n_ctx=64, n_threads=1) as model:
        c = model.config
        return n * 64 * 4 * c.n_layers * c.n_kv_heads * c.head_dim


def chain(model: PipelinedMixtral) -> LocalChain:
    found = model.chain
    assert isinstance(found, LocalChain)
    return found


# --- The same bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("n_pages", [5, 100])
@pytest.mark.parametrize("seed", range(4))
def test_texts_are_those_of_one_process(tiny_q8_0: Path, alone: Mixtral, seed: int, n_pages: int) -> None:
    """Ragged batches, common beginnings, and too few pages for all, or full contexts that are shifted."""
    choose, shifts = random.Random(seed), n_pages == 100
    lengths = (1, 200) if shifts else (100, 120)  # two texts of 2 pages each soon need 6
    wanted: list[tuple[Any, dict[str, Any]]] = []
    for i in range(12):
        prompt = [1, *(300 + (j * 7 + choose.choice((0, 0, 0, i))) % 900 for j in range(choose.randrange(*lengths)))]
        options: dict[str, Any] = {"seed": i, "max_tokens": choose.randrange(40, 70), "logprobs": 1}
        options |= {"ignore_eos": not shifts}
        if shifts and choose.random() < 0.5:
            options |= {"context_shift": choose.choice((0, 64)), "max_tokens": 250, "ignore_eos": True}
        if choose.random() < 0.3:
            options |= {"prompt_logprobs": 0}
        if choose.random() < 0.3:
            options |= {"prompt_lookup": 3, "temperature": 0}
        wanted.append((prompt, options))
    cache_bytes = pages(tiny_q8_0, 3 * n_pages)
    with open_local(tiny_q8_0, 3, n_ctx=256, n_threads=1, cache_bytes=cache_bytes, max_batch=24) as model:
        streams = [model.stream(prompt, **options) for prompt, options in wanted]
        for stream, (prompt, options) in zip(streams, wanted, strict=True):
            list(stream)
            assert stream.completion
            same(stream.completion, lone(alone, prompt, **options))
        assert shifts or model.stats().preempted > 0
        kinds = {type(change) for work in chain(model).work for change in work.changes}
        assert kinds == ({Copied, Rotated} if shifts else {Copied})


def test_forks_and_choices(model: PipelinedMixtral, alone: Mixtral) -> None:
    found = model.generate(PROMPT, n=4, seed=3, max_tokens=12, routing=True)
    expected = lone(alone, PROMPT, n=4, seed=3, max_tokens=12, routing=True)
    for a, b in zip(found.choices, expected.choices, strict=True):
        same(a, b)
        assert a.routing is not None
        assert b.routing is not None
        assert np.array_equal(a.routing.experts, b.routing.experts)
        assert np.array_equal(a.routing.weights, b.routing.weights)
    for full in (False, True):
        a, b = model.routing(PROMPT, full=full), alone.routing(PROMPT, full=full)
        assert np.array_equal(a.experts, b.experts)
        assert np.array_equal(a.weights, b.weights)


def test_numbers(model: PipelinedMixtral, alone: Mixtral) -> None:
    assert np.array_equal(model.logits([1, 5, 300]), alone.logits([1, 5, 300]))
    assert np.array_equal(model.embed([PROMPT, "x"]), alone.embed([PROMPT, "x"]))
    scores = model.score(PROMPT, [" and", " of the"])
    assert [one.tokens for one in scores] == [one.tokens for one in alone.score(PROMPT, [" and", " of the"])]


@pytest.mark.parametrize("kv_type", ["f16", "f32", "q8_0"])
def test_sessions_have_the_pages_of_all_stages(tiny_q8_0: Path, tmp_path: Path, kv_type: str) -> None:
    ids, options = [1, *range(300, 400)], {"n_ctx": 256, "n_threads": 1, "kv_type": kv_type}
    with Mixtral(tiny_q8_0, **options) as alone, open_local(tiny_q8_0, 2, **options) as model:
        model.save_session(tmp_path / "a", ids)
        alone.save_session(tmp_path / "b", ids)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        model.forget()
        assert model.load_session(tmp_path / "b") == ids
        found = model.generate([*ids, 7], max_tokens=9, seed=1)
        assert found.stats.cached_tokens == len(ids)
        same(found, lone(alone, [*ids, 7], max_tokens=9, seed=1))


@pytest.mark.parametrize("options", [{"experts_used": [2, 1, 2, 1]}, {"experts_used": 1}, {"activations": "int16"}])
def test_options_that_change_the_computation(tiny_q8_0: Path, options: dict[str, Any]) -> None:
    with (
        Mixtral(tiny_q8_0, n_ctx=128, n_threads=1, **options) as alone,
        open_local(tiny_q8_0, 2, n_ctx=128, n_threads=1, **options) as model,
    ):
        same(
            model.generate(PROMPT, seed=1, max_tokens=20, logprobs=3),
            alone.generate(PROMPT, seed=1, max_tokens=20, logprobs=3),
        )


def test_a_cut_of_any_number_of_layers(tiny_q8_0: Path, alone: Mixtral) -> None:
    for n in (2, 4):
        with open_local(tiny_q8_0, n, n_ctx=256, n_threads=1, micro_batches=1) as model:
            assert [i for part in model.stage_layers for i in part] == list(range(4))
            same(model.generate(PROMPT, seed=1, max_tokens=9), lone(alone, PROMPT, seed=1, max_tokens=9))


# --- Micro-batches --------------------------------------------------------------------------------


def test_micro_batches_are_in_the_stages_at_the_same_time(model: PipelinedMixtral) -> None:
    """The first of two that meet in the chain waits there for the other."""
    at_once, wait, run = threading.Barrier(2), threading.Event(), chain(model).run

    def meeting(lane: int, work: Work, before: Any) -> Any:
        if not wait.is_set():
            at_once.wait(60)
            wait.set()
        return run(lane, work, before)

    chain(model).run = meeting  # type: ignore[method-assign]
    try:
        model.generate(["One", "Two"], max_tokens=3)
    finally:
        chain(model).run = run  # type: ignore[method-assign]
    assert wait.is_set()


def test_a_text_goes_where_its_beginning_is_cached(model: PipelinedMixtral) -> None:
    prompts = [[1, *range(300 + 100 * i, 390 + 100 * i)] for i in range(3)]
    model.forget()
    model.generate(prompts, max_tokens=1)
    for prompt in prompts:
        assert model.generate([*prompt, 9], max_tokens=1).stats.cached_tokens == len(prompt)


def test_a_beginning_that_many_texts_have_fills_no_micro_batch(model: PipelinedMixtral) -> None:
    before = len(chain(model).lanes)
    model.generate([[1, *range(300, 390), 500 + i] for i in range(18)], max_tokens=1)
    assert set(chain(model).lanes[before:]) == {0, 1, 2}


def test_statistics_are_of_all(model: PipelinedMixtral) -> None:
    before = model.stats()
    model.generate(["a", "b", "c"], max_tokens=5, ignore_eos=True)
    after = model.stats()
    assert after.generated_tokens - before.generated_tokens == 15
    assert after.finished - before.finished == 3
    assert after.pages == 3 * 8
    assert (after.waiting, after.prefilling, after.decoding) == (0, 0, 0)


def test_means_of_several_engines_are_over_their_passes() -> None:
    nothing = EngineStats.together(())
    some = [replace(nothing, passes=n, batch_size=size, experts_read=2 * size) for n, size in ((1, 4.0), (3, 2.0))]
    assert EngineStats.together(some) == replace(nothing, passes=4, batch_size=2.5, experts_read=5.0)
    assert nothing.batch_size == 0


def test_what_ends_early(model: PipelinedMixtral, alone: Mixtral) -> None:
    stream = model.stream(PROMPT, max_tokens=10_000, context_shift=0, ignore_eos=True)
    next(stream)
    stream.cancel()
    list(stream)
    assert stream.finish_reason == "cancelled"
    late = model.generate(PROMPT, max_tokens=100_000, context_shift=0, ignore_eos=True, timeout=0.05)
    assert late.finish_reason == "deadline"
    with pytest.raises(DeadlineError):
        model.logits([1, 2, 3], timeout=1e-9)
    dropped = model.stream(PROMPT, max_tokens=100_000, context_shift=0, ignore_eos=True)
    next(dropped)
    del dropped
    same(model.generate(PROMPT, seed=1, max_tokens=9), lone(alone, PROMPT, seed=1, max_tokens=9))


def test_a_pass_in_another_stage_is_cancelled(tiny_q8_0: Path) -> None:
    """Each stage waits, with the pass, until it is told."""
    with open_local(tiny_q8_0, 2, n_ctx=256, n_threads=1, micro_batches=1) as model:
        inside, told = threading.Event(), threading.Event()
        stage = chain(model).stages[0]
        cancel, begin = stage.cancel, stage._begin

        def beginning(*arguments: Any) -> None:
            begin(*arguments)
            inside.set()
            assert told.wait(60)

        def cancelling(*arguments: Any) -> None:
            cancel(*arguments)
            told.set()

        stage._begin, stage.cancel = beginning, cancelling  # type: ignore[method-assign]
        stream = model.stream(PROMPT)
        assert inside.wait(60)
        stream.cancel()
        list(stream)
        assert stream.finish_reason == "cancelled"
        stage._begin, stage.cancel = begin, cancel  # type: ignore[method-assign]
        model.generate(PROMPT, max_tokens=1)


def test_work_is_cancelled_by_its_number(tiny_q8_0: Path, model: PipelinedMixtral) -> None:
    stage = Stage(plan(tiny_q8_0, model))
    rows, begin = np.ones((3, model.config.hidden), np.float32), stage._begin

    def error(number: int) -> Exception | None:
        return stage.run(0, Work(number, runs=[(3, 0, np.zeros(1, np.int32))]), Done(rows)).error

    stage.cancel(0, 2)  # before the work comes
    assert [type(error(number)) for number in (1, 2, 3)] == [CanceledError, CanceledError, type(None)]
    for late, expected in ((1, type(None)), (0, CanceledError)):  # while it is computed

        def beginning(mine: Any, number: int, late: int = late) -> None:
            begin(mine, number)
            stage.cancel(0, number - late)

        stage._begin = beginning  # type: ignore[method-assign]
        assert type(error(7 - late)) is expected
    stage.close()


def test_tasks(model: PipelinedMixtral, alone: Mixtral) -> None:
    async def ask() -> list[Any]:
        shared = AsyncMixtral(model)
        return await asyncio.gather(*(shared.generate(PROMPT, seed=i, max_tokens=9) for i in range(6)))

    for i, found in enumerate(asyncio.run(ask())):
        same(found, lone(alone, PROMPT, seed=i, max_tokens=9))


# --- Losses ---------------------------------------------------------------------------------------


def test_a_lost_host_ends_its_texts_and_comes_back(tiny_q8_0: Path, alone: Mixtral) -> None:
    with open_local(tiny_q8_0, 3, n_ctx=256, n_threads=1) as model:
        endless = {"max_tokens": 100_000, "context_shift": 0, "ignore_eos": True}
        cached = model.generate([1, *range(300, 400)], max_tokens=1, seed=1)
        streams = [model.stream(PROMPT, seed=i, **endless) for i in range(5)]
        for stream in streams:
            next(stream)
        first, before = chain(model), model.stats()
        first.lose()
        for stream in streams:
            with pytest.raises(HostLostError, match="expected all hosts"):
                list(stream)
        assert chain(model) is not first
        again = model.generate([1, *range(300, 400)], max_tokens=1, seed=1)
        same(again, cached)
        assert again.stats.cached_tokens == 0
        same(model.generate(PROMPT, seed=1, max_tokens=9), lone(alone, PROMPT, seed=1, max_tokens=9))
        after = model.stats()
        assert after.generated_tokens >= before.generated_tokens + 10
        assert after.finished >= before.finished + 7
        assert (after.waiting, after.prefilling, after.decoding) == (0, 0, 0)


def test_a_loss_that_a_pass_meets_first(tiny_q8_0: Path) -> None:
    """Texts of one pass are not tried alone: their keys and values are gone."""
    with open_local(tiny_q8_0, 2, n_ctx=256, n_threads=1, micro_batches=1) as model:
        streams = [model.stream(PROMPT, seed=i, max_tokens=100_000, context_shift=0) for i in range(3)]
        for stream in streams:
            next(stream)
        here = chain(model)
        here._error = HostLostError("expected all hosts, found that one is gone: ask again")
        tried = len(here.work)
        for stream in streams:
            with pytest.raises(HostLostError):
                list(stream)
        with pytest.raises(HostLostError, match="one is gone"):
            model.generate(PROMPT)
        assert len(here.work) <= tried + 1
        here.lose()  # its own thread notices it, too
        assert model.generate(PROMPT, max_tokens=2).tokens


def test_a_loss_that_lasts_keeps_no_frames_of_its_callers(tiny_q8_0: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_local(tiny_q8_0, 2, n_ctx=256, n_threads=1) as model:
        lanes, tried = model.core.engine, threading.Event()
        assert isinstance(lanes, Lanes)

        def failing(*_: Any) -> None:
            tried.set()
            raise NativeError("expected memory, found none: end other programs")

        monkeypatch.setattr(lanes, "_begin", failing)
        thread = threading.Thread(target=lanes._replace, args=(lanes.chain, HostLostError("expected all hosts")))
        thread.start()
        assert tried.wait(60)
        for _ in range(3):
            with pytest.raises((HostLostError, NativeError)):
                model.generate(PROMPT)
        assert lanes._lost is not None
        assert len(traceback.extract_tb(lanes._lost.__traceback__)) <= 3
    thread.join(60)
    assert not thread.is_alive()


def test_nobody_waits_for_a_model_that_is_closed(tiny_q8_0: Path) -> None:
    model = open_local(tiny_q8_0, 2, n_ctx=256, n_threads=1)
    stream = model.stream(PROMPT, max_tokens=100_000, context_shift=0)
    next(stream)
    model.close()
    with pytest.raises(ClosedError):
        list(stream)
    for call in (lambda: model.generate(PROMPT), model.stats, model.forget, lambda: model.chain):
        with pytest.raises(ClosedError):
            call()
    model.close()


def test_a_model_that_nobody_has_any_more_ends(tiny_q8_0: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = threading.Event()
    monkeypatch.setattr(LocalChain, "close", lambda _: closed.set())
    model = open_local(tiny_q8_0, 2, n_ctx=256, n_threads=1)
    model.generate(PROMPT, max_tokens=2)
    assert isinstance(model.core.engine, Lanes)
    threads = [engine._thread for engine in model.core.engine._engines]
    del model
    gc.collect()
    assert closed.wait(60)
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"adapters": {"a": "a.gguf"}}, {"adapter": "a"}])
def test_adapters_are_refused(tiny_q8_0: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="expected a pipeline without adapters, found some"):
        open_local(tiny_q8_0, 2, **options)


def test_what_needs_one_process_is_refused(model: PipelinedMixtral) -> None:
    with pytest.raises(UnsupportedError, match="without adapters"):
        model.load_adapter("a", "a.gguf")
    with pytest.raises(UnsupportedError, match="calibration"):
        model.observe([1, 2, 3], model.observers())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_stages": 5}, "expected 1 to 4 hosts for a model of 4 layers, found 5"),
        ({"n_stages": 1}, "n_stages"),
        ({"micro_batches": 0}, "micro_batches"),
        ({"micro_batches": 17}, "micro_batches"),
        ({"cache_bytes": 4 * 64 * 256}, "one context of 256 tokens in each of 2 caches"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_arguments_out_of_range(tiny_q8_0: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        open_local(tiny_q8_0, **{"n_stages": 2, "n_ctx": 256, **options})


def plan(path: Path, model: PipelinedMixtral) -> StagePlan:
    return StagePlan(str(path), model.core.file.digest(), model.config, range(2, 4), 1, 4, "f16", n_threads=1)


def test_another_file_is_refused(tiny_q8_0: Path, tiny_q4_0: Path, model: PipelinedMixtral) -> None:
    with pytest.raises(ModelFileError, match="expected the same file on all hosts, found another one"):
        Stage(plan(tiny_q4_0, model))
    with pytest.raises(ModelFileError):
        Stage(plan(tiny_q8_0.with_name("missing.gguf"), model))


def test_too_little_memory_for_a_stage(
    tiny_q8_0: Path, model: PipelinedMixtral, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pymixtral.cluster import stages
    from pymixtral.inspection.machine import Memory

    monkeypatch.setattr(stages, "memory", lambda: Memory(1 << 40, 1000, None, None))
    with pytest.raises(NativeError, match="keys and values of layers 2 to 3"):
        Stage(replace(plan(tiny_q8_0, model), n_pages=64))


# --- What fails in a stage ------------------------------------------------------------------------


def test_an_error_of_a_later_stage_ends_one_text(
    model: PipelinedMixtral, alone: Mixtral, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Model.forward

    def failing(self: Model, inputs: Any, runs: Any, cache: Any, **options: Any) -> Any:
        if inputs.dtype.kind == "f" and any(sequence.length + n > 100 for sequence, n in runs):
            raise NonFiniteError("expected finite numbers, found others", 0)
        return forward(self, inputs, runs, cache, **options)

    monkeypatch.setattr(Model, "forward", failing)
    streams = [model.stream([1, *range(300, 300 + n)], seed=1, max_tokens=5) for n in (20, 120, 30, 40, 50)]
    for stream, n in zip(streams, (20, 120, 30, 40, 50), strict=True):
        if n == 120:
            with pytest.raises(NonFiniteError):
                list(stream)
        else:
            list(stream)
            assert stream.completion
            same(stream.completion, lone(alone, [1, *range(300, 300 + n)], seed=1, max_tokens=5))


def test_a_pass_that_fails_in_a_later_stage_leaves_its_texts_as_they_were(
    model: PipelinedMixtral, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = Done(error=NonFiniteError("expected finite numbers, found others"))

    def compute(pipelined: Model) -> int:
        assert isinstance(pipelined, PipelinedModel)
        assert pipelined._cache is not None
        sequence = Sequence(pipelined._cache)
        with pytest.raises(NonFiniteError):
            pipelined.forward(np.array([1, 2, 3], np.int32), [(sequence, 3)], pipelined._cache)
        length = sequence.length
        sequence.free()
        return length

    model.forget()  # so that there are free pages
    with monkeypatch.context() as patch:
        patch.setattr(chain(model), "run", lambda *_: failed)
        assert model.core.engine.call(compute) == 0


def test_a_rotation_that_fails_in_a_later_stage_ends_its_text_alone(
    model: PipelinedMixtral, alone: Mixtral, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pymixtral.cluster.mirrors import Mirror

    def failing(*_: Any) -> None:
        raise NonFiniteError("expected finite numbers, found others")

    monkeypatch.setattr(Mirror, "rotate", failing)
    shifted = model.stream([1, *range(300, 500)], max_tokens=500, context_shift=0, ignore_eos=True)
    other = model.generate(PROMPT, seed=2, max_tokens=200, ignore_eos=True)
    with pytest.raises(NonFiniteError):
        list(shifted)
    same(other, lone(alone, PROMPT, seed=2, max_tokens=200, ignore_eos=True))
