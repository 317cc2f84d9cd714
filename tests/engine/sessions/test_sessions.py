"""Sessions: what is saved comes back with the same bits, to the model that it is of."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from pymixtral import Mixtral, ops
from pymixtral.engine import sessions
from pymixtral.errors import (
    ClosedError,
    ContextLengthError,
)
from pymixtral.ops import PAGE
from support.sessions import refused
from support.texts import same

PROMPT = "Once upon a time there was a king who had three daughters, and the youngest was so fair. "
OPTIONS: dict[str, Any] = {"max_tokens": 12, "seed": 3, "logprobs": 2}


# --- There and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_type", ["f16", "f32", "q8_0"])
@pytest.mark.parametrize("n", [1, 63, 64, 65, 150, 192, 255])
def test_a_text_goes_on_with_the_same_bits(
    tiny_q8_0: Path, tmp_path: Path, ids: list[int], kv_type: str, n: int
) -> None:
    path = tmp_path / "a.session"
    text = (ids * 2)[:n]
    with Mixtral(tiny_q8_0, n_ctx=256, kv_type=kv_type, n_threads=1) as model:
        expected = model.generate([*text, 300], **OPTIONS)
        model.save_session(path, text)
    with Mixtral(tiny_q8_0, n_ctx=256, kv_type=kv_type, n_threads=2) as model:
        assert model.load_session(path) == text
        assert model.stats().prompt_tokens == 0
        found = model.generate([*text, 300], **OPTIONS)
        same(found, expected)
        assert found.stats.cached_tokens == n
        assert model.stats().prompt_tokens == 1


def test_a_text_as_long_as_the_context(tiny_q8_0: Path, tmp_path: Path, ids: list[int]) -> None:
    text = (ids * 2)[:256]
    with Mixtral(tiny_q8_0, n_ctx=256) as model:
        expected = model.generate(text, **OPTIONS)
        model.save_session(tmp_path / "a.session", text)
        model.forget()
        assert model.load_session(tmp_path / "a.session") == text
        found = model.generate(text, **OPTIONS)
        same(found, expected)
        assert found.stats.cached_tokens == 255
        with pytest.raises(ContextLengthError, match=r"256 tokens.*found 257"):
            model.save_session(tmp_path / "b.session", [*text, 1])


def test_a_conversation_computes_only_what_is_new(model: Mixtral, tmp_path: Path) -> None:
    model.forget()
    prompt = model.tokenize(PROMPT * 2)
    answer = model.generate(prompt, max_tokens=30, seed=1)
    text = [*prompt, *answer.tokens]
    before = model.stats().passes
    model.save_session(tmp_path / "a.session", text)
    assert model.stats().passes - before <= 1  # the last token drawn was never computed
    model.save_session(tmp_path / "b.session", text)
    assert model.stats().passes - before <= 1
    assert (tmp_path / "a.session").read_bytes() == (tmp_path / "b.session").read_bytes()
    model.forget()
    assert model.load_session(tmp_path / "a.session") == text
    assert model.generate([*text, 300, 301], max_tokens=1).stats.cached_tokens == len(text)


def test_what_is_not_in_the_cache_is_computed(model: Mixtral, saved: Path, ids: list[int], tmp_path: Path) -> None:
    for n_cached in (0, 30, 64, 100):
        model.forget()
        if n_cached:
            model.generate(ids[:n_cached], max_tokens=0)
            model.logits(ids[:n_cached], last_only=True)
        path = tmp_path / f"{n_cached}.session"
        model.save_session(path, ids)
        assert path.read_bytes() == saved.read_bytes()


def test_a_text_in_place_of_ids(model: Mixtral, tmp_path: Path) -> None:
    model.save_session(tmp_path / "a.session", PROMPT)
    assert model.load_session(tmp_path / "a.session") == model.tokenize(PROMPT)


def test_a_file_has_nothing_of_other_texts(tiny_q8_0: Path, tmp_path: Path, saved: Path, ids: list[int]) -> None:
    """The last page's free positions may have been another text's."""
    for kv_type in ("f16", "f32", "q8_0"):
        files = []
        for others in (0, 4):
            with Mixtral(tiny_q8_0, n_ctx=256, kv_type=kv_type) as model:
                for i in range(others):
                    model.generate([1, *range(300 + i, 500 + i)], max_tokens=40, seed=i)
                    model.forget()
                files.append(tmp_path / f"{kv_type}-{others}.session")
                model.save_session(files[-1], ids)
        assert files[0].read_bytes() == files[1].read_bytes()
    assert (tmp_path / "f16-0.session").read_bytes() == saved.read_bytes()


def test_two_continuations_share_the_pages(model: Mixtral, saved: Path, ids: list[int]) -> None:
    model.forget()
    model.load_session(saved)
    assert model.stats().cached_pages == 3
    streams = [model.stream([*ids, first], max_tokens=20, seed=1, ignore_eos=True) for first in (300, 400)]
    used = []
    for _ in zip(*streams, strict=False):
        used.append(model.stats().used_pages)
    assert [stream.stats.cached_tokens for stream in streams] == [150, 150]
    assert max(used) <= 2 + 1 + 2  # two pages of both, the session's last one, and a copy of that for each
    list(streams[0])
    list(streams[1])
    assert model.stats().cached_pages <= 5
    assert model.generate([*ids, 300], max_tokens=20, seed=1, ignore_eos=True).tokens == streams[0].tokens


def test_pages_that_are_there_already_stay(model: Mixtral, saved: Path, ids: list[int]) -> None:
    model.forget()
    model.logits(ids[:100], last_only=True)
    model.load_session(saved)
    assert model.stats().cached_pages == 3
    model.load_session(saved)
    assert model.stats().cached_pages == 3
    assert model.generate([*ids, 1], max_tokens=1).stats.cached_tokens == 150


# --- Memory ---------------------------------------------------------------------------------------


def page_bytes(model: Mixtral) -> int:
    config = model.config
    return 64 * 2 * config.n_layers * config.n_kv_heads * config.head_dim * 2


def test_loading_evicts_what_was_used_least(tiny_q8_0: Path, model: Mixtral, saved: Path, ids: list[int]) -> None:
    with Mixtral(tiny_q8_0, n_ctx=256, cache_bytes=5 * page_bytes(model)) as small:
        small.generate([1, *range(300, 540)], max_tokens=1)
        assert small.stats().cached_pages >= 4
        small.load_session(saved)
        assert small.generate([*ids, 300], **OPTIONS).stats.cached_tokens == 150


@pytest.mark.parametrize("group", [1, 1 << 26])
def test_running_texts_keep_their_pages(
    tiny_q8_0: Path, model: Mixtral, saved: Path, ids: list[int], monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    monkeypatch.setattr(sessions, "_GROUP_BYTES", group)
    other = [1, *range(300, 450)]
    expected = model.generate(other, max_tokens=60, seed=1, ignore_eos=True)
    with Mixtral(tiny_q8_0, n_ctx=256, cache_bytes=5 * page_bytes(model)) as small:
        stream = small.stream(other, max_tokens=60, seed=1, ignore_eos=True)
        next(stream)
        assert small.load_session(saved) == ids  # as far as there is room, perhaps nothing
        assert small.stats().preempted == 0
        list(stream)
        assert stream.tokens == expected.tokens
        same(small.generate([*ids, 300], **OPTIONS), model.generate([*ids, 300], **OPTIONS))


@pytest.mark.parametrize("group", [1, 1 << 26])
def test_saving_and_loading_among_other_texts(
    tiny_q8_0: Path,
    model: Mixtral,
    saved: Path,
    ids: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    group: int,
) -> None:
    """In a cache that is too small for all, with pages in groups of one and of all."""
    monkeypatch.setattr(sessions, "_GROUP_BYTES", group)
    prompts = [[1, *range(300 + 7 * i, 400 + 7 * i)] for i in range(4)]
    expected = [model.generate(prompt, max_tokens=50, seed=1).tokens for prompt in prompts]
    found: dict[int, list[int]] = {}
    with Mixtral(tiny_q8_0, n_ctx=256, cache_bytes=6 * page_bytes(model)) as small:

        def ask(i: int) -> None:
            for _ in range(3):
                found[i] = small.generate(prompts[i], max_tokens=50, seed=1).tokens

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for i in range(4):
            small.save_session(tmp_path / f"{i}.session", ids)
            assert small.load_session(tmp_path / f"{i}.session") == ids
        for thread in threads:
            thread.join()
    assert [found[i] for i in range(4)] == expected
    assert {(tmp_path / f"{i}.session").read_bytes() for i in range(4)} == {saved.read_bytes()}


# --- What is refused ------------------------------------------------------------------------------


def test_a_session_longer_than_the_context(tiny_q8_0: Path, saved: Path) -> None:
    with (
        Mixtral(tiny_q8_0, n_ctx=128) as model,
        pytest.raises(ContextLengthError, match=r"150\.session: expected .* at most 128 tokens .*, found 150: open"),
    ):
        model.load_session(saved)


def test_a_session_of_another_model(tiny_q4_0: Path, tiny_q8_0: Path, saved: Path, tmp_path: Path) -> None:
    with Mixtral(tiny_q4_0, n_ctx=256) as model:
        refused(model, saved, "expected a session of the open model, found one of another model")
    trained = tmp_path / "trained.gguf"  # the same header, other weights
    data = bytearray(tiny_q8_0.read_bytes())
    data[next(t.data_offset for t in GGUFReader(tiny_q8_0).tensors if t.name == "blk.1.attn_q.weight") + 100] ^= 1
    trained.write_bytes(data)
    with Mixtral(trained, n_ctx=256) as model:
        refused(model, saved, "another model")
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(tiny_q8_0.read_bytes())
    with Mixtral(renamed, n_ctx=256) as model:
        assert len(model.load_session(saved)) == 150


def test_a_session_of_other_options(
    tiny_q8_0: Path, model: Mixtral, saved: Path, ids: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Mixtral(tiny_q8_0, n_ctx=256, kv_type="q8_0") as other:
        refused(other, saved, "kv_type q8_0, found f16: open")
    with Mixtral(tiny_q8_0, n_ctx=256, experts_used=1) as other:
        refused(other, saved, "overrides, experts_used, expert_min_p and activations .* found one with others")
        other.save_session(tmp_path / "a.session", ids)
        refused(model, tmp_path / "a.session", "overrides, experts_used, expert_min_p and activations")
    experts = ({"experts_used": [2, 1, 2, 2]}, {"experts_used": [2, 2, 1, 2]}, {"expert_min_p": 0.5})
    for options in (*experts, {"activations": "int16"}):
        with Mixtral(tiny_q8_0, n_ctx=256, **options) as other:
            refused(other, saved, "experts_used, expert_min_p and activations .* found one with others")
            other.save_session(tmp_path / "b.session", ids, force=True)
            assert other.load_session(tmp_path / "b.session") == ids
            refused(model, tmp_path / "b.session", "experts_used, expert_min_p and activations")
    with Mixtral(tiny_q8_0, n_ctx=256, experts_used=[1] * 4) as other:
        assert other.load_session(tmp_path / "a.session") == ids
    with Mixtral(tiny_q8_0, n_ctx=256, overrides={"llama.expert_used_count": 1}) as other:
        assert other.load_session(tmp_path / "a.session") == ids
    with Mixtral(tiny_q8_0, n_ctx=256, overrides={"llama.rope.freq_base": 5e5}) as other:
        refused(other, saved, "overrides, experts_used, expert_min_p and activations")
    # what changes nothing of a key or value
    for given_twice in (
        {"tokenizer.ggml.add_bos_token": False},
        {"llama.expert_used_count": model.config.n_experts_used},
    ):
        with Mixtral(tiny_q8_0, n_ctx=256, overrides=given_twice) as other:
            assert other.load_session(saved) == ids
    monkeypatch.setattr(ops, "NUMERICS_VERSION", 4)
    refused(model, saved, "expected a session of version 4 of the numerics contract, found version 3")


def test_a_closed_model(tiny_q8_0: Path, saved: Path, tmp_path: Path) -> None:
    model = Mixtral(tiny_q8_0, n_ctx=256)
    model.close()
    with pytest.raises(ClosedError):
        model.save_session(tmp_path / "a.session", [1, 2])
    with pytest.raises(ClosedError):
        model.load_session(saved)
    assert PAGE == 64
