"""Byte-level BPE against the package tokenizers, on vocabularies that it trains here for each name of
`tokenizer.ggml.pre`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Oracle

from pymixtral.errors import InvalidArgumentError, ModelConfigError, UnsupportedError
from pymixtral.text import bpe
from pymixtral.text.pretokenizers import PRE_TOKENIZERS
from pymixtral.text.tokenizer import END_NAMES, Tokenizer
from support.bpe import (
    ADDED_NAMES,
    CHARACTERS,
    CONTROL_NAMES,
    CORPUS,
    HARD,
    SPLITS,
    metadata_of,
    strings,
    trained,
    without_special,
)

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@cache
def pair(pre: str) -> tuple[Tokenizer, Oracle, Oracle]:
    """Ours, the oracle that takes names of control tokens as text, and the one that does not."""
    oracle = trained(pre)
    return Tokenizer.from_metadata(metadata_of(oracle, pre)), without_special(oracle), oracle


every_pre = pytest.mark.parametrize("pre", SPLITS)
GPT2 = pair("gpt-2")[0]

TEXTS = st.lists(
    st.one_of(st.text(st.sampled_from(CHARACTERS), max_size=8), st.sampled_from(HARD), st.text("aB1' \n.", max_size=8)),
    max_size=10,
).map("".join)


# --- Equal to the oracle ------------------------------------------------------------------------------------------


@every_pre
def test_generated_texts_equal_the_oracle_s(pre: str) -> None:
    ours, plain, special = pair(pre)
    for text in [*strings(2500), *CORPUS[:3], ""]:
        ids = ours.encode(text, add_bos=False)
        assert ids == plain.encode(text).ids, ascii(text)
        assert ours.encode(text, add_bos=False, parse_special=True) == special.encode(text).ids, ascii(text)
        assert ours.decode(ids) == text
        assert ours.fewest_tokens(text) <= len(ids)


@every_pre
def test_a_text_is_cut_where_the_list_of_patterns_cuts_it(pre: str) -> None:
    """Also where no merge would tell."""
    pieces = regex.compile(PRE_TOKENIZERS[pre].pattern).findall
    cut = trained(pre).pre_tokenizer.pre_tokenize_str
    numbers = ["1234567", "12\u066345", "\u06631234\u0664", " 123", "  1", "x1y22z333", "\n\t5", "1.5 $20+3"]
    for text in [*strings(1500, seed=6), *HARD, *numbers]:
        assert pieces(text) == [text[begin:end] for _, (begin, end) in cut(text)], ascii(text)


@every_pre
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_any_text(pre: str, text: str) -> None:
    ours, plain, _ = pair(pre)
    ids = ours.encode(text, add_bos=False)
    assert ids == plain.encode(text).ids
    assert ours.decode(ids) == text


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_unicode_comes_back(text: str) -> None:
    for pre in SPLITS:
        ours = pair(pre)[0]
        assert ours.decode(ours.encode(text)) == text


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.one_of(st.integers(0, GPT2.n_vocab - 1), st.integers(0, 256)), max_size=30))
def test_stream_equals_decode_for_any_ids(ids: list[int]) -> None:
    stream = GPT2.stream()
    pushed = [stream.push(id) for id in ids]
    whole = "".join(pushed) + stream.flush()
    assert whole == GPT2.decode(ids)
    for i in range(len(ids)):
        assert whole.startswith("".join(pushed[:i]))
    if not any(GPT2.token_bytes(id) == b"" for id in ids):  # a control token ends an incomplete character
        data = b"".join(map(GPT2.token_bytes, ids))
        assert whole == data.decode("utf-8", "pymixtral.byte")
        if "\ufffd" not in whole:
            assert whole == pair("gpt-2")[2].decode(ids, skip_special_tokens=True)


def test_a_control_token_ends_an_incomplete_character() -> None:
    first = GPT2.encode("\u6df7", add_bos=False)[0]
    end = GPT2.control_id("<|im_end|>")
    assert end is not None
    assert GPT2.decode([first, end, *GPT2.encode("a", add_bos=False)]) in ("\ufffda", "\ufffd\ufffda")


# --- Names of tokens ----------------------------------------------------------------------------------------------


def test_control_names_are_text_and_user_defined_names_are_tokens() -> None:
    begin, start, end = (GPT2.control_id(name) for name in CONTROL_NAMES)
    tool, words = (GPT2.encode(name, add_bos=False) for name in ADDED_NAMES)
    assert len(tool) == len(words) == 1
    assert (GPT2.token_bytes(tool[0]), GPT2.token_bytes(words[0])) == (b"<tool>", b"two words")
    text = "<|im_start|>user<tool>a two words<|im_end|>"
    assert not {begin, start, end} & set(GPT2.encode(text))
    assert tool[0] in GPT2.encode(text)
    parsed = GPT2.encode(text, parse_special=True)
    assert (parsed[0], parsed[-1]) == (start, end)
    assert GPT2.decode(parsed) == "user<tool>a two words"
    assert GPT2.control_names(text) == ["<|im_start|>", "<|im_end|>"]
    assert not GPT2.has_text(parsed[0])


def test_begin_of_text_follows_the_file_then_the_name() -> None:
    oracle = trained("llama-bpe")
    for pre, key, expected in (
        ("gpt-2", None, False),
        ("gpt-2", True, True),
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
        ("tekken", None, True),
        ("smollm", None, False),
    ):
        tokenizer = Tokenizer.from_metadata(metadata_of(oracle, pre, add_bos_token=key))
        assert (tokenizer.encode("")[:1] == [tokenizer.bos_id]) is expected
        assert (tokenizer.encode("a")[0] == tokenizer.bos_id) is expected
        assert tokenizer.encode("<|begin|>a", parse_special=True).count(tokenizer.bos_id or 0) == 1
    bare = Tokenizer.from_metadata(metadata_of(oracle, "llama-bpe", bos_token_id=None))
    assert bare.bos_id is None
    assert bare.encode("") == []


def test_end_tokens_are_those_of_the_keys_and_of_known_names() -> None:
    metadata = metadata_of(trained("gpt-2"), "gpt-2", eos_token_id=None)
    end = metadata["tokenizer.ggml.tokens"].index("<|im_end|>")
    assert Tokenizer.from_metadata(metadata).eos_ids == {end}
    metadata["tokenizer.ggml.eot_token_id"] = 7
    assert Tokenizer.from_metadata(metadata).eos_ids == {7, end}
    metadata["tokenizer.ggml.token_type"][end] = USER_DEFINED  # text, which a user may write
    assert Tokenizer.from_metadata(metadata).eos_ids == {7}
    for name in END_NAMES:
        metadata["tokenizer.ggml.token_type"][end] = CONTROL
        metadata["tokenizer.ggml.tokens"][end] = name
        assert Tokenizer.from_metadata(metadata).eos_ids == {7, end}


# --- Vocabularies ---------------------------------------------------------------------------------------------------


def small(merges: list[str], more: list[tuple[str, int]] = [], **keys: Any) -> Tokenizer:  # noqa: B006  # not changed
    """The bytes, "ab", "bc", "abc", and more."""
    pieces = [*((character, NORMAL) for character in bpe.ALPHABET), ("ab", NORMAL), ("bc", NORMAL), ("abc", NORMAL)]
    pieces += more
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [piece for piece, _ in pieces],
        "token_type": [kind for _, kind in pieces],
        "merges": merges,
        **keys,
    }
    return Tokenizer.from_metadata({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})


def test_the_first_merge_counts_and_of_one_the_leftmost() -> None:
    assert small(["a b", "b c"]).encode("abc") == [256, ord("c")]
    assert small(["b c", "a b"]).encode("abc") == [ord("a"), 257]
    assert small(["b c", "a bc"]).encode("abcab") == [258, ord("a"), ord("b")]
    assert small(["a a"], [("aa", NORMAL)]).encode("aaaaa") == [259, 259, ord("a")]


def test_a_whole_piece_is_a_token_where_the_name_says_so() -> None:
    assert small(["a b"]).encode("abc") == [256, ord("c")]
    assert small(["a b"], pre="llama-bpe").encode("abc abc") == [258, ord(" "), 256, ord("c")]


def test_control_tokens_come_from_no_text() -> None:
    """Also where a piece is the name of one and whole pieces are looked up."""
    tokenizer = small([], [("abcd", CONTROL), ("[PAD1]", UNUSED), ("", NORMAL), ("", NORMAL)], pre="llama-bpe")
    assert tokenizer.encode("abcd") == [*b"abcd"]
    assert tokenizer.decode([259, 260, 261, 262]) == ""


def test_bytes_without_a_token_are_left_out() -> None:
    """SmolLM2 has no token for byte 4, and no text has byte 0xff."""
    n = ord("a")
    tokenizer = small([], [], tokens=[*bpe.ALPHABET[:n], "<none>", *bpe.ALPHABET[n + 1 :]], token_type=[1] * 256)
    assert tokenizer.encode("babab") == [*b"bbb"]
    assert tokenizer.fewest_tokens("a" * 1000) == 0
    assert tokenizer.fewest_tokens("ba" * 1000) == -(-1000 // len("<none>"))
    assert tokenizer.decode([n]) == "<none>"


def test_only_a_normal_token_stands_for_a_byte() -> None:
    """DeepSeek's files have letters of Latin-1 as user-defined tokens: these are found by name."""
    n = 0xE9
    kinds = [NORMAL] * n + [USER_DEFINED] + [NORMAL] * (255 - n)
    tokenizer = small([], [], tokens=[*bpe.ALPHABET], token_type=kinds)
    assert tokenizer.encode("\u00e9") == [n]
    assert tokenizer.token_bytes(n) == b"\xc3\xa9"
    assert tokenizer.encode("\u9999") == [*"\u9999".encode()[1:]]


