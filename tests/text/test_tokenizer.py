"""The tokenizer against sentencepiece itself, on the test checkpoint's own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from pymixtral.errors import InvalidArgumentError, ModelConfigError, UnsupportedError
from pymixtral.text import sentencepiece
from pymixtral.text.names import Names
from pymixtral.text.tokenizer import Tokenizer
from support.paths import DATA

MODEL = DATA / "tiny-mixtral" / "tokenizer.model"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def metadata_of(pieces: list[tuple[str, float, int]], **more: Any) -> dict[str, Any]:
    """The metadata of a GGUF file for (piece, score, type) triples."""
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece for piece, _, _ in pieces],
        "tokenizer.ggml.scores": np.array([score for _, score, _ in pieces], np.float32),
        "tokenizer.ggml.token_type": np.array([kind for _, _, kind in pieces], np.int32),
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


def tiny_pieces() -> list[tuple[str, float, int]]:
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(MODEL.read_bytes())
    return [(piece.piece, piece.score, piece.type) for piece in model.pieces]


PIECES = tiny_pieces()
ORACLE = SentencePieceProcessor(model_file=str(MODEL))
TINY = Tokenizer.from_metadata(metadata_of(PIECES))

# Text as people write it, and text that looks like what is special to the tokenizer.
TEXTS = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        st.text("abc \n\t\u2581\u00e9\u4f60\U0001f600\0", max_size=20),
        st.sampled_from([" ", "the", "once upon a time", "</s>", "<s>", "<unk>", "<0x41>", "\u2581\u2581"]),
    ),
    max_size=8,
).map("".join)
IDS = st.lists(
    st.one_of(
        st.integers(0, len(PIECES) - 1),
        st.integers(3, 258),
        st.sampled_from([0, 1, 2, ORACLE.piece_to_id("\u2581"), 35, 261]),
    ),
    max_size=30,
)


def with_pieces(*more: tuple[str, float, int], **keys: Any) -> Tokenizer:
    return Tokenizer.from_metadata(metadata_of(PIECES + list(more), **keys))


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_encode_equals_sentencepiece(text: str) -> None:
    assert TINY.encode(text, add_bos=False) == ORACLE.encode(text)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_decode_returns_the_encoded_text(text: str) -> None:
    assert TINY.decode(TINY.encode(text)) == text.replace(
        "\u2581", " "
    )  # the one character that SentencePiece gives away


@settings(max_examples=400, deadline=None)
@given(IDS)
def test_decode_equals_sentencepiece_for_any_ids(ids: list[int]) -> None:
    assert TINY.decode(ids) == ORACLE.decode(ids)


@settings(max_examples=400, deadline=None)
@given(IDS, st.booleans())
def test_stream_equals_decode_and_never_splits_a_character(ids: list[int], begins_text: bool) -> None:
    stream = TINY.stream(begins_text=begins_text)
    pushed = [stream.push(i) for i in ids]
    rest = stream.flush()
    whole = "".join(pushed) + rest
    if begins_text:
        assert whole == TINY.decode(ids)
    else:  # decode() drops the space only where a text begins
        anchor = TINY.encode("a", add_bos=False)
        assert "a" + whole == TINY.decode(anchor + ids)
    for i in range(len(ids) + 1):  # what was pushed is always the beginning of the final text
        assert whole.startswith("".join(pushed[:i]))


def test_bytes_are_held_until_their_character_is_complete_or_known_to_be_invalid() -> None:
    def byte(value: int) -> int:
        return ORACLE.piece_to_id(f"<0x{value:02X}>")

    stream = TINY.stream()
    assert [stream.push(byte(b)) for b in "\u4f60".encode()] == ["", "", "\u4f60"]
    assert [stream.push(byte(b)) for b in (0xE4, 0xBD, 0x41)] == ["", "", "\ufffd\ufffdA"]
    assert stream.push(byte(0xFF)) == "\ufffd"
    assert (stream.push(byte(0xE4)), stream.push(1)) == ("", "\ufffd")  # a control token cuts a character short
    assert (stream.push(byte(0xF0)), stream.push(byte(0x9F)), stream.flush()) == ("", "", "\ufffd\ufffd")


def test_a_continuation_keeps_its_first_space() -> None:
    prompt, answer = TINY.encode("once"), TINY.encode("upon", add_bos=False)
    stream = TINY.stream(begins_text=False)
    continued = "".join(stream.push(i) for i in answer) + stream.flush()
    assert continued == " upon"
    assert TINY.decode(prompt) + continued == TINY.decode(prompt + answer) == "once upon"


def test_control_tokens_written_as_text_are_text() -> None:
    tokenizer = with_pieces(("\u2603", 0.0, CONTROL), ("[INST]", 0.0, CONTROL))
    for text in ("<s></s><unk>", "\u2603", "[INST]"):
        ids = tokenizer.encode(text, add_bos=False)
        assert not set(ids) & {0, 1, 2, 4096, 4097}
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode([1, 4096, 4097, 2]) == ""


def test_control_tokens_are_parsed_where_asked() -> None:
    tokenizer = with_pieces(("[A]", 0.0, CONTROL), ("[A]b", 0.0, CONTROL), ("[A]", 0.0, CONTROL), ("", 0.0, CONTROL))
    a, b = (tokenizer.encode(text, add_bos=False) for text in "ab")
    assert tokenizer.encode("a[A]b[A]a</s><unk>", parse_special=True) == [
        1,
        *a,
        4097,
        4096,
        *a,
        2,
        *tokenizer.encode("<unk>")[1:],
    ]
    assert tokenizer.encode("<s><s>b", parse_special=True) == [1, 1, *b]  # the template's own are kept
    assert tokenizer.encode("<s>b") != [1, *b]
    with pytest.raises(InvalidArgumentError, match="character 6"):
        tokenizer.encode("<s>[A]\udcff", parse_special=True)


def test_the_fewest_tokens_of_a_text() -> None:
    assert TINY.fewest_tokens("") == 0
    longest = max((piece for piece, _, _ in PIECES), key=len)
    assert TINY.fewest_tokens("x" * (7 * len(longest) + 1)) == 8
    unknown = Tokenizer.from_metadata(
        metadata_of([("<unk>", 0, UNKNOWN), ("<s>", 0, CONTROL), ("</s>", 0, CONTROL), ("a", -1, NORMAL)])
    )
    assert unknown.fewest_tokens("b" * 1000) <= len(unknown.encode("b" * 1000, add_bos=False))  # one unknown token


def test_empty_and_repeated_pieces_keep_their_ids_and_text() -> None:
    again = PIECES[300][0]
    tokenizer = with_pieces(("", 0.0, NORMAL), (again, 5.0, NORMAL), ("<id 4096>", 0.0, NORMAL), ("", 0.0, NORMAL))
    assert tokenizer.decode([261, 4096, 4097, 4098, 4099]) == ORACLE.decode([261, 300]) + "<id 4096>"
    text = "Once upon a time <id 4096> <id 4099>"
    assert tokenizer.encode(text, add_bos=False) == ORACLE.encode(text)


@pytest.mark.parametrize("kind", [NORMAL, USER_DEFINED, UNUSED])
def test_a_piece_of_nul_is_as_sentencepiece_has_it_without_a_word_on_stderr(
    kind: int, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = with_pieces(("\0", 1.0, kind))
    assert capfd.readouterr().err == ""
    ids = tokenizer.encode("a\0b", add_bos=False)
    assert ids == ORACLE.encode("a\0b")
    assert tokenizer.decode([*ids, 4096]) == "a\0b\0"


def test_user_defined_pieces_match_whole() -> None:
    tokenizer = with_pieces(("<|pause|>", 0.0, USER_DEFINED), ("qqqq", -9999.0, UNUSED))
    ids = tokenizer.encode("a<|pause|>b qqqq", add_bos=False)
    assert 4096 in ids
    assert 4097 not in ids
    assert (
        tokenizer.decode(ids) == "a<|pause|> b qqqq"
    )  # each side has a space before it, as the first has, whose is dropped


# What transformers' tokenizer makes of them (tokenizers 0.23.3: BPE of the same pieces, the
# normalizers Prepend and Replace of LlamaTokenizerFast, AddedToken("<tool>", special=False,
# normalized=False)); llama.cpp agrees.
ADDED = {
    "<tool>": [4096],
    "<tool>hello": [4096, 281, 284, 4023],
    "hello<tool>": [281, 284, 4023, 4096],
    "a <tool> b": [261, 4019, 4096, 4019, 271],
    "a<tool>b": [261, 4096, 271],
    "x<tool><tool>y": [4019, 4062, 4096, 4096, 305],
    "the king<tool> said": [262, 671, 4096, 4019, 351],
    " <tool> ": [674, 4096, 674],
}


@pytest.mark.parametrize("text", ADDED)
@pytest.mark.parametrize("parse_special", [False, True])
def test_text_beside_an_added_token_is_encoded_by_itself(text: str, parse_special: bool) -> None:
    tokenizer = with_pieces(("<tool>", 0.0, USER_DEFINED))
    assert tokenizer.encode(text, add_bos=False, parse_special=parse_special) == ADDED[text]
    assert tokenizer.encode(text, parse_special=parse_special) == [1, *ADDED[text]]


def test_the_longest_name_counts_and_a_name_with_a_space_too() -> None:
    tokenizer = with_pieces(("<t>", 0.0, USER_DEFINED), ("<t><t>", 0.0, USER_DEFINED), ("<\u2581t>", 0.0, USER_DEFINED))
    assert tokenizer.encode("<t><t><t>< t>", add_bos=False) == [4097, 4096, 4098]


def test_thousands_of_control_tokens_cost_little() -> None:
    """As one regular expression they would be tried one by one: this took minutes."""
    names = [("<" + "x" * (i % 50) + f"{i}>", 0.0, CONTROL) for i in range(5000)]
    tokenizer = with_pieces(*names)
    text = "".join(name for name, _, _ in names) + "<xxxx" * 20_000
    assert tokenizer.encode(text, add_bos=False, parse_special=True)[:5000] == list(range(4096, 9096))


def test_bytes_of_tokens() -> None:
    tokenizer = with_pieces(("<tool>", 0.0, USER_DEFINED), ("[A]", 0.0, CONTROL))
    ids = tokenizer.encode("Once upon é", add_bos=False)
    assert b"".join(tokenizer.token_bytes(id) for id in ids) == " Once upon é".encode()
    assert [tokenizer.token_bytes(id) for id in (1, 4096, 4097, 3 + 0xE9)] == [b"", b"<tool>", b"", b"\xe9"]
    for bad in (-1, 4098, 1.5, "1", None):
        with pytest.raises(InvalidArgumentError, match="expected token ids from 0 to 4097"):
            tokenizer.token_bytes(bad)  # type: ignore[arg-type]


def test_a_token_is_shown_as_its_piece() -> None:
    assert [TINY.piece(id) for id in (2, 0x41 + 3, 261)] == ["</s>", "<0x41>", PIECES[261][0]]


def test_control_tokens_by_name() -> None:
    tokenizer = with_pieces(("[A]", 0.0, CONTROL), ("<tool>", 0.0, USER_DEFINED))
    assert [tokenizer.control_id(name) for name in ("[A]", "</s>", "<tool>", "[B]", "")] == [4096, 2, None, None, None]
    assert tokenizer.control_names("x</s>[A]y</s><tool>") == ["</s>", "[A]"]


def test_three_ids_end_a_text() -> None:
    assert with_pieces(eos_token_id=5, eot_token_id=6, eom_token_id=7).eos_ids == {5, 6, 7}


def test_control_tokens_of_known_names_end_a_text() -> None:
    """As in a chat model of this family, whose eos_token_id is still the base model's."""
    assert with_pieces(("<|im_end|>", 0.0, CONTROL), ("<|end|>", 0.0, CONTROL)).eos_ids == {2, 4096, 4097}
    assert with_pieces(("<|im_end|>", 0.0, USER_DEFINED), ("<|end|>", 0.0, NORMAL)).eos_ids == {2}


