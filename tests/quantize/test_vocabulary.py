"""SentencePiece vocabularies: token lists, padding, and models that GGUF's lists cannot express."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from pymixtral.errors import CheckpointError, UnsupportedError
from pymixtral.quantize.vocabulary import reading
from pymixtral.quantize.vocabulary.reading import read_vocabulary
from pymixtral.quantize.vocabulary.vocabulary import Vocabulary
from support.checkpoints import TINY_MIXTRAL


def read(directory: Path) -> Vocabulary:
    vocabulary = read_vocabulary(directory)
    assert vocabulary is not None
    return vocabulary


@pytest.fixture
def model() -> Any:
    model = sentencepiece_model.ModelProto()  # type: ignore[attr-defined]  # protobuf makes it at import
    model.ParseFromString((TINY_MIXTRAL / "tokenizer.model").read_bytes())
    return model


def write(directory: Path, model: Any) -> Path:
    (directory / "tokenizer.model").write_bytes(model.SerializeToString())
    return directory


def test_real_vocabulary_is_sentencepiece_s_own() -> None:
    vocabulary = read(TINY_MIXTRAL)
    processor = SentencePieceProcessor(model_file=str(TINY_MIXTRAL / "tokenizer.model"))
    n = processor.vocab_size()
    assert list(vocabulary.tokens) == [processor.id_to_piece(i) for i in range(n)]
    assert list(vocabulary.scores) == [processor.get_score(i) for i in range(n)]
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.unknown_id) == (
        processor.bos_id(),
        processor.eos_id(),
        processor.unk_id(),
    )
    assert vocabulary.add_space_prefix is True
    for i, kind in enumerate(vocabulary.types):
        expected = 2 if processor.is_unknown(i) else 3 if processor.is_control(i) else 6 if processor.is_byte(i) else 1
        assert kind == expected
    assert any(token.startswith("▁") for token in vocabulary.tokens)


def test_absent_tokenizer_is_none(tmp_path: Path) -> None:
    assert read_vocabulary(tmp_path) is None


def test_padding_adds_control_pieces_named_by_id() -> None:
    vocabulary = read(TINY_MIXTRAL).padded(4099)
    assert list(vocabulary.tokens[4095:]) == [read(TINY_MIXTRAL).tokens[4095], "[PAD4096]", "[PAD4097]", "[PAD4098]"]
    assert list(vocabulary.types[4096:]) == [3, 3, 3]
    assert len(vocabulary.scores) == 4099
    assert vocabulary.n_padding == 3
    assert read(TINY_MIXTRAL).padded(4096).n_padding == 0


def test_more_pieces_than_the_model_has_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"at most 4095 pieces, .* found 4096"):
        read(TINY_MIXTRAL).padded(4095)


def test_space_prefix_follows_the_normalizer(tmp_path: Path, model: Any) -> None:
    model.normalizer_spec.add_dummy_prefix = False
    assert read(write(tmp_path, model)).add_space_prefix is False


def test_model_without_control_pieces_has_no_bos_and_eos(tmp_path: Path, model: Any) -> None:
    model.trainer_spec.bos_piece = "<none>"
    model.pieces[2].type = 1
    vocabulary = read(write(tmp_path, model))
    assert (vocabulary.bos_id, vocabulary.eos_id) == (None, None)


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"{}", b"\n\x05hello"])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize(
    ("spec", "name", "value"),
    [
        ("trainer_spec", "model_type", 1),
        ("trainer_spec", "treat_whitespace_as_suffix", True),
        ("normalizer_spec", "precompiled_charsmap", b"\x01\x02"),
        ("normalizer_spec", "remove_extra_whitespaces", True),
        ("normalizer_spec", "escape_whitespaces", False),
    ],
)
def test_models_beyond_gguf_s_lists_are_unsupported_by_name(
    tmp_path: Path, model: Any, spec: str, name: str, value: object
) -> None:
    setattr(getattr(model, spec), name, value)
    with pytest.raises(UnsupportedError, match=name):
        read_vocabulary(write(tmp_path, model))


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_scores_are_finite(tmp_path: Path, model: Any, score: float) -> None:
    model.pieces[300].score = score
    with pytest.raises(CheckpointError, match=r"score of piece 300: .* found"):
        read_vocabulary(write(tmp_path, model))


def test_pieces_are_utf8(tmp_path: Path, model: Any) -> None:
    model.pieces[300].piece = "abcdefgh"
    data = write(tmp_path, model) / "tokenizer.model"
    data.write_bytes(data.read_bytes().replace(b"abcdefgh", b"abcdef\xff\xfe"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: piece 300: expected UTF-8, found b'abcdef"):
        read_vocabulary(tmp_path)


def test_a_model_of_too_many_pieces_is_refused(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, model) / "tokenizer.model"
    data = path.read_bytes()
    path.write_bytes(data + b"\n\0" * 300_000)  # empty pieces
    with pytest.raises(CheckpointError, match="expected at most 262144 pieces, found 304096"):
        read_vocabulary(tmp_path)
    others = (
        b"\xa0\x06\x80\x01" + b"\xa1\x06" + bytes(8) + b"\xa5\x06" + bytes(4) + b"\xa2\x06\x03\n\0\n"
    )  # other fields
    monkeypatch.setattr(reading, "sentencepiece_model", None)  # parsing is not begun, which would take 200 MB
    for content in (data + others + b"\n\0" * 300_000, b"\n\0" * (1 << 22)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"at most 262144 pieces, found (304096|4194304)$"):
            read_vocabulary(tmp_path)
    path.write_bytes(data + b"\n\0" * 5_000_000)
    with pytest.raises(CheckpointError, match="expected at most 8388608 bytes"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize("n", [0, 2])
def test_one_piece_is_the_unknown_one(tmp_path: Path, model: Any, n: int) -> None:
    model.pieces[0].type = 1
    for i in range(n):
        model.pieces[300 + i].type = 2
    with pytest.raises(CheckpointError, match=f"expected one unknown piece, found {n}"):
        read_vocabulary(write(tmp_path, model))


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("{{ a }}", "{{ a }}"),
        ([{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "tools", "template": "t"}], None),
        (None, None),
    ],
)
def test_chat_template(tmp_path: Path, model: Any, stored: object, expected: str | None) -> None:
    write(tmp_path, model)
    assert read(tmp_path).chat_template is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": stored}))
    assert read(tmp_path).chat_template == expected


@pytest.mark.parametrize("stored", [3, {"a": "b"}, "\ud800", "a\0b", [{"name": "default", "template": 4}]])
def test_chat_template_is_text(tmp_path: Path, model: Any, stored: object) -> None:
    write(tmp_path, model)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": stored}))
    with pytest.raises(CheckpointError, match="chat_template"):
        read_vocabulary(tmp_path)