def test_a_normal_token_that_is_not_of_bytes_is_its_own_text() -> None:
    tokenizer = small([], [("\u2122", NORMAL)], pre="llama-bpe")
    assert tokenizer.decode([259]) == "\u2122"
    assert tokenizer.decode(tokenizer.encode("\u2122")) == "\u2122"


def test_a_token_is_shown_as_its_text() -> None:
    tokenizer = small([], [("\u0120the", NORMAL), ("<tool use>", USER_DEFINED), ("<s>", CONTROL)])
    shown = [tokenizer.piece(id) for id in (ord("a"), 0xE4, ord("\n"), 259, 260, 261)]
    assert shown == ["a", r"\xe4", "\n", "\u2581the", "<tool\u2581use>", "<s>"]


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_name_is_read(pre: str) -> None:
    text = "Don't  stop: 12345 \u6df7\u5408,\n\n  x"
    tokenizer = small([], pre=pre)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_file_without_a_name_is_default() -> None:
    oracle = trained("default")
    without, default = (Tokenizer.from_metadata(metadata_of(oracle, pre)) for pre in (None, "default"))
    for text in strings(200):
        assert without.encode(text) == default.encode(text)


# --- Long texts ---------------------------------------------------------------------------------------------------


@every_pre
def test_parts_are_the_whole(pre: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = pair(pre)[0]
    for text in [*strings(200), CORPUS[0], CORPUS[1]]:
        whole = ours.encode(text)
        for part in (1, 7, 64):
            with monkeypatch.context() as patch:
                patch.setattr(bpe, "PART", part)
                parts = list(ours.encode_parts(text))
            assert [id for ids in parts for id in ids] == whole
        assert len(parts) > 1 or len(text) < 1000


class Counted(dict[int, int]):
    n = 0

    def get(self, key: int, default: Any = None) -> Any:
        self.n += 1
        return super().get(key, default)


@pytest.mark.parametrize("letters", ["a", "ab", "the", "onceuponatime"])
def test_the_work_for_a_piece_is_not_quadratic_in_its_length(letters: str) -> None:
    """Each symbol is looked up a few times, in a piece of 1,000 letters as in one of 200,000."""
    model = bpe.BytePairs(*lists("gpt-2"))
    model._ranks = ranks = Counted(model._ranks)
    work = []
    for n in (1000, 200_000):
        ranks.n = 0
        ids = model.encode_piece((letters * n)[:n])
        assert len(ids) < n
        work.append(ranks.n / n)
    assert work[1] < 1.1 * work[0]
    assert work[1] < 5


def lists(pre: str) -> Any:
    from pymixtral.text.metadata import Keys

    keys = Keys(metadata_of(trained(pre), pre), "a file")
    pieces = keys.pieces()
    types = keys.types(len(pieces))
    return pieces, types, keys.merges(pieces, types), keys.pre_tokenizer()


@every_pre
def test_long_runs_take_no_longer_than_their_length(pre: str) -> None:
    """Patterns that go back over a run from each of its characters would take minutes for these."""
    ours = pair(pre)[0]
    n = 50_000
    for text in (" " * n, " " * n + "x", "\n" * n + " " * n + "x", " \n" * n, "A" * n, "\u02b0" * n + "A" * n, "7" * n):
        assert ours.decode(ours.encode(text)) == text
    for text in ("\u0301" * n, "?" * n + " ", "'" * n, "\u6df7" * n, "aA" * n, "\u6df7A" * n, "\u6df7" + "A" * n):
        assert ours.decode(ours.encode(text)) == text


def test_the_cache_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, plain, _ = pair("smollm")
    text = CORPUS[0]
    monkeypatch.setattr(bpe, "CACHED_PIECES", 10)
    monkeypatch.setattr(bpe, "CACHED_CHARACTERS", 4)
    fresh = Tokenizer.from_metadata(metadata_of(trained("smollm"), "smollm"))
    assert fresh.encode(text) == tokenizer.encode(text) == plain.encode(text).ids
    cache: Any = fresh._model._cache  # type: ignore[attr-defined]
    assert 1 <= len(cache) <= 10
    assert max(map(len, cache)) <= 4


# --- Hostile files and texts --------------------------------------------------------------------------------------


def test_text_that_is_not_unicode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "PART", 4)
    with pytest.raises(InvalidArgumentError, match="character 12"):
        GPT2.encode("<tool>a b c \udcff")


