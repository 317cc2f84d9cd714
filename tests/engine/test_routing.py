"""The trace of a request: whole, the oracle's, and the same whatever else the engine does."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pymixtral import AsyncMixtral, Completion, Mixtral, ModelConfig, Routing, demo_chat_path
from pymixtral.arrays import F32, I32
from pymixtral.engine.trace import Trace
from pymixtral.errors import ContextLengthError, DeadlineError, InvalidArgumentError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.model.weights import load_weights
from pymixtral.ops import Choices
from pymixtral.quantize import quantize
from pymixtral.reference import oracle
from support.checkpoints import Shape, make_checkpoint

PROMPT = "Once upon a time there was a king who had three daughters"


@pytest.fixture(scope="module")
def model(tiny_q8_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0, n_ctx=512, n_threads=2) as model:
        yield model


@pytest.fixture(scope="module")
def alone(tiny_q8_0: Path) -> Iterator[Mixtral]:
    """A model that computes one text at a time."""
    with Mixtral(tiny_q8_0, n_ctx=512, n_threads=1, max_batch=1) as model:
        yield model


def traced(completion: Completion) -> Routing:
    assert completion.routing is not None
    return completion.routing


def lone(alone: Mixtral, ids: list[int], *, full: bool = False) -> Routing:
    """The trace of all of these tokens, as a prompt that nobody computed before."""
    alone.forget()
    return traced(alone.generate(ids, max_tokens=1, routing="full" if full else True))


def check(alone: Mixtral, prompt: list[int], completion: Completion) -> None:
    """A text's trace is that of its tokens given as a prompt."""
    routing = traced(completion)
    ends = isinstance(completion.stop_reason, int)
    expected = [*prompt, *completion.tokens][: len(prompt) + len(completion.tokens) - 1 + ends]
    assert routing.ids.tolist() == expected
    assert routing.n_prompt == len(prompt)
    found = lone(alone, expected, full=routing.probabilities is not None)
    assert replace(found, n_prompt=len(prompt)) == routing


# --- What is in it --------------------------------------------------------------------------------


def oracle_trace(path: Path, ids: list[int]) -> tuple[I32, F32, F32]:
    """The chosen experts, their weights and the routers' logits, by the reference."""
    with GGUFFile(path) as file:
        config = ModelConfig.from_gguf(file)
        weights = load_weights(file, config)
        x = oracle.embed(weights.embedding, np.array(ids, np.int32))
        turn = oracle.rope_table(config.rope_frequencies(), np.arange(len(x), dtype=np.int32), config.rope_factor())
        found = []
        for w in weights.layers:
            x = oracle.layer_attention(x, w, config, *turn, np.float16)
            normed = oracle.rms_norm(x, w.ffn_norm, config.rms_eps)
            assert w.router
            logits = oracle.matmul(normed, w.router)
            found.append((*oracle.route(logits, config.n_experts_used), logits))
            x = oracle.experts(x, normed, *found[-1][:2], w.experts)
    experts, shares, logits = (np.stack(part, axis=1) for part in zip(*found, strict=True))
    return experts, shares, logits