@pytest.mark.parametrize("part", [1, 2, 7, 64])
def test_parts_are_the_whole(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = with_pieces(("<tool>", 0.0, USER_DEFINED))
    for text in (
        "Once upon a time there was  a king.\n\n  He had a <tool> and  é\u2581 \u2581x y",
        " a b  c",
        "",
        " ",
        "nospace" * 30,
    ):
        whole = tokenizer.encode(text)
        with monkeypatch.context() as patch:
            patch.setattr(sentencepiece, "PART", part)
            parts = list(tokenizer.encode_parts(text))
        assert [id for ids in parts for id in ids] == whole
        assert len(parts) > 1 or len(text) < 60 or " " not in text


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from(" \u2581ab\né\0")), part=st.integers(1, 6))
def test_no_part_ends_inside_a_token(text: str, part: int) -> None:
    whole = TINY.encode(text)
    before, sentencepiece.PART = sentencepiece.PART, part
    try:
        assert [id for ids in TINY.encode_parts(text) for id in ids] == whole
    finally:
        sentencepiece.PART = before


def test_long_texts_are_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    text = Path(__file__).read_text(encoding="utf-8") * 3
    whole = TINY.encode(text)
    monkeypatch.setattr(sentencepiece, "PART", 1000)
    assert TINY.encode(text) == whole == [1, *ORACLE.encode(text)]


