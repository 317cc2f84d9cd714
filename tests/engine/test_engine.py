"""The engine on the real test model: text in, text out, cache reuse, threads, limits."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from pymixtral import Mixtral
from pymixtral.errors import (
    ContextLengthError,
    InvalidArgumentError,
    ModelConfigError,
    ModelFileError,
    UnsupportedError,
)
from pymixtral.quantize import quantize
from support.checkpoints import Shape, make_checkpoint

PROMPT = "Once upon a time there was a king who had three daughters"


@pytest.fixture(scope="module")
def engine(tiny_q8_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0, n_ctx=256, n_threads=2) as engine:
        yield engine


@pytest.fixture
def fresh(tiny_q8_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0, n_ctx=256, n_threads=2) as engine:
        yield engine


def edited(source: Path, dest: Path, key: str, value: Any) -> Path:
    """A copy of a model file with another value, of the same size, for one metadata key."""
    shutil.copyfile(source, dest)
    reader = gguf.GGUFReader(dest, "r+")
    reader.fields[key].parts[-1][:] = value
    reader.data.flush()
    return dest


# --- Text ---------------------------------------------------------------------------------------------------------


def test_greedy_text_follows_the_logits(engine: Mixtral) -> None:
    completion = engine.generate(PROMPT, max_tokens=12, temperature=0)
    prompt = engine.tokenize(PROMPT)
    rows = engine.logits(prompt + completion.tokens)
    assert completion.tokens == rows[len(prompt) - 1 : -1].argmax(1).tolist()
    assert engine.detokenize(prompt + completion.tokens) == PROMPT + completion.text
    assert (completion.finish_reason, str(completion)) == ("length", completion.text)


def test_the_stream_is_the_text_in_pieces(engine: Mixtral) -> None:
    whole = engine.generate(PROMPT, max_tokens=30, seed=3)
    stream = engine.stream(PROMPT, max_tokens=30, seed=3)
    pieces = list(stream)
    assert "".join(pieces) == whole.text
    assert len(pieces) > 10
    assert (stream.tokens, stream.finish_reason) == (whole.tokens, whole.finish_reason)


def test_a_seed_repeats_the_text_and_another_changes_it(engine: Mixtral) -> None:
    first, again, other = (engine.generate(PROMPT, max_tokens=20, seed=seed).text for seed in (1, 1, 2))
    assert first == again != other


def test_a_prompt_of_ids_is_taken_as_it_is(engine: Mixtral) -> None:
    text = engine.generate(PROMPT, max_tokens=5, temperature=0).text
    ids = engine.tokenize(PROMPT)
    for prompt in (ids, tuple(ids), np.array(ids)):
        assert engine.generate(prompt, max_tokens=5, temperature=0).text == text
    assert engine.generate(ids[1:], max_tokens=5).stats.prompt_tokens == len(ids) - 1


def test_an_empty_prompt_begins_a_text(engine: Mixtral) -> None:
    completion = engine.generate("", max_tokens=8, temperature=0)
    assert completion.stats.prompt_tokens == 1
    assert completion.text == engine.detokenize(completion.tokens)  # without the space that begins a text


def test_stop_strings_end_the_text(engine: Mixtral) -> None:
    whole = engine.generate(PROMPT, max_tokens=30, temperature=0)
    word = whole.text.split()[5]
    stopped = engine.generate(PROMPT, max_tokens=30, temperature=0, stop=[word, "never there"])
    assert stopped.text == whole.text[: whole.text.index(word)]
    assert stopped.finish_reason == "stop"


@pytest.mark.parametrize("stop", [" the", "e a"])
def test_a_stream_has_the_tokens_of_a_stop_string_too(engine: Mixtral, stop: str) -> None:
    stream = engine.stream(PROMPT, max_tokens=100, seed=1, stop=stop, logprobs=0)
    text = "".join(stream)
    assert stream.completion
    assert (text, stream.tokens, stream.logprobs) == (
        stream.completion.text,
        stream.completion.tokens,
        stream.completion.logprobs,
    )
    assert stream.finish_reason == "stop"


def test_the_files_end_token_ends_the_text(engine: Mixtral, tiny_q8_0: Path, tmp_path: Path) -> None:
    tokens = engine.generate(PROMPT, max_tokens=6, temperature=0).tokens
    path = edited(tiny_q8_0, tmp_path / "end.gguf", "tokenizer.ggml.eos_token_id", tokens[4])
    with Mixtral(path, n_ctx=64) as ending:
        completion = ending.generate(PROMPT, max_tokens=6, temperature=0)
    assert (completion.tokens, completion.finish_reason) == (tokens[: tokens.index(tokens[4])], "stop")


# --- Numbers ------------------------------------------------------------------------------------------------------


def test_logits_of_all_tokens_or_the_last(engine: Mixtral) -> None:
    ids = engine.tokenize(PROMPT)
    rows = engine.logits(ids)
    assert rows.shape == (len(ids), 4096)
    assert rows.dtype == np.float32
    last = engine.logits(ids, last_only=True)
    assert last.shape == (4096,)
    assert last.dtype == np.float32
    assert (last == rows[-1]).all()
    assert (engine.logits(ids[:5]) == rows[:5]).all()


@pytest.mark.parametrize("n_batch", [1, 7, 64])
def test_the_size_of_the_pieces_does_not_change_a_bit(engine: Mixtral, tiny_q8_0: Path, n_batch: int) -> None:
    ids = (engine.tokenize(PROMPT) * 8)[:100]
    with Mixtral(tiny_q8_0, n_ctx=100, n_batch=n_batch, n_threads=1) as other:
        assert (other.logits(ids) == engine.logits(ids)).all()
        assert (other.logits(ids[:99], last_only=True) == engine.logits(ids)[98]).all()


def test_a_cached_prefix_does_not_change_a_bit(fresh: Mixtral, engine: Mixtral) -> None:
    ids = engine.tokenize(PROMPT * 3)
    expected = engine.logits(ids)
    order = [10, 30, 30, 29, 12, len(ids), 11, 31, 1, 20]  # longer, equal, shorter than what is cached
    for n in order:
        assert (fresh.logits(ids[:n], last_only=True) == expected[n - 1]).all()
    changed = [*ids[:20], 500, *ids[21:]]
    assert (fresh.logits(changed, last_only=True) == engine.logits(changed)[-1]).all()
    assert (fresh.logits(ids, last_only=True) == expected[-1]).all()


def test_a_conversation_computes_only_what_is_new(fresh: Mixtral) -> None:
    first = fresh.generate(PROMPT, max_tokens=10, temperature=0)
    n = first.stats.prompt_tokens
    assert first.stats.cached_tokens == 0
    again = fresh.generate(PROMPT, max_tokens=10, temperature=0)
    assert again.stats.cached_tokens == n - 1  # the last one is computed for its logits
    assert again.tokens == first.tokens
    longer = fresh.generate([*fresh.tokenize(PROMPT), *first.tokens, 300, 301], max_tokens=1)
    assert longer.stats.cached_tokens == n + 9  # no pass has read the tenth token


def test_streams_in_turns_write_what_they_write_alone(engine: Mixtral) -> None:
    prompts = [PROMPT, "The wolf said", PROMPT + " and a son"]
    alone = [engine.generate(prompt, max_tokens=8, seed=1).tokens for prompt in prompts]
    streams = [engine.stream(prompt, max_tokens=8, seed=1) for prompt in prompts]
    for _ in range(8):
        for stream in streams:
            next(stream, None)
    for stream in streams:
        list(stream)
    assert [stream.tokens for stream in streams] == alone


def test_two_engines_work_at_once(engine: Mixtral, fresh: Mixtral) -> None:
    first, second = (
        engine.stream(PROMPT, max_tokens=8, temperature=0),
        fresh.stream(PROMPT, max_tokens=8, temperature=0),
    )
    for _ in range(8):
        next(first, None), next(second, None)
    assert first.tokens == second.tokens == engine.generate(PROMPT, max_tokens=8, temperature=0).tokens


def test_many_threads_share_an_engine(engine: Mixtral) -> None:
    prompts = [f"{PROMPT[: 10 + i]}" for i in range(6)]
    alone = [engine.generate(prompt, max_tokens=10, seed=1).text for prompt in prompts]
    together = [""] * len(prompts)

    def work(i: int) -> None:
        together[i] = (
            "".join(engine.stream(prompts[i], max_tokens=10, seed=1))
            if i % 2
            else engine.generate(prompts[i], max_tokens=10, seed=1).text
        )

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert together == alone


# --- Limits -------------------------------------------------------------------------------------------------------


def test_the_context_of_the_model_is_the_default(tiny_q8_0: Path) -> None:
    with Mixtral(tiny_q8_0) as engine:
        assert (engine.n_ctx, engine.config.n_ctx_train, engine.is_demo) == (2048, 2048, False)


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(tiny_q8_0: Path) -> None:
    with Mixtral(tiny_q8_0, n_ctx=16) as engine:
        calls: tuple[Callable[[list[int]], object], ...] = (engine.generate, engine.stream, engine.logits)
        for call in calls:
            with pytest.raises(ContextLengthError, match=r"16 .*17"):
                call([1] * 17)
        with pytest.raises(ContextLengthError, match=r"16 .*\d{5} or more"):
            engine.generate(PROMPT * 20_000)
        full = engine.generate([1] + [300] * 15, temperature=0)
        assert (len(full.tokens), full.finish_reason) == (1, "context")
        part = engine.generate([1] + [300] * 9, temperature=0, max_tokens=100)
        assert len(part.tokens) <= 7
        assert part.finish_reason in ("stop", "context")
        assert engine.generate([1] + [300] * 9, temperature=0, max_tokens=7, ignore_eos=True).finish_reason == "length"
        assert engine.generate([1] + [300] * 9, temperature=0, max_tokens=8, ignore_eos=True).finish_reason == "context"
        assert engine.logits([1] * 16).shape == (16, 4096)


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": -1},
        {"max_tokens": 1.5},
        {"temperature": -1},
        {"top_p": 2},
        {"top_k": -1},
        {"seed": -1},
        {"stop": ""},
        {"stop": ["a", ""]},
    ],
)
def test_parameters_out_of_range_are_refused_before_anything_is_computed(
    engine: Mixtral, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgumentError):
        engine.stream(PROMPT, **options)


def test_progress_is_told_while_a_long_prompt_is_read(tiny_q8_0: Path) -> None:
    told: list[tuple[int, int]] = []
    with Mixtral(tiny_q8_0, n_batch=8) as fresh:
        ids = fresh.tokenize(PROMPT * 4)
        n = len(ids)
        batches = [*range(8, n, 8), n]
        text = "".join(fresh.stream(ids, max_tokens=5, temperature=0, progress=lambda *done: told.append(done)))
        assert told == [(done, n) for done in batches]
        assert text == fresh.generate(ids, max_tokens=5, temperature=0).text
        told.clear()
        "".join(fresh.stream(ids, max_tokens=5, progress=lambda *done: told.append(done)))  # from the cache
        assert told == []


def test_no_tokens_asked_none_computed(fresh: Mixtral) -> None:
    completion = fresh.generate(PROMPT, max_tokens=0)
    assert (completion.text, completion.tokens, completion.finish_reason) == ("", [], "length")
    assert fresh.generate(PROMPT, max_tokens=1).stats.cached_tokens == 0


@pytest.mark.parametrize(
    "tokens", [[], [4096], [-1], [1 << 40], [1 << 70], [1.5], ["a"], [[1, 2]], [[1], [2, 3]], 5, None, [None]]
)
def test_tokens_that_are_no_ids_are_refused(engine: Mixtral, tokens: Any) -> None:
    calls: tuple[Callable[[Any], object], ...] = (engine.logits, engine.stream)
    for call in calls:
        with pytest.raises(InvalidArgumentError):
            call(tokens)


@pytest.mark.parametrize(
    "options",
    [
        *({"n_ctx": n} for n in (0, 2049, "5")),
        *({"n_threads": n} for n in (0, 257, 2.5, "2", True)),
        *({"n_batch": 0}, {"kv_type": "q4_0"}, {"kv_type": ["f16"]}, {"overrides": [1]}),
    ],
)
def test_options_out_of_range_are_refused(tiny_q8_0: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        Mixtral(tiny_q8_0, **options)


@pytest.mark.parametrize("kv_type", ["f32", "q8_0"])
def test_the_cache_type_is_chosen(tiny_q8_0: Path, engine: Mixtral, kv_type: str) -> None:
    with Mixtral(tiny_q8_0, n_ctx=64, kv_type=kv_type) as other:
        ids = engine.tokenize(PROMPT)
        a, b = other.logits(ids), engine.logits(ids)
        assert (a != b).any()
        assert np.abs(a - b).mean() < 0.02 * np.abs(b).mean()


def test_files_that_are_no_models_are_refused(tmp_path: Path, tiny_q8_0: Path) -> None:
    (tmp_path / "text.gguf").write_text("Once upon a time")
    for path in (tmp_path / "text.gguf", tmp_path / "missing.gguf", tmp_path):
        with pytest.raises(ModelFileError, match=str(path)):
            Mixtral(path)
    with pytest.raises(UnsupportedError, match="other"):
        Mixtral(edited(tiny_q8_0, tmp_path / "other.gguf", "tokenizer.ggml.model", np.frombuffer(b"other", np.uint8)))
    with pytest.raises(ModelConfigError, match="bos_token_id"):
        Mixtral(edited(tiny_q8_0, tmp_path / "bos.gguf", "tokenizer.ggml.bos_token_id", 4096))


def test_without_a_tokenizer_there_are_ids(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "bare", Shape(n_vocab=320), seed=1)
    quantize(tmp_path / "bare", tmp_path / "bare.gguf", "f32", no_tokenizer=True, progress=False)
    with Mixtral(tmp_path / "bare.gguf") as engine:
        completion = engine.generate([5, 6, 7], max_tokens=4, temperature=0)
        assert completion.text == ""
        assert completion.tokens[0] == engine.logits([5, 6, 7], last_only=True).argmax()
        assert len(completion.tokens) == 4
        calls: list[Callable[[], object]] = [
            lambda: engine.tokenize("text"),
            lambda: engine.detokenize([5]),
            lambda: engine.generate("text"),
            lambda: engine.generate([5], stop="text"),
        ]
        for call in calls:
            with pytest.raises(UnsupportedError, match="no tokenizer"):
                call()


# --- Control tokens -----------------------------------------------------------------------------------------------


def test_names_of_control_tokens_in_a_prompt_are_text_unless_asked(engine: Mixtral) -> None:
    text = "Once</s> upon"
    ids = engine.tokenize(text, parse_special=True)
    assert 2 in ids
    assert 2 not in engine.tokenize(text)
    want = engine.generate(ids, temperature=0, max_tokens=5)
    assert engine.generate(text, temperature=0, max_tokens=5, parse_special=True).tokens == want.tokens
    stream = engine.stream(text, temperature=0, max_tokens=5, parse_special=True)
    assert "".join(stream) == want.text
    assert stream.stats.prompt_tokens == len(ids)
    assert engine.generate(text, max_tokens=0).stats.prompt_tokens == len(engine.tokenize(text)) > len(ids)


def test_a_stop_string_that_names_a_control_token_stops_at_it(engine: Mixtral) -> None:
    """<s> has no text, so that no string could match; the bias makes it the next token."""
    bias = {1: 1000.0}
    assert engine.generate(PROMPT, temperature=0, max_tokens=3, logit_bias=bias).tokens == [1, 1, 1]
    for stop in ("<s>", ["king", "<s>"]):
        completion = engine.generate(PROMPT, temperature=0, max_tokens=3, logit_bias=bias, stop=stop)
        assert (completion.tokens, completion.text, completion.finish_reason) == ([], "", "stop")


def test_bytes_of_tokens_keep_their_space(engine: Mixtral) -> None:
    ids = engine.tokenize("Once upon a time", add_bos=False)
    assert b"".join(engine.token_bytes(id) for id in ids) == b" Once upon a time"
    assert engine.token_bytes(2) == b""
    with pytest.raises(InvalidArgumentError):
        engine.token_bytes(4096)


# --- What progress may do -----------------------------------------------------------------------------------------


def test_progress_that_raises_stop_iteration_does_not_end_the_text(tiny_q8_0: Path) -> None:
    def stop(*_: int) -> None:
        raise StopIteration

    with Mixtral(tiny_q8_0, n_ctx=256, n_batch=16) as engine, pytest.raises(RuntimeError, match="StopIteration"):
        list(engine.stream([5] * 100, progress=stop, max_tokens=3))


def test_tokens_that_end_a_text_are_none_of_it(tiny_q8_0: Path) -> None:
    with Mixtral(tiny_q8_0, n_threads=1) as model:
        whole = model.generate("Once upon a time", max_tokens=30, seed=1, ignore_eos=True)
        end = whole.tokens[12]
        n = whole.tokens.index(end)
        for more in ({}, {"ignore_eos": True, "min_tokens": 30}):
            text = model.generate("Once upon a time", max_tokens=30, seed=1, stop_token_ids=[end], **more)
            assert (text.tokens, text.finish_reason, text.stop_reason) == (whole.tokens[:n], "stop", end)
            assert whole.text.startswith(text.text)
        assert model.generate("Once", max_tokens=3, seed=1, stop_token_ids=[]).tokens
        with pytest.raises(InvalidArgumentError, match=r"from 0 to 4095 in stop_token_ids, found 4096"):
            model.generate("Once", stop_token_ids=[4096])


def test_a_text_that_is_too_long_has_both_numbers(tiny_q8_0: Path) -> None:
    with Mixtral(tiny_q8_0, n_threads=1, n_ctx=64) as model:
        with pytest.raises(ContextLengthError) as caught:
            model.generate([300] * 70)
        assert (caught.value.n_tokens, caught.value.n_ctx) == (70, 64)
        with pytest.raises(ContextLengthError) as caught:
            model.generate("word " * 5000)
        assert caught.value.n_tokens > caught.value.n_ctx == 64