@pytest.fixture(scope="module", params=[(8, 2), (5, 3), (3, 1), (4, 4)], ids=str)
def odd(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    n_experts, n_used = request.param
    folder = tmp_path_factory.mktemp("odd")
    shape = Shape(n_experts=n_experts, n_experts_used=n_used, n_layers=3, n_vocab=96)
    make_checkpoint(folder / "hf", shape, seed=n_experts)
    quantize(folder / "hf", folder / "odd.gguf", "f32", progress=False)
    return folder / "odd.gguf"


def test_it_is_what_the_oracle_chooses(odd: Path) -> None:
    ids = [int(i) for i in np.random.default_rng(1).integers(3, 96, 70)]
    with Mixtral(odd, n_ctx=128, n_batch=33) as model:
        completion = model.generate(ids, max_tokens=9, temperature=0, ignore_eos=True, routing="full")
        routing, config = traced(completion), model.config
    experts, weights, logits = oracle_trace(odd, [*ids, *completion.tokens[:-1]])
    assert routing.experts.shape == experts.shape == (78, 3, config.n_experts_used)
    assert (routing.experts.dtype, routing.weights.dtype) == (np.uint8, np.float16)
    assert (routing.n_tokens, routing.n_layers, routing.n_experts_used) == experts.shape
    assert routing.n_experts == config.n_experts
    for t, layer in np.ndindex(78, 3):  # the highest first, of equal ones the lower number
        pairs = sorted(zip(-weights[t, layer], experts[t, layer].tolist(), strict=True))
        assert routing.experts[t, layer].tolist() == [expert for _, expert in pairs]
        assert routing.weights[t, layer].tolist() == np.array([-w for w, _ in pairs], np.float16).tolist()
    assert routing.probabilities is not None
    assert routing.probabilities.dtype == np.float16
    exact = np.exp(logits.astype(np.float64))
    exact /= exact.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(routing.probabilities, exact, rtol=1e-3, atol=1e-6)


def test_it_is_none_where_nobody_asks(model: Mixtral) -> None:
    assert model.generate(PROMPT, max_tokens=2).routing is None
    assert model.generate(PROMPT, max_tokens=2, routing=False).routing is None
    assert model.stream(PROMPT, max_tokens=2).routing is None
    assert traced(model.generate(PROMPT, max_tokens=2, routing=True)).probabilities is None


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0}, {"prompt_lookup": 5, "temperature": 0}, {"regex": "[a-z ]{9,30}"}]
)
def test_it_changes_no_bit_of_the_text(model: Mixtral, options: dict[str, Any]) -> None:
    options = {"seed": 4, "max_tokens": 60, "logprobs": 2, **options}
    plain = model.generate([PROMPT, PROMPT * 3], **options)
    for routing in (True, "full"):
        found = model.generate([PROMPT, PROMPT * 3], **options, routing=routing)
        assert [replace(c, routing=None, stats=p.stats) for c, p in zip(found, plain, strict=True)] == plain


def test_an_end_token_shows_the_last_tokens_experts(model: Mixtral, alone: Mixtral) -> None:
    def ends(ids: I32, logits: F32) -> None:
        logits[2] = 1000.0 if len(ids) > 20 else -1000.0

    completion = model.generate(PROMPT, logits_processor=ends, routing=True)
    assert completion.stop_reason == 2
    check(alone, model.tokenize(PROMPT), completion)


def test_a_stop_string_leaves_out_what_came_after_it(model: Mixtral, alone: Mixtral) -> None:
    """The same trace with drafts, which may have computed tokens behind it."""
    greedy: dict[str, Any] = {"temperature": 0, "max_tokens": 200, "ignore_eos": True}
    text = model.generate("There was once a poor", **greedy).text
    accepted = 0
    for i in [i for i in range(60, len(text) - 30) if text.index(text[i : i + 30]) == i][::9]:
        plain, drafted = (
            model.generate("There was once a poor", stop=text[i : i + 30], prompt_lookup=n, routing=True, **greedy)
            for n in (0, 8)
        )
        assert drafted.finish_reason == "stop"
        assert plain.routing == drafted.routing
        check(alone, model.tokenize("There was once a poor"), drafted)
        accepted += drafted.stats.accepted_tokens
    assert accepted > 20


def test_no_token_of_no_text(model: Mixtral) -> None:
    routing = traced(model.generate(PROMPT, max_tokens=0, routing="full"))
    assert (routing.n_tokens, routing.n_prompt) == (0, 0)
    assert routing.experts.shape == (0, model.config.n_layers, 2)


# --- Whatever the engine does ---------------------------------------------------------------------


def test_tokens_of_the_prefix_cache_are_in_it(model: Mixtral, alone: Mixtral) -> None:
    ids = model.tokenize(PROMPT * 9)
    model.forget()
    model.generate(ids, max_tokens=3)
    completion = model.generate(ids, max_tokens=3, routing=True)
    assert completion.stats.cached_tokens == 0
    check(alone, ids, completion)
    assert model.generate(ids, max_tokens=3).stats.cached_tokens == len(ids) - 1  # it left its pages to others