def test_begin_of_text_and_space_prefix_follow_the_file() -> None:
    assert TINY.encode("a") == [1, 261]
    assert TINY.encode("") == [1]
    assert with_pieces(add_bos_token=False).encode("a") == [261]
    bare = with_pieces(add_space_prefix=False)
    assert bare.encode("the", add_bos=False) != TINY.encode("the", add_bos=False)
    assert bare.decode(bare.encode("the")) == "the"
    assert bare.decode(bare.encode(" the")) == " the"


def test_end_tokens_are_the_end_of_text_and_of_a_turn() -> None:
    assert TINY.eos_ids == {2}
    assert (TINY.bos_id, TINY.n_vocab) == (1, 4096)
    assert with_pieces(eos_token_id=5, eot_token_id=7, bos_token_id=3).eos_ids == {5, 7}
    assert with_pieces(bos_token_id=3).encode("a") == [3, 261]


def test_only_control_tokens_have_no_text() -> None:
    assert [TINY.has_text(i) for i in (0, 1, 2, 3, 261)] == [True, False, False, True, True]


def test_without_byte_tokens_the_rest_is_unknown() -> None:
    small = Tokenizer.from_metadata(
        metadata_of(
            [("<unk>", 0, UNKNOWN), ("<s>", 0, CONTROL), ("</s>", 0, CONTROL), ("\u2581", 0, NORMAL), ("a", -1, NORMAL)]
        )
    )
    assert small.encode("ab") == [1, 3, 4, 0]
    assert small.decode([1, 3, 4, 0]) == "a \u2047 "


