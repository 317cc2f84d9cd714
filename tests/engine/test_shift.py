"""Context shift: a text goes on when its context is full, and disturbs no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pymixtral import Mixtral, ModelConfig
from pymixtral.arrays import F32, I32
from pymixtral.errors import ContextLengthError, InvalidArgumentError
from pymixtral.files.gguf import GGUFFile
from pymixtral.model.forward import Model
from pymixtral.model.weights import load_weights

PROMPT = [1, *range(300, 400)]
OPTIONS: dict[str, Any] = {"seed": 1, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(tiny_q8_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0, n_ctx=256, n_threads=2) as model:
        yield model


@pytest.fixture(scope="module")
def alone(tiny_q8_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0, n_ctx=256, n_threads=1) as model:
        yield model


class Seen:
    """A logits_processor that keeps what it was given."""

    def __init__(self) -> None:
        self.ids: list[I32] = []
        self.logits: list[F32] = []

    def __call__(self, ids: I32, logits: F32) -> None:
        self.ids.append(ids)
        self.logits.append(logits.copy())

    def computed_afresh(self, alone: Mixtral, begin: int) -> list[bool]:
        """Of each step from one on, whether its logits are those of its ids alone."""
        return [
            bool(np.array_equal(alone.logits(ids, last_only=True), logits))
            for ids, logits in list(zip(self.ids, self.logits, strict=True))[begin:]
        ]


def cache_bytes(model: Mixtral, n_pages: int) -> int:
    config = model.config
    return n_pages * 64 * 2 * config.n_layers * config.n_kv_heads * config.head_dim * 2


def steps(n_prompt: int, n: int, kept: int, n_ctx: int) -> list[int]:
    """The number of ids before each of n tokens, as the documentation says it."""
    found, n_ids = [], n_prompt
    for _ in range(n):
        found.append(n_ids)
        n_ids += 1
        if n_ids > n_ctx:
            pages = -(-kept // 64)
            n_ids -= 64 * max((n_ctx // 64 - pages) // 2, 1)
    return found


# --- What it computes -----------------------------------------------------------------------------


@pytest.mark.parametrize(("n_ctx", "kept"), [(256, 0), (256, 1), (256, 64), (256, 65), (256, 192), (250, 10), (64, 0)])
def test_a_text_never_ends_with_its_context(tiny_q8_0: Path, n_ctx: int, kept: int) -> None:
    seen = Seen()
    prompt = PROMPT[: min(101, n_ctx)]
    with Mixtral(tiny_q8_0, n_ctx=n_ctx) as model:
        completion = model.generate(prompt, max_tokens=500, context_shift=kept, logits_processor=seen, **OPTIONS)
        assert (completion.finish_reason, len(completion.tokens)) == ("length", 500)
        assert completion.stats.passes == 499  # nothing was computed twice
        assert model.stats().prompt_tokens == len(prompt)
        assert model.stats().used_pages == 0
    assert [len(ids) for ids in seen.ids] == steps(len(prompt), 500, kept, n_ctx)
    text = np.array([*prompt, *completion.tokens])
    first = -(-kept // 64) * 64
    for i, ids in enumerate(seen.ids):
        n = len(ids)
        assert np.array_equal(ids[:first], text[: min(first, n)])
        assert np.array_equal(ids[first:], text[len(prompt) + i - n + min(first, n) : len(prompt) + i][: n - first])


@pytest.mark.parametrize("kv_type", ["f16", "f32", "q8_0"])
def test_the_engine_does_what_the_parts_do(tiny_q8_0: Path, kv_type: str) -> None:
    """A loop over the model itself, token by token, draws the same."""
    seen = Seen()
    with Mixtral(tiny_q8_0, n_ctx=256, kv_type=kv_type) as model:
        model.generate(PROMPT, max_tokens=300, context_shift=20, temperature=0, ignore_eos=True, logits_processor=seen)
    with GGUFFile(tiny_q8_0) as file:
        config = ModelConfig.from_gguf(file)
        model_ = Model(load_weights(file, config), config, n_threads=1)
        cache = model_.new_cache(320, kv_type)
        sequence = cache.new_sequence()
        for ids, logits in zip(seen.ids, seen.logits, strict=True):
            if len(ids) <= sequence.length:
                assert (sequence.length, len(ids)) == (256, 193)
                model_.shift(sequence, 1, 1)
            new = ids[sequence.length :]
            hidden = model_.forward(new, [(sequence, len(new))], cache)
            assert np.array_equal(model_.logits(hidden[-1:])[0], logits)
        model_.close()


def test_it_is_not_what_the_shorter_text_gives_but_near(model: Mixtral, alone: Mixtral) -> None:
    """Documented as not equal; and a text without it, or before it, is."""
    seen = Seen()
    model.generate(PROMPT, max_tokens=170, context_shift=1, logits_processor=seen, **OPTIONS)
    lengths = [len(ids) for ids in seen.ids]
    begin = lengths.index(256) + 1
    assert all(seen.computed_afresh(alone, 0)[:begin])
    assert not any(seen.computed_afresh(alone, begin))
    for ids, logits in list(zip(seen.ids, seen.logits, strict=True))[begin:]:
        expected = alone.logits(ids, last_only=True)
        assert np.corrcoef(expected, logits)[0, 1] > 0.9


def test_a_text_that_needs_no_shift_is_the_same(model: Mixtral) -> None:
    plain = model.generate(PROMPT, max_tokens=156, **OPTIONS)
    assert model.generate(PROMPT, max_tokens=156, context_shift=0, **OPTIONS).tokens == plain.tokens
    assert model.generate(PROMPT, context_shift=0, max_tokens=400, **OPTIONS).tokens[:156] == plain.tokens
    assert model.generate(PROMPT, **OPTIONS).finish_reason == "context"


def test_prompt_lookup_changes_nothing(model: Mixtral) -> None:
    prompt = [1, *range(300, 320)] * 6
    options: dict[str, Any] = {"max_tokens": 400, "context_shift": 20, "temperature": 0, "ignore_eos": True}
    plain = model.generate(prompt, **options)
    fast = model.generate(prompt, prompt_lookup=8, **options)
    assert fast.tokens == plain.tokens
    assert fast.stats.accepted_tokens > 0


def test_a_text_without_a_limit_goes_on_until_it_is_closed(model: Mixtral) -> None:
    stream = model.stream("Once upon a time", context_shift=4, **OPTIONS)
    for _ in stream:
        if len(stream.tokens) > 600:
            break
    stream.close()
    assert len(stream.tokens) > 600


def test_a_stop_string_ends_it(model: Mixtral) -> None:
    text = model.generate("Once upon a time", max_tokens=600, context_shift=4, **OPTIONS).text
    stop = text[1200:1230]
    completion = model.generate("Once upon a time", context_shift=4, stop=stop, **OPTIONS)
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
    assert completion.text == text[: text.index(stop)]


@pytest.mark.parametrize(
    ("min_tokens", "wanted", "expected"), [(20, 100, 100), (150, 100, 150), (500, 0, 500), (0, 57, 57)]
)
def test_min_tokens_count_the_tokens_of_the_text(model: Mixtral, min_tokens: int, wanted: int, expected: int) -> None:
    """Not those that are left: the context is full after 57 tokens."""
    calls = 0

    def ends(_: I32, logits: F32) -> None:
        nonlocal calls
        if calls >= wanted:
            logits[2] = 1000.0
        calls += 1

    prompt = (PROMPT * 2)[:200]
    options: dict[str, Any] = {"context_shift": 0, "min_tokens": min_tokens, "seed": 1, "logit_bias": {2: -50.0}}
    completion = model.generate(prompt, max_tokens=600, logits_processor=ends, **options)
    assert (completion.finish_reason, len(completion.tokens)) == ("stop", expected)


def test_logprobs_of_a_full_prompt(model: Mixtral) -> None:
    prompt = (PROMPT * 3)[:256]
    plain = model.generate(prompt, max_tokens=1, logprobs=1, prompt_logprobs=1, seed=1)
    long = model.generate(
        prompt, max_tokens=90, logprobs=1, prompt_logprobs=1, context_shift=0, seed=1, ignore_eos=True
    )
    assert long.prompt_logprobs == plain.prompt_logprobs
    assert long.logprobs
    assert plain.logprobs == long.logprobs[:1]
    assert len(long.logprobs) == 90


@pytest.mark.parametrize("bad", [-1, 193, 1.5, True, "1", 10**30])
def test_numbers_out_of_range(model: Mixtral, bad: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="context_shift"):
        model.generate(PROMPT, context_shift=bad)


def test_contexts_and_prompts_that_do_not_fit(tiny_q8_0: Path, model: Mixtral) -> None:
    with Mixtral(tiny_q8_0, n_ctx=63) as small, pytest.raises(InvalidArgumentError, match=r"context's 63 tokens"):
        small.generate([1, 2], context_shift=0)
    with pytest.raises(ContextLengthError):
        model.generate([1] * 257, context_shift=0)


# --- Others ---------------------------------------------------------------------------------------


def test_the_prefix_cache_never_has_it(model: Mixtral, alone: Mixtral) -> None:
    model.forget()
    seen = Seen()
    completion = model.generate(PROMPT, max_tokens=400, context_shift=64, logits_processor=seen, **OPTIONS)
    text = [*PROMPT, *completion.tokens]
    for ids in ([*PROMPT, *text[101:200]], text[:256], seen.ids[-1].tolist(), seen.ids[200].tolist()):
        assert np.array_equal(model.logits(ids, last_only=True), alone.logits(ids, last_only=True))
    model.forget()
    model.generate(PROMPT, max_tokens=400, context_shift=64, **OPTIONS)
    assert model.generate(seen.ids[-1].tolist(), max_tokens=1).stats.cached_tokens == 64
    assert model.generate(text[:256], max_tokens=1).stats.cached_tokens >= 192  # what it was before


@pytest.mark.parametrize("n_pages", [9, 10, 36])
def test_other_texts_with_the_same_pages_keep_them(tiny_q8_0: Path, model: Mixtral, n_pages: int) -> None:
    """Also in a cache with hardly a page to spare, where copies take the place of what is cached."""
    prompt = (PROMPT * 4)[:390]
    lone: dict[str, Any] = {"max_tokens": 60, **OPTIONS}
    shifting: dict[str, Any] = {"max_tokens": 500, "context_shift": 64, **OPTIONS}
    with Mixtral(tiny_q8_0, n_ctx=512) as alone:
        expected = alone.generate(prompt, **lone).tokens
        long = alone.generate(prompt, **shifting).tokens
    with Mixtral(tiny_q8_0, n_ctx=512, cache_bytes=cache_bytes(model, n_pages)) as small:
        for _ in range(3):
            assert small.generate(prompt, **shifting).tokens == long
            assert small.generate(prompt, **lone).tokens == expected
        streams = [small.stream(prompt, **lone) for _ in range(3)]
        stream = small.stream(prompt, **shifting)
        for other in streams:
            list(other)
            assert other.tokens == expected
        list(stream)
        assert len(stream.tokens) == 500
        assert stream.tokens[:123] == long[:123]
        if n_pages == 36:
            assert stream.tokens == long


def test_several_texts_of_a_prompt(model: Mixtral, alone: Mixtral) -> None:
    options: dict[str, Any] = {"max_tokens": 300, "context_shift": 100, **OPTIONS}
    together = model.generate((PROMPT * 3)[:250], n=3, **options).choices
    assert together[0].tokens == alone.generate((PROMPT * 3)[:250], **options).tokens
    assert len({tuple(choice.tokens) for choice in together}) == 3
    assert [choice.finish_reason for choice in together] == ["length"] * 3
    again = model.generate((PROMPT * 3)[:250], n=3, **options).choices
    assert [choice.tokens for choice in again] == [choice.tokens for choice in together]


def test_a_text_that_gives_way_is_computed_again_over_what_is_left(
    tiny_q8_0: Path, model: Mixtral, alone: Mixtral
) -> None:
    """Its pages cannot be computed again as they were: from there on it is the shorter text."""
    seen = Seen()
    with Mixtral(tiny_q8_0, n_ctx=256, cache_bytes=cache_bytes(model, 5)) as small:
        stream = small.stream(PROMPT, max_tokens=400, context_shift=1, logits_processor=seen, **OPTIONS)
        for _ in stream:
            if len(stream.tokens) > 200:
                break
        urgent = small.generate([1, *range(500, 640)], max_tokens=30, priority=-1, **OPTIONS)
        list(stream)
        assert small.stats().preempted > 0
    assert urgent.tokens == alone.generate([1, *range(500, 640)], max_tokens=30, **OPTIONS).tokens
    assert (stream.finish_reason, len(stream.tokens)) == ("length", 400)
    assert [len(ids) for ids in seen.ids] == steps(101, 400, 1, 256)
    afresh = seen.computed_afresh(alone, 0)
    first = afresh.index(False)
    assert len(seen.ids[first]) == 193
    resumed = afresh.index(True, first)
    assert len(seen.ids[resumed]) < 256
    again = [len(ids) for ids in seen.ids].index(256, resumed)
    assert all(afresh[resumed : again + 1])
    assert not any(afresh[again + 1 :])


def test_without_room_for_copies_it_is_computed_again(tiny_q8_0: Path, model: Mixtral) -> None:
    """Two texts share seven pages of a cache of ten. At the first shift both still need them."""
    seen = Seen()
    prompt = (PROMPT * 6)[:510]
    options: dict[str, Any] = {"max_tokens": 150, "context_shift": 0, **OPTIONS}
    with Mixtral(tiny_q8_0, n_ctx=512, cache_bytes=cache_bytes(model, 10)) as small:
        texts = small.generate(prompt, n=2, logits_processor=seen, **options).choices
        assert small.stats().used_pages == 0
    assert [len(text.tokens) for text in texts] == [150, 150]
    assert sorted(len(ids) for ids in seen.ids) == sorted(2 * steps(510, 150, 0, 512))
    with Mixtral(tiny_q8_0, n_ctx=512) as alone:
        afresh = seen.computed_afresh(alone, 0)
    # the first has no room, and so makes some for the second
    assert sorted(same for same, ids in zip(afresh, seen.ids, strict=True) if len(ids) == 257) == [False, True]