def test_wrong_drafts_are_not(model: Mixtral, alone: Mixtral) -> None:
    ids = model.tokenize("There was once a poor")
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 200, "ignore_eos": True, "prompt_lookup": 8}
    completion = model.generate(ids, routing="full", **options)
    assert 0 < completion.stats.accepted_tokens < completion.stats.drafted_tokens
    check(alone, ids, completion)


def test_several_texts_of_a_prompt(model: Mixtral, alone: Mixtral) -> None:
    ids = model.tokenize(PROMPT)
    choices = model.generate(ids, n=20, max_tokens=9, seed=1, routing="full").choices  # more than run at once
    assert len({c.text for c in choices}) > 10
    for completion in choices:
        check(alone, ids, completion)
    first, second = choices[:2]
    traced(first).experts[:] = 99  # each has arrays of its own
    check(alone, ids, second)
    best = model.generate(ids, n=2, best_of=4, max_tokens=9, seed=1, routing=True)
    for completion in best.choices:
        check(alone, ids, completion)


def test_preempted_texts(tiny_q8_0: Path, alone: Mixtral) -> None:
    page = 64 * 2 * alone.config.n_layers * alone.config.n_kv_heads * alone.config.head_dim * 2
    prompts = [[1, *range(300 + i, 360 + i)] for i in range(5)]
    options: dict[str, Any] = {"max_tokens": 150, "ignore_eos": True, "seed": 1, "routing": True}
    with Mixtral(tiny_q8_0, n_ctx=256, cache_bytes=7 * page) as model:
        completions = model.generate(prompts, **options)
        assert model.stats().preempted > 0
    for completion, prompt in zip(completions, prompts, strict=True):
        check(alone, prompt, completion)


@pytest.mark.parametrize("seed", range(3))
def test_any_mixture_of_requests(tiny_q8_0: Path, alone: Mixtral, seed: int) -> None:
    """A small pool, threads, drafts, forks, pieces of prompts, and texts that nobody traces."""
    draw = random.Random(seed)
    page = 64 * 2 * alone.config.n_layers * alone.config.n_kv_heads * alone.config.head_dim * 2
    documents = [[1, *(draw.randrange(3, 4096) for _ in range(draw.randrange(20, 300)))] for _ in range(3)]
    jobs: list[tuple[list[int], dict[str, Any]]] = []
    for i in range(24):
        document = draw.choice(documents)
        prompt = document[: draw.randrange(1, len(document) + 1)] + [draw.randrange(3, 4096)] * draw.randrange(3)
        options: dict[str, Any] = {"max_tokens": draw.randrange(1, 60), "seed": i, "priority": draw.randrange(2)}
        options |= draw.choice([{}, {"temperature": 0, "prompt_lookup": 4}, {"prompt_logprobs": 0}, {"n": 3}])
        jobs.append((prompt, {**options, "routing": draw.choice([True, "full", "full", False])}))
    results: dict[int, Completion] = {}
    with Mixtral(tiny_q8_0, n_ctx=400, n_threads=2, max_batch=6, n_batch=96, cache_bytes=12 * page) as model:

        def work(k: int) -> None:
            for i in range(k, len(jobs), 4):
                results[i] = model.generate(jobs[i][0], **jobs[i][1])

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
    assert len(results) == len(jobs)
    for i, (prompt, options) in enumerate(jobs):
        for completion in results[i].choices:
            if options["routing"]:
                check(alone, prompt, completion)
            else:
                assert completion.routing is None


def test_a_context_that_moves_on_keeps_the_first_passes(tiny_q8_0: Path, alone: Mixtral) -> None:
    ids = [1, *range(300, 400)]
    options: dict[str, Any] = {"max_tokens": 400, "temperature": 0, "ignore_eos": True, "context_shift": 20}
    with Mixtral(tiny_q8_0, n_ctx=256) as model:
        plain = model.generate(ids, **options)
        found = model.generate(ids, routing=True, **options)
        within = model.generate(ids, routing=True, **{**options, "max_tokens": 100})
    routing = traced(found)
    assert found.tokens == plain.tokens
    assert routing.ids.tolist() == [*ids, *found.tokens[:-1]]
    n = traced(within).n_tokens
    assert (routing.experts[:n] == traced(within).experts).all()
    check(alone, ids, within)


