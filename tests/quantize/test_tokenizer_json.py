"""Vocabularies of tokenizer.json: equal to those of the SentencePiece model that it came from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from pymixtral.errors import CheckpointError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.quantize import quantize
from pymixtral.text.tokenizer import Tokenizer
from support.checkpoints import TINY_MIXTRAL, Shape, make_checkpoint
from support.tokenizer_json import CONFIG, CONVERTED, SPACE, Json, changed, mangle, read, template, write


def test_equal_to_the_sentencepiece_model(tmp_path: Path) -> None:
    """Scores too: SentencePiece's own BPE trainer scores pieces by minus their rank."""
    ours, theirs = read(write(tmp_path)), read(TINY_MIXTRAL)
    assert (list(ours.tokens), list(ours.types)) == (list(theirs.tokens), list(theirs.types))
    assert list(ours.scores) == list(theirs.scores)
    assert (ours.bos_id, ours.eos_id, ours.eot_id, ours.unknown_id) == (1, 2, None, 0)
    assert ours.add_space_prefix is True


def test_text_is_encoded_as_with_the_sentencepiece_model(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", Shape(n_layers=1), seed=1)
    quantize(tmp_path / "hf", tmp_path / "a.gguf", progress=False)
    (tmp_path / "hf" / "tokenizer.model").unlink()
    write(tmp_path / "hf")
    quantize(tmp_path / "hf", tmp_path / "b.gguf", progress=False)
    text = "Once upon a time there was a king\u2019s daughter, na\u00efve;  two  spaces\n\ttab \U0001f642 0123 " * 3
    with GGUFFile(tmp_path / "a.gguf") as a, GGUFFile(tmp_path / "b.gguf") as b:
        assert Tokenizer.from_metadata(a.metadata).encode(text) == Tokenizer.from_metadata(b.metadata).encode(text)


def test_merges_as_strings(tmp_path: Path) -> None:
    """As older versions of the package wrote them."""
    values = changed(
        lambda values: values["model"].update(merges=[" ".join(pair) for pair in values["model"]["merges"]])
    )
    assert read(write(tmp_path, values)).scores == read(TINY_MIXTRAL).scores


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "prefix"),
    [
        (None, {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}, True),
        (None, {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False}, False),
        ({"type": "Replace", "pattern": {"String": " "}, "content": SPACE}, None, False),
    ],
)
def test_space_prefix(tmp_path: Path, normalizer: Json | None, pre_tokenizer: Json | None, prefix: bool) -> None:
    values = changed(lambda values: values.update(normalizer=normalizer, pre_tokenizer=pre_tokenizer))
    assert read(write(tmp_path, values)).add_space_prefix is prefix


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v["model"].update(type="Unigram"), "type: .*found 'Unigram'"),
        (lambda v: v["model"].update(byte_fallback=False), "byte_fallback: .*found False"),
        (lambda v: v["model"].update(ignore_merges=True), "ignore_merges"),
        (lambda v: v["model"].update(dropout=0.1), "dropout"),
        (lambda v: v["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (lambda v: v.update(pre_tokenizer={"type": "ByteLevel"}), "ByteLevel"),
        (lambda v: v.update(pre_tokenizer={"type": "Metaspace", "replacement": SPACE}), "Metaspace"),
        (lambda v: v.update(normalizer={"type": "NFKC"}), "NFKC"),
        (lambda v: v.update(normalizer=None), "writes spaces"),
        (lambda v: v["model"]["merges"].pop(700), "found no such merge"),
    ],
)
def test_what_sentencepiece_would_do_otherwise_is_unsupported(
    tmp_path: Path, change: Callable[[Json], Any], words: str
) -> None:
    with pytest.raises(UnsupportedError, match=words):
        read(write(tmp_path, changed(change)))