def test_an_unknown_name_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match=r"tokenizer\.ggml\.pre.*found 'kimi-k2'"):
        small([], pre="kimi-k2")


HOSTILE: dict[str, dict[str, Any]] = {
    "no merges": {"merges": None},
    "merges not a list": {"merges": "a b"},
    "merges of numbers": {"merges": [1, 2]},
    "a merge without a space": {"merges": ["ab"]},
    "a merge of three": {"merges": ["a b c"]},
    "a merge with two spaces": {"merges": ["a  b"]},
    "an empty merge": {"merges": [""]},
    "a merge of half": {"merges": [" a"]},
    "a merge of an unknown token": {"merges": ["a b", "zz a"]},
    "a merge to an unknown token": {"merges": ["a z"]},
    "a merge not of bytes": {"merges": ["\u2122 a"]},
    "a merge to a control token": {"merges": ["x y"]},
    "a merge twice": {"merges": ["a b", "b c", "a b"]},
    "a token twice": {"tokens": ["a", "b", "a"], "token_type": [1, 1, 1], "merges": []},
    "no types": {"token_type": None},
    "types too short": {"token_type": [1]},
    "type 0": {"token_type": [0] * 260},
    "pre a number": {"pre": 3},
    "pre a list": {"pre": ["gpt-2"]},
    "bos beyond": {"bos_token_id": 260},
    "eos beyond": {"eos_token_id": 1 << 31},
    "eot negative": {"eot_token_id": -1},
    "eom text": {"eom_token_id": "2"},
    "add_bos without a bos": {"add_bos_token": True},
    "add_bos a number": {"add_bos_token": 1},
    "no tokens": {"tokens": []},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_lists_that_make_no_sense_are_refused_in_one_line(case: str) -> None:
    with pytest.raises(ModelConfigError) as caught:
        small(**{"merges": ["a b"], "more": [("xy", CONTROL)], **HOSTILE[case]})
    assert str(caught.value).startswith("the model file: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


PIECES = st.sampled_from([*"abc", "ab", "bc", "abc", "\u0120", "\u2122", "", " ", "<s>"])
KINDS = st.integers(0, 7)


@settings(max_examples=300, deadline=None)
@given(
    lists=st.lists(st.tuples(PIECES, KINDS), max_size=12),
    merges=st.lists(st.tuples(PIECES, PIECES).map(" ".join), max_size=5),
    text=TEXTS,
)
def test_any_lists_are_read_or_refused(lists: list[tuple[str, int]], merges: list[str], text: str) -> None:
    try:
        tokenizer = small(
            merges, tokens=[piece for piece, _ in lists], token_type=np.array([kind for _, kind in lists], np.int32)
        )
    except ModelConfigError:
        return
    ids = tokenizer.encode(text)
    assert tokenizer.fewest_tokens(text) <= len(ids)
    assert set(tokenizer.decode(ids)) <= set(text)