def test_a_trace_grows_while_its_text_is_read(model: Mixtral, alone: Mixtral) -> None:
    ids = model.tokenize(PROMPT)
    with model.stream(ids, max_tokens=100, seed=2, ignore_eos=True, routing="full") as stream:
        parts = []
        for _ in stream:
            routing = stream.routing
            assert routing is not None
            assert routing.ids.tolist() == [*ids, *stream.tokens[:-1]]
            parts.append(routing)
    assert stream.completion
    whole = traced(stream.completion)
    assert whole == stream.routing
    check(alone, ids, stream.completion)
    for part in parts:
        n = part.n_tokens
        assert (part.experts == whole.experts[:n]).all()
        assert (part.weights == whole.weights[:n]).all()


def test_a_text_that_is_cancelled_has_what_was_computed(model: Mixtral, alone: Mixtral) -> None:
    ids = model.tokenize(PROMPT)
    stream = model.stream(ids, ignore_eos=True, routing=True)
    next(stream)
    stream.cancel()
    list(stream)
    assert stream.completion
    assert stream.finish_reason == "cancelled"
    check(alone, ids, stream.completion)


def test_tasks_and_answers_have_it(model: Mixtral, alone: Mixtral) -> None:
    messages = [{"role": "user", "content": "Who was the king?"}]
    options: dict[str, Any] = {"max_tokens": 12, "seed": 3, "routing": True, "chat_format": "mistral-v1"}
    ids = model.chat_format("mistral-v1").prompt(messages, None, False).ids
    answer = model.chat(messages, **options)
    stream = model.stream_chat(messages, **options)
    "".join(stream)
    assert answer.completion.routing == stream.routing is not None
    check(alone, list(ids), answer.completion)

    async def ask() -> None:
        tasks = AsyncMixtral(model)
        whole = await tasks.generate(PROMPT, max_tokens=12, seed=3, routing="full")
        pieces = tasks.stream(PROMPT, max_tokens=12, seed=3, routing="full")
        async for _ in pieces:
            assert pieces.routing
        assert pieces.routing == traced(whole)
        check(alone, model.tokenize(PROMPT), whole)

    asyncio.run(ask())


# --- Of texts that are there ----------------------------------------------------------------------


def test_a_texts_own_routing(model: Mixtral, alone: Mixtral) -> None:
    ids = model.tokenize(PROMPT)
    for full in (False, True):
        expected = lone(alone, ids, full=full)
        for text in (PROMPT, ids, np.array(ids)):
            assert model.routing(text, full=full) == expected
    long = [1, *range(300, 800)][:512]
    model.logits(long, last_only=True)
    assert model.routing(long) == lone(alone, long)
    messages = [{"role": "user", "content": "Who was the king?"}]
    with Mixtral(demo_chat_path()) as talking:
        conversation = talking.routing(messages)
        assert conversation.ids.tolist() == list(talking.chat_format().prompt(messages, None, False).ids)
        assert conversation == talking.chat(messages, max_tokens=1, routing=True).completion.routing

    async def ask() -> list[Routing]:
        tasks = AsyncMixtral(model)
        return await asyncio.gather(*(tasks.routing(ids[:n], full=True) for n in range(1, len(ids) + 1)))

    for n, routing in enumerate(asyncio.run(ask()), 1):
        assert (routing.n_tokens, routing.n_prompt) == (n, n)
        assert (routing.experts == lone(alone, ids).experts[:n]).all()


def test_what_a_texts_routing_refuses(model: Mixtral) -> None:
    for bad, error in (([], "at least one token"), ([5000], "4095"), (None, "text"), (b"text", "decode")):
        with pytest.raises(InvalidArgumentError, match=error):
            model.routing(bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="full to be True or False, found 1"):
        model.routing(PROMPT, full=1)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=r"routing\(\)"):
        model.routing(PROMPT, seed=1)  # type: ignore[call-arg]
    with pytest.raises(ContextLengthError):
        model.routing([5] * 513)
    with pytest.raises(DeadlineError):
        model.routing([5] * 512, timeout=0)
    with pytest.raises(UnsupportedError, match="expected a chat template"):
        model.routing([{"role": "user", "content": "Who?"}])


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["Full", 1, None, 0, "", [True], b"full"])
def test_other_values_are_refused(model: Mixtral, bad: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="expected routing to be True, False or"):
        model.generate(PROMPT, routing=bad)