def test_rules_of_a_piece_apart_from_one_another_are_unsupported(tmp_path: Path) -> None:
    values = changed(lambda _: None)
    merges = values["model"]["merges"]
    first = next(i for i in range(len(merges)) if "".join(merges[i]) == "".join(merges[i + 1]))
    merges.append(merges.pop(first))
    with pytest.raises(UnsupportedError, match="expected those of a piece to follow one another"):
        read(write(tmp_path, values))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.update(model=[]), r"model: expected an object, found \[\]"),
        (lambda v: v["model"].update(vocab={}), "vocab: expected an object"),
        (lambda v: v["model"]["vocab"].update(the=5000), "each of the ids 0 to"),
        (lambda v: v["model"]["vocab"].update({"</s>": 1}), "each of the ids 0 to"),
        (lambda v: v["model"]["vocab"].update({"</s>": "2"}), "each of the ids 0 to"),
        (lambda v: v["model"].update(unk_token="<none>"), "unk_token: .*found '<none>'"),
        (lambda v: v["model"].update(merges={}), "merges: expected a list"),
        (lambda v: v["model"]["merges"].append("a"), "expected pairs"),
        (lambda v: v["model"]["merges"].append(["a", 3]), "expected pairs"),
        (lambda v: v["model"]["merges"].append(["z", "q"]), "make pieces of the vocabulary, found 'z' and 'q'"),
        (lambda v: v.update(added_tokens={"a": 1}), "added_tokens: expected a list"),
        (lambda v: v["added_tokens"].append({"id": 10**12, "content": "<x>"}), "with 1000000000000"),
        (lambda v: v["added_tokens"].append({"id": 4096}), "found None with 4096"),
        (lambda v: v["added_tokens"].append({"id": 4096, "content": "\ud800"}), "expected texts"),
    ],
)
def test_row_17_what_is_broken_is_refused(tmp_path: Path, change: Callable[[Json], Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read(write(tmp_path, changed(change)))


@pytest.mark.parametrize(("said", "expected"), [(None, True), (True, True), (False, False)])
def test_the_configuration_decides_the_space_before_a_text(tmp_path: Path, said: bool | None, expected: bool) -> None:
    assert read(write(tmp_path, tokenizer_config={**CONFIG, "add_prefix_space": said})).add_space_prefix is expected
    shutil.copy(TINY_MIXTRAL / "tokenizer.model", tmp_path)
    assert read(tmp_path).add_space_prefix is expected


# --- What transformers 5 writes -----------------------------------------------------------------------------------

# LlamaTokenizer (and AutoTokenizer) .from_pretrained(DIRECTORY).save_pretrained(...) of transformers 5.24 with
# tokenizers 0.23.3, where DIRECTORY has tiny-mixtral's tokenizer.model and a tokenizer_config.json; the model's pieces
# and merges are those of CONVERTED. "backend" is what it makes for the class PreTrainedTokenizerFast.
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
DOUBLE = {"type": "Replace", "pattern": {"Regex": f"\\A{SPACE}"}, "content": SPACE * 2}
METASPACE = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": False}
FIRST = {**METASPACE, "prepend_scheme": "first"}


def transformers_5(normalizer: Json | None, pre_tokenizer: Json | None) -> Json:
    return changed(
        lambda v: (
            v.update(normalizer=normalizer, pre_tokenizer=pre_tokenizer, post_processor=template(["<s>"], [])),
            v["model"].update(unk_token=None, fuse_unk=True, ignore_merges=False),
        )
    )


BACKEND = transformers_5(
    {"type": "Sequence", "normalizers": [REPLACE, DOUBLE]}, {"type": "Sequence", "pretokenizers": [METASPACE]}
)


def test_the_files_of_transformers_5(tmp_path: Path) -> None:
    """Ids are those that transformers 5.24 itself gives for the text."""
    text = "Hello <s> world</s>x  y"
    for values, ids, words in (
        (BACKEND, [1, 389, 423, 4023, 4019, 1, 4019, 989, 2, 4019, 4062, 4019, 305], []),
        (transformers_5(None, METASPACE), None, ["begins with one"]),
        (transformers_5(None, FIRST), None, ["prepend_scheme 'first'", "begins with one"]),
    ):
        vocabulary = read(write(tmp_path, values))
        assert vocabulary.scores == read(TINY_MIXTRAL).scores
        assert (vocabulary.add_space_prefix, vocabulary.add_bos) == (True, True)
        assert [word in note for word, note in zip(words, vocabulary.notes, strict=True)] == [True] * len(words)
        found = Tokenizer.from_metadata(vocabulary.to_gguf()).encode(text, parse_special=True)
        assert ids is None or found == ids


def test_the_scheme_is_noted_beside_a_sentencepiece_model(tmp_path: Path) -> None:
    shutil.copy(TINY_MIXTRAL / "tokenizer.model", tmp_path)
    assert "prepend_scheme 'first'" in read(write(tmp_path, transformers_5(None, FIRST))).notes[0]
    assert read(write(tmp_path, transformers_5(None, {**FIRST, "prepend_scheme": "never"}))).notes == ()


@pytest.mark.parametrize("pre_tokenizer", [None, FIRST])
def test_a_doubled_space_without_its_other_half_is_unsupported(tmp_path: Path, pre_tokenizer: Json | None) -> None:
    values = transformers_5({"type": "Sequence", "normalizers": [REPLACE, DOUBLE]}, pre_tokenizer)
    with pytest.raises(UnsupportedError, match="expected a Metaspace that always puts a space before a text"):
        read(write(tmp_path, values))


# --- What would cost time and memory -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda v: v["model"]["vocab"].update({"a" * 300_000: 4096}),
            "pieces of at most 256 characters, found one of 300000",
        ),
        (lambda v: v["model"]["vocab"].update({f"p{i}": 4096 + i for i in range(300_000)}), "at most 262144 pieces"),
        (
            lambda v: v["model"]["vocab"].update({f"{i:0200}": 4096 + i for i in range(11_000)}),
            "characters in all pieces",
        ),
        (
            lambda v: v["added_tokens"].extend({"id": 4096 + i, "content": f"{i:0200}"} for i in range(11_000)),
            "characters in all tokens",
        ),
    ],
)
def test_row_17_vocabularies_that_would_take_long(tmp_path: Path, change: Callable[[Json], Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read(write(tmp_path, changed(change)))


def test_row_17_a_tokenizer_that_would_not_run_is_refused(tmp_path: Path) -> None:
    """Sentencepiece takes 256 byte pieces or none."""
    model = sentencepiece_model.ModelProto()  # type: ignore[attr-defined]  # protobuf makes it at import
    model.ParseFromString((TINY_MIXTRAL / "tokenizer.model").read_bytes())
    model.pieces[5].type = 1
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(
        CheckpointError, match=r"expected a tokenizer that runs, found one that does not: .*256 byte tokens"
    ):
        read(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_row_17_any_change_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    values = json.loads(json.dumps(CONVERTED))
    mangle(values, data)
    directory = tmp_path_factory.mktemp("changed")
    try:
        vocabulary = read(write(directory, values))
    except (CheckpointError, UnsupportedError):
        return
    assert len(vocabulary.tokens) == len(vocabulary.scores) == len(vocabulary.types)
