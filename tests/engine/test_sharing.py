"""Many callers at once: each gets, to the bit, what it would get alone."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pymixtral import Mixtral
from pymixtral.errors import (
    ClosedError,
    ContextLengthError,
    DeadlineError,
    InvalidArgumentError,
    NativeError,
    NonFiniteError,
)
from support.texts import lone, same

PROMPT = "Once upon a time there was a king who had three daughters"


@pytest.fixture(scope="module")
def model(tiny_q8_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0, n_ctx=512, n_threads=2) as model:
        yield model


@pytest.fixture(scope="module")
def alone(tiny_q8_0: Path) -> Iterator[Mixtral]:
    """A model that computes one text at a time, without a cache of earlier ones."""
    with Mixtral(tiny_q8_0, n_ctx=512, n_threads=1, max_batch=1) as model:
        yield model


def prompt_logprobs(model: Mixtral, ids: list[int]) -> list[Any]:
    found = model.generate(ids, max_tokens=1, prompt_logprobs=0).prompt_logprobs
    assert found
    return found


def test_a_list_of_prompts_is_one_batch(model: Mixtral, alone: Mixtral) -> None:
    prompts = [PROMPT[:n] for n in (1, 9, 20, 33)] + [PROMPT * 12]
    options: dict[str, Any] = {"max_tokens": 20, "seed": 5, "logprobs": 2, "prompt_logprobs": 1}
    before = model.stats().passes
    for completion, prompt in zip(model.generate(prompts, **options), prompts, strict=True):
        same(completion, lone(alone, prompt, **options))
    assert model.stats().passes - before < 40  # one after the other they take 100


def test_several_texts_of_a_prompt_compute_it_once(model: Mixtral, alone: Mixtral) -> None:
    model.forget()
    before = model.stats()
    completion = model.generate(PROMPT, n=4, seed=3, max_tokens=12)
    after = model.stats()
    assert after.prompt_tokens - before.prompt_tokens == completion.stats.prompt_tokens
    texts = [choice.text for choice in completion.choices]
    assert len(set(texts)) == 4
    same(completion.choices[0], lone(alone, PROMPT, seed=3, max_tokens=12))
    assert [c.text for c in model.generate(PROMPT, n=4, seed=3, max_tokens=12).choices] == texts
    assert [c.text for c in alone.generate(PROMPT, n=4, seed=3, max_tokens=12).choices] == texts


def test_a_draft_in_the_pass_in_which_texts_fork_changes_neither(model: Mixtral, alone: Mixtral) -> None:
    """The pass has as many rows as texts, but not one of each."""
    greedy: dict[str, Any] = {"max_tokens": 300, "temperature": 0, "ignore_eos": True}
    stream = model.stream("There was once a poor", prompt_lookup=1, **greedy)  # soon repeats itself
    forks = [model.generate([5 + i, 9], n=2, seed=i, max_tokens=4) for i in range(30)]
    list(stream)
    assert stream.completion
    same(stream.completion, lone(alone, "There was once a poor", **greedy))
    for i, completion in enumerate(forks):
        for a, b in zip(completion.choices, lone(alone, [5 + i, 9], n=2, seed=i, max_tokens=4).choices, strict=True):
            same(a, b)


def test_best_of_gives_the_likeliest(model: Mixtral) -> None:
    every = model.generate(PROMPT, n=6, seed=1, max_tokens=8, logprobs=0).choices
    means = sorted((np.mean([t.logprob for t in c.logprobs or []]) for c in every), reverse=True)
    best = model.generate(PROMPT, n=2, best_of=6, seed=1, max_tokens=8)
    assert best.logprobs is None
    texts = {c.text: np.mean([t.logprob for t in c.logprobs or []]) for c in every}
    assert [texts[c.text] for c in best.choices] == means[:2]
    with pytest.raises(InvalidArgumentError, match="best_of"):
        model.generate(PROMPT, n=3, best_of=2)


def test_logprobs_are_those_of_the_logits(model: Mixtral) -> None:
    completion = model.generate(PROMPT, max_tokens=6, temperature=0, logprobs=3, prompt_logprobs=2)
    ids = model.tokenize(PROMPT)
    rows = model.logits([*ids, *completion.tokens]).astype(np.float64)
    expected = rows - np.log(np.exp(rows - rows.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
    expected -= rows.max(axis=1, keepdims=True)
    assert completion.prompt_logprobs
    assert completion.logprobs
    assert completion.prompt_logprobs[0] is None
    found = [*completion.prompt_logprobs[1:], *completion.logprobs]
    for row, token, id in zip(expected, found, [*ids[1:], *completion.tokens], strict=False):
        assert token
        assert token.id == id
        assert token.logprob == pytest.approx(row[id], abs=1e-5)
        assert [i for i, _ in token.top] == np.argsort(-row, kind="stable")[: len(token.top)].tolist()


def test_scores_are_sums_of_logprobs(model: Mixtral) -> None:
    contexts = model.tokenize(PROMPT)
    scores = model.score(contexts, [[300], [301, 302], contexts[1:]])
    for score, ids in zip(scores, [[300], [301, 302], contexts[1:]], strict=True):
        assert score.tokens == [t.logprob for t in prompt_logprobs(model, [*contexts, *ids])[len(contexts) :]]
        assert score.logprob == sum(score.tokens)
    best = model.generate(contexts, max_tokens=3, temperature=0).tokens
    assert [s.greedy for s in model.score(contexts, [best, [best[0], best[1] + 1]])] == [True, False]
    for cut in range(1, len(PROMPT)):  # also inside a token: then those that the context alone lacks count
        (score,) = model.score(PROMPT[:cut], [PROMPT[cut:]])
        before, whole = model.tokenize(PROMPT[:cut]), model.tokenize(PROMPT)
        n = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
        assert score.tokens == [t.logprob for t in prompt_logprobs(model, whole)[n:]]


def test_embeddings_do_not_depend_on_the_batch(model: Mixtral, tiny_q8_0: Path) -> None:
    texts = [PROMPT, "The wolf", PROMPT * 6]
    vectors = model.embed(texts)
    assert vectors.shape == (3, model.config.hidden)
    with Mixtral(tiny_q8_0, n_ctx=512, n_batch=5, n_threads=1) as other:
        for text, vector in zip(texts, vectors, strict=True):
            assert (other.embed([text]) == vector).all()
    last = model.embed(texts, pooling="last", normalize=True)
    np.testing.assert_allclose((last * last).sum(axis=1), 1, rtol=1e-6)
    observed = model.observe(model.tokenize(PROMPT), model.observers())
    np.testing.assert_allclose(vectors[0], observed.astype(np.float64).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(last[0], observed[-1] / np.linalg.norm(observed[-1].astype(np.float64)), rtol=1e-5)
    with pytest.raises(InvalidArgumentError, match="pooling"):
        model.embed(texts, pooling="max")


def test_an_exception_in_a_processor_ends_its_text_alone(model: Mixtral, alone: Mixtral) -> None:
    def broken(ids: NDArray[np.int32], _: NDArray[np.float32]) -> None:
        if len(ids) > 20:
            raise ZeroDivisionError("mine")

    other = model.stream(PROMPT, max_tokens=30, seed=2)
    with pytest.raises(ZeroDivisionError, match="mine"):
        model.generate(PROMPT, max_tokens=30, logits_processor=broken)
    text = "".join(other)
    assert text == lone(alone, PROMPT, max_tokens=30, seed=2).text


def test_more_urgent_texts_come_first(tiny_q8_0: Path) -> None:
    with Mixtral(tiny_q8_0, n_ctx=512, max_batch=1) as model:
        ended: list[str] = []

        def work(name: str, priority: int) -> None:
            model.generate(PROMPT, max_tokens=60, ignore_eos=True, priority=priority)
            ended.append(name)

        first = model.stream(PROMPT, ignore_eos=True, priority=-1)  # holds the engine until all have asked
        next(first)
        threads = [threading.Thread(target=work, args=pair) for pair in (("late", 5), ("soon", 1), ("now", 0))]
        for i, thread in enumerate(threads):
            thread.start()
            while model.stats().waiting <= i:
                pass
        first.cancel()
        for thread in threads:
            thread.join()
        assert ended == ["now", "soon", "late"]


def test_a_prompt_beyond_the_cache_is_refused_with_both_numbers(tiny_q8_0: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cache_bytes of at least"):
        Mixtral(tiny_q8_0, n_ctx=512, cache_bytes=1000)
    with Mixtral(tiny_q8_0, n_ctx=100) as model, pytest.raises(ContextLengthError, match=r"at most 100 tokens.*101"):
        model.generate([5] * 101)


def test_a_second_reader_is_told_so(model: Mixtral) -> None:
    stream = model.stream(PROMPT, max_tokens=200, ignore_eos=True)
    assert stream._reading.acquire(blocking=False)  # as another thread in next() does
    with pytest.raises(InvalidArgumentError, match="one reader of a generation at a time"):
        next(stream)
    stream._reading.release()
    assert "".join(stream)
    assert len(stream.tokens) == 200


def test_two_threads_in_one_stream_lose_nothing(model: Mixtral) -> None:
    stream = model.stream(PROMPT, max_tokens=200, ignore_eos=True, seed=1)
    refused = [0, 0]

    def read(i: int) -> None:
        while True:
            try:
                next(stream)
            except StopIteration:
                return
            except InvalidArgumentError:
                refused[i] += 1

    threads = [threading.Thread(target=read, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert stream.tokens == model.generate(PROMPT, max_tokens=200, ignore_eos=True, seed=1).tokens


@pytest.mark.parametrize("seed", range(3))
def test_mixed_requests_with_cancels_deadlines_preemption_and_forks(tiny_q8_0: Path, alone: Mixtral, seed: int) -> None:
    """A small pool, so that texts have to give their pages back and are computed again."""
    draw = random.Random(seed)
    page = 64 * 2 * alone.config.n_layers * alone.config.n_kv_heads * alone.config.head_dim * 2
    documents = [[1, *(draw.randrange(3, 4096) for _ in range(draw.randrange(20, 300)))] for _ in range(4)]
    jobs: list[tuple[list[int], dict[str, Any], str]] = []
    for i in range(60):
        document = draw.choice(documents)
        prompt = document[: draw.randrange(1, len(document) + 1)] + [draw.randrange(3, 4096)] * draw.randrange(3)
        options: dict[str, Any] = {"max_tokens": draw.randrange(1, 60), "seed": i, "priority": draw.randrange(2)}
        options |= draw.choice([{}, {"temperature": 0}, {"logprobs": 1}, {"prompt_logprobs": 0}, {"prompt_lookup": 3}])
        jobs.append((prompt, options, draw.choice(["generate"] * 4 + ["cancel", "deadline", "n"])))
    results: dict[int, Any] = {}
    with Mixtral(tiny_q8_0, n_ctx=400, n_threads=2, max_batch=6, n_batch=96, cache_bytes=12 * page) as model:

        def work(k: int) -> None:
            for i in range(k, len(jobs), 4):
                prompt, options, kind = jobs[i]
                if kind == "cancel":
                    stream = model.stream(prompt, **options)
                    next(stream, None)
                    stream.cancel()
                    list(stream)
                    results[i] = stream.completion
                elif kind == "deadline":
                    results[i] = model.generate(prompt, timeout=0.005, **options)
                else:
                    results[i] = model.generate(prompt, n=3 if kind == "n" else 1, **options)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        stats = model.stats()
        assert (stats.waiting, stats.prefilling, stats.decoding, stats.used_pages) == (0, 0, 0, 0)
        model.forget()
        loop = model.core.engine._loop
        assert loop
        assert loop.pages.cache.n_free_pages == loop.pages.cache.n_pages
        assert not loop.pages.cache.references.any()
    assert len(results) == len(jobs)
    for i, (prompt, options, kind) in enumerate(jobs):
        expected = lone(alone, prompt, **options) if kind != "n" else lone(alone, prompt, n=3, **options)
        if kind in ("cancel", "deadline") and results[i].finish_reason in ("cancelled", "deadline"):
            assert expected.tokens[: len(results[i].tokens)] == results[i].tokens
        else:
            for a, b in zip(results[i].choices, expected.choices, strict=True):
                same(a, b)


def test_preemption_happens_and_changes_nothing(tiny_q8_0: Path, alone: Mixtral) -> None:
    page = 64 * 2 * alone.config.n_layers * alone.config.n_kv_heads * alone.config.head_dim * 2
    prompts = [[1, *range(300 + i, 360 + i)] for i in range(5)]
    options: dict[str, Any] = {"max_tokens": 150, "ignore_eos": True, "seed": 1}
    with Mixtral(tiny_q8_0, n_ctx=256, cache_bytes=7 * page) as model:
        completions = model.generate(prompts, **options)
        assert model.stats().preempted > 0
    for completion, prompt in zip(completions, prompts, strict=True):
        same(completion, lone(alone, prompt, **options))


def test_streams_that_alternate_compute_nothing_twice(model: Mixtral) -> None:
    model.forget()
    before = model.stats().prompt_tokens
    documents = [[1, *range(300 + 7 * i, 500 + 7 * i)] for i in range(2)]
    for n in range(1, 6):
        for document in documents:
            model.generate([*document, *range(600, 600 + n)], max_tokens=1)
    computed = model.stats().prompt_tokens - before
    assert computed <= 2 * (201 + 1 + 5 * 2)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_whatever_a_processor_raises_ends_its_text_alone(model: Mixtral, error: type[BaseException]) -> None:
    def broken(*_: Any) -> None:
        raise error

    with pytest.raises(error):
        model.generate(PROMPT, max_tokens=3, logits_processor=broken)
    assert model.generate(PROMPT, max_tokens=3).tokens


def test_a_processor_cannot_wait_for_its_own_engine(model: Mixtral) -> None:
    def asks(*_: Any) -> None:
        model.generate(PROMPT, max_tokens=1)

    with pytest.raises(InvalidArgumentError, match="from within the engine"):
        model.generate(PROMPT, max_tokens=3, logits_processor=asks)


def test_a_processor_may_close_the_model(tiny_q8_0: Path) -> None:
    model = Mixtral(tiny_q8_0, n_ctx=256)
    with pytest.raises(ClosedError):
        model.generate(PROMPT, max_tokens=3, logits_processor=lambda *_: model.close())
    with pytest.raises(ClosedError):
        model.generate(PROMPT)


def test_a_salt_keeps_the_prefix_cache_apart(model: Mixtral) -> None:
    prompt = [*range(699, 900)]
    cached = [
        model.generate(prompt, max_tokens=1, cache_salt=salt).stats.cached_tokens for salt in ("a", None, "b", "a", "b")
    ]
    assert cached == [0, 0, 0, 200, 200]
    with pytest.raises(InvalidArgumentError, match="cache_salt"):
        model.generate(prompt, cache_salt=5)  # type: ignore[call-overload]


def test_numbers_have_deadlines_too(model: Mixtral) -> None:
    calls: list[Callable[[], object]] = [
        lambda: model.score(PROMPT, [" and"], timeout=0),
        lambda: model.embed([PROMPT], timeout=0),
        lambda: model.logits([1, 2], timeout=0),
    ]
    for call in calls:
        with pytest.raises(DeadlineError):
            call()
    wrong: Any = {"time_out": 1}
    with pytest.raises(InvalidArgumentError, match="did you mean 'timeout'"):
        model.embed([PROMPT], **wrong)
    assert model.embed([PROMPT], timeout=100, priority=-1, cache_salt="x").shape[0] == 1


def test_bad_words_may_be_texts(model: Mixtral) -> None:
    plain = model.generate(PROMPT, max_tokens=40, temperature=0).text
    words = plain.split()
    word = max(set(words), key=words.count)
    without = model.generate(PROMPT, max_tokens=40, temperature=0, bad_words=[word]).text
    assert word not in without.split()
    assert model.generate(PROMPT, max_tokens=40, temperature=0, bad_words=word).text == without
    wrong: list[Any] = [[""], "", b"abc", 5]
    for value in wrong:
        with pytest.raises(InvalidArgumentError, match="bad_words"):
            model.generate(PROMPT, bad_words=value)


def test_texts_with_proposals_beside_several_texts_of_a_prompt(model: Mixtral, alone: Mixtral) -> None:
    """As many rows are drawn from as the pass has, and still not the same ones."""
    words = model.tokenize("The king had a daughter. The king had a daughter. The king had a")
    expected = lone(alone, PROMPT, max_tokens=1, temperature=0).tokens
    stream = model.stream(words, max_tokens=400, ignore_eos=True, temperature=0, prompt_lookup=1)
    for _ in range(40):
        model.forget()
        choices = model.generate(PROMPT, n=2, temperature=0, max_tokens=1).choices
        assert [choice.tokens for choice in choices] == [expected, expected]
    stream.cancel()


def test_a_first_token_that_nothing_predicts_has_no_score(tiny_q8_0: Path) -> None:
    with Mixtral(tiny_q8_0, n_ctx=64, overrides={"tokenizer.ggml.add_bos_token": False}) as model:
        for _ in range(2):
            with pytest.raises(InvalidArgumentError, match="nothing predicts the first"):
                model.score("O", ["nce upon a time"])
            (score,) = model.score("Once upon", [" a time"])
            assert score.logprob < 0


def test_an_empty_text_is_not_the_best(model: Mixtral) -> None:
    (eos,) = model.eos_ids
    options: dict[str, Any] = {"seed": 1, "max_tokens": 5, "temperature": 1, "top_k": 0, "logit_bias": {eos: 20.5}}
    lengths = [len(choice.tokens) for choice in model.generate(PROMPT, n=12, **options).choices]
    assert 0 in lengths
    assert any(lengths)
    assert model.generate(PROMPT, n=1, best_of=12, **options).tokens


def test_texts_that_all_fail_leave_the_engine_whole(model: Mixtral, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = model.core.engine._loop
    assert loop
    with monkeypatch.context() as patch:
        patch.setattr(loop._model, "logits", lambda *_: (_ for _ in ()).throw(NonFiniteError("damaged", 0)))
        with pytest.raises(NonFiniteError):
            model.generate([PROMPT, "The wolf"], max_tokens=3)
    with monkeypatch.context() as patch:
        patch.setattr("pymixtral.engine.drawing.draw", lambda *_: (_ for _ in ()).throw(NativeError("no memory")))
        with pytest.raises(NativeError):
            model.generate([PROMPT, "The wolf"], max_tokens=3)
    assert model.generate(PROMPT, max_tokens=3).tokens


@pytest.mark.parametrize("name", ["n", "best_of", "progress"])
def test_a_stream_takes_no_argument_that_it_would_not_use(model: Mixtral, name: str) -> None:
    wrong: Any = {name: 3}
    with pytest.raises(InvalidArgumentError, match=r"expected an argument of stream\(\)"):
        model.core.factory.continuations([PROMPT], wrong, streams=True)


@pytest.mark.parametrize("name", ["ignore_eos", "parse_special"])
def test_a_flag_is_true_or_false(model: Mixtral, name: str) -> None:
    wrong: Any = {name: "no"}
    with pytest.raises(InvalidArgumentError, match=f"{name} to be True or False"):
        model.stream(PROMPT, **wrong)


def test_what_was_dropped_ends_without_the_garbage_collector(tiny_q8_0: Path) -> None:
    with Mixtral(tiny_q8_0, n_ctx=2048) as model:
        gc.disable()
        try:
            text = model.stream(PROMPT, ignore_eos=True)
            answer = model.stream_chat([{"role": "user", "content": "a"}], chat_format="mistral-v1", ignore_eos=True)
            next(text), next(answer)
            del text, answer
            end = time.monotonic() + 60
            while model.stats().decoding:
                assert time.monotonic() < end
        finally:
            gc.enable()
        requests = [weakref.ref(model.stream(PROMPT, max_tokens=1, timeout=3600)._request) for _ in range(5)]
        while model.stats().decoding or model.stats().waiting:
            pass
        model.generate(PROMPT, max_tokens=1)
        gc.collect()
        assert [request() for request in requests] == [None] * 5  # the deadline alone keeps none


def _reshape(_: Any, logits: NDArray[np.float32]) -> None:
    logits.shape = (2, -1)  # type: ignore[misc]


def _resize(_: Any, logits: NDArray[np.float32]) -> None:
    logits.resize((3,), refcheck=False)


def _retype(_: Any, logits: NDArray[np.float32]) -> None:
    logits.dtype = np.int32  # type: ignore[misc,assignment]


@pytest.mark.parametrize("processor", [_reshape, _resize, _retype])
def test_a_processor_that_breaks_its_array_ends_its_text_alone(model: Mixtral, alone: Mixtral, processor: Any) -> None:
    other = model.stream(PROMPT, max_tokens=30, seed=2)
    with pytest.raises(InvalidArgumentError, match="expected logits_processor to return 4096 logits"):
        model.generate(PROMPT, max_tokens=3, logits_processor=processor)
    assert "".join(other) == lone(alone, PROMPT, max_tokens=30, seed=2).text


def test_a_processor_that_raises_stop_iteration_does_not_end_a_stream(model: Mixtral) -> None:
    def stop(*_: Any) -> None:
        raise StopIteration

    with pytest.raises(RuntimeError, match="StopIteration"):
        list(model.stream(PROMPT, max_tokens=3, logits_processor=stop))


@pytest.mark.filterwarnings("error")
def test_a_processor_may_return_numbers_beyond_float32(model: Mixtral) -> None:
    with pytest.raises(NonFiniteError):
        model.generate(PROMPT, max_tokens=1, logits_processor=lambda _, logits: np.full(logits.shape, 1e300))


@pytest.mark.parametrize("value", [10**5000, np.array([1, 2]), b"x", {}, [], object()], ids=type)
@pytest.mark.parametrize("name", ["context_shift", "cache_salt", "prompt_lookup", "priority", "timeout", "ignore_eos"])
def test_whatever_an_option_is_given_is_one_sentence(model: Mixtral, name: str, value: Any) -> None:
    if (name, type(value)) == ("priority", int):  # any whole number
        assert model.generate(PROMPT, max_tokens=1, priority=value).tokens
        return
    with pytest.raises(InvalidArgumentError) as error:
        model.generate(PROMPT, max_tokens=1, **{name: value})
    assert name in str(error.value)
    assert "\n" not in str(error.value)