def test_a_dense_model_routes_nothing(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", Shape(n_experts=0, n_vocab=96), seed=1)
    quantize(tmp_path / "hf", tmp_path / "m.gguf", "f32", progress=False)
    with Mixtral(tmp_path / "m.gguf") as model:
        with pytest.raises(UnsupportedError, match="found a dense one"):
            model.routing([5])
        assert model.generate([5], max_tokens=1).routing is None
        with pytest.raises(UnsupportedError, match=r"m\.gguf: expected a model with experts, found a dense one"):
            model.generate([5], max_tokens=1, routing=True)


# --- Traces and routings by themselves ------------------------------------------------------------


def choices(ids: I32, seed: int = 0) -> Choices:
    """What a router would choose that looks at the ids alone."""
    made = Choices(len(ids), 2, 4, 2, full=True)
    for t, id in enumerate(ids.tolist()):
        draw = np.random.default_rng([id, seed])
        made.experts[t] = np.sort(draw.permuted(np.tile(np.arange(4), (2, 1)), axis=1)[:, :2], axis=1)
        made.weights[t] = draw.dirichlet([1, 1], 2)
        assert made.logits is not None
        made.logits[t] = draw.standard_normal((2, 4))
    return made


def test_parts_give_the_whole_and_known_tokens_stay() -> None:
    ids = np.arange(500, dtype=np.int32)
    whole = Trace(2, 4, 2, full=True)
    whole.add(0, ids, choices(ids), 0)
    for seed in range(20):
        draw = random.Random(seed)
        parts = Trace(2, 4, 2, full=True)
        while parts.n_tokens < 500:
            begin = draw.randrange(max(parts.n_tokens - 30, 0), parts.n_tokens + 1)
            end = draw.randrange(begin + 1, min(begin + 90, 500) + 1)
            before = draw.randrange(3)  # rows of other texts in the batch
            known = min(parts.n_tokens, end)
            given = ids[begin:end].copy()
            given[: known - begin] = 999  # computed again in another way
            parts.add(begin, given, choices(np.concatenate([ids[:before], given])), before)
            if draw.random() < 0.2:
                parts.truncate(draw.randrange(parts.n_tokens + 1))
        assert parts.routing(7, 500) == whole.routing(7, 500)
        assert parts.routing(7, 5).n_prompt == 5


def test_a_reader_meets_whole_rows_at_each_step() -> None:
    class Read(Trace):
        """Is read after each step of a change."""

        watched = False

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if self.watched:
                read = self.routing(20, 100)
                lengths = {len(read.ids), read.n_tokens, len(read.weights)}
                assert read.probabilities is not None
                assert lengths | {len(read.probabilities)} in ({0}, {30}, {100})

    ids = np.arange(100, dtype=np.int32)
    other, trace = Trace(2, 4, 2, full=True), Read(2, 4, 2, full=True)
    other.add(0, ids[:30], choices(ids), 0)
    trace.watched = True
    trace.follow(other)
    trace.add(30, ids[30:], choices(ids), 30)
    other.add(30, ids[30:], choices(ids), 30)
    assert trace.routing(20, 100) == other.routing(20, 100)


def test_routings_are_equal_if_all_numbers_are() -> None:
    ids = np.arange(9, dtype=np.int32)
    trace, plain = Trace(2, 4, 2, full=True), Trace(2, 4, 2)
    for one in (trace, plain):
        one.add(0, ids, choices(ids), 0)
    routing = trace.routing(3, 9)
    assert routing == trace.routing(3, 9)
    assert routing != plain.routing(3, 9) == replace(routing, probabilities=None)
    assert routing != trace.routing(4, 9)
    assert routing != trace.routing(3, 8)
    assert routing != replace(routing, n_experts=5)
    assert routing != replace(routing, experts=routing.experts[::-1])
    assert routing != replace(routing, weights=routing.weights * 2)
    assert routing != "routing"
    assert repr(routing) == "<Routing of 9 tokens, 2 layers: 2 of 4 experts, full>"