def test_without_an_unknown_type_the_unknown_id_is_taken() -> None:
    pieces = [(piece, score, NORMAL if kind == UNKNOWN else kind) for piece, score, kind in PIECES]
    assert Tokenizer.from_metadata(metadata_of(pieces)).encode("Once upon a time") == TINY.encode("Once upon a time")


@pytest.mark.parametrize("id", [-1, 4096, 1 << 40])
def test_ids_outside_the_vocabulary_are_refused(id: int) -> None:
    with pytest.raises(InvalidArgumentError, match="from 0 to 4095"):
        TINY.decode([261, id])


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="UTF-8"):
        TINY.encode("abc\udcff")


@pytest.mark.parametrize("model", ["bert", "no_vocab", None, 3])
def test_other_tokenizers_are_refused_by_name(model: Any) -> None:
    with pytest.raises(UnsupportedError, match=repr(model)):
        Tokenizer.from_metadata(metadata_of(PIECES) | {"tokenizer.ggml.model": model})


def changed(key: str, change: Any) -> dict[str, Any]:
    metadata = metadata_of(PIECES)
    name = f"tokenizer.ggml.{key}"
    metadata[name] = change(metadata[name]) if callable(change) else change
    return {k: v for k, v in metadata.items() if v is not None}


def put(value: Any, at: int = 300) -> Any:
    def change(values: Any) -> Any:
        values = values.copy()
        values[at] = value
        return values

    return change


HOSTILE = {
    "no tokens": ("tokens", None),
    "empty vocabulary": ("tokens", []),
    "tokens not strings": ("tokens", np.zeros(4096, np.int32)),
    "tokens too short": ("tokens", lambda v: v[:-1]),
    "no scores": ("scores", None),
    "scores too short": ("scores", lambda v: v[:-1]),
    "scores too long": ("scores", lambda v: np.append(v, v)),
    "scores of strings": ("scores", ["1"] * 4096),
    "scores of integers": ("scores", np.zeros(4096, np.int32)),
    "NaN score": ("scores", put(np.nan)),
    "infinite score": ("scores", put(np.inf)),
    "no types": ("token_type", None),
    "types too short": ("token_type", lambda v: v[:-1]),
    "types of floats": ("token_type", np.ones(4096, np.float32)),
    "type 0": ("token_type", put(0)),
    "type 7": ("token_type", put(7)),
    "two unknown tokens": ("token_type", put(UNKNOWN)),
    "a byte token less": ("token_type", put(NORMAL, 3)),
    "a byte token more": ("token_type", put(BYTE)),
    "byte token of a negative": ("tokens", put("<0x-1>", 3)),
    "byte token of no digits": ("tokens", put("<0xZZ>", 3)),
    "byte token twice": ("tokens", put("<0x01>", 3)),
    "bos beyond": ("bos_token_id", 4096),
    "bos negative": ("bos_token_id", -1),
    "bos true": ("bos_token_id", True),
    "eos beyond": ("eos_token_id", 1 << 31),
    "eot beyond": ("eot_token_id", 4096),
    "eot text": ("eot_token_id", "2"),
    "add_bos a number": ("add_bos_token", 1),
    "add_space_prefix text": ("add_space_prefix", "yes"),
    "a piece too long for sentencepiece": ("tokens", put("a" * 100_000)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_token_lists_that_make_no_sense_are_refused_in_one_line(case: str) -> None:
    key, change = HOSTILE[case]
    with pytest.raises(ModelConfigError) as caught:
        Tokenizer.from_metadata(changed(key, change), "some.gguf")
    assert str(caught.value).startswith("some.gguf: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_default_end_token_beyond_a_small_vocabulary_is_refused() -> None:
    with pytest.raises(ModelConfigError, match="eos_token_id"):
        Tokenizer.from_metadata(metadata_of([("<unk>", 0, UNKNOWN), ("a", 0, NORMAL)]))


def test_a_name_at_the_end_of_a_text_ends_there() -> None:
    assert list(Names({"aa": 0, "aaa": 1}).find("aaxaa")) == [(0, 2, 0), (3, 5, 0)]


def test_names_of_user_defined_tokens_are_text_where_asked() -> None:
    names = ["<a>", "<<a>>", "b c"]
    tokenizer = with_added(names)
    a, outer, words = range(len(PIECES), len(PIECES) + 3)
    assert a in tokenizer.encode("x<a>y")
    text = "x <a> y<<a>><<<a>>>b c<a"
    for without in ({a}, {outer}, {a, outer}, {words}, {a, outer, words}):
        ids = tokenizer.encode(text, add_bos=False, without=without)
        assert not without & set(ids)
        assert set(ids) & {a, outer, words}.difference(without) or without == {a, outer, words}
        if without == {a, outer, words}:
            assert tokenizer.decode(ids) == text


def with_added(names: list[str]) -> Tokenizer:
    return Tokenizer.from_metadata(metadata_of([*PIECES, *((name, 0.0, USER_DEFINED) for name in names)]))
