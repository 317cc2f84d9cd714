"""Vocabularies of tokenizer.json: equal to those of the SentencePiece model that it came from.

Added tokens and special tokens.
"""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from pymixtral.errors import CheckpointError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.quantize import quantize
from pymixtral.quantize.vocabulary.reading import read_vocabulary
from pymixtral.quantize.vocabulary.vocabulary import Vocabulary
from pymixtral.text.tokenizer import Tokenizer
from support.checkpoints import TINY_MIXTRAL, Shape, make_checkpoint

Json = dict[str, Any]
SPACE = "\u2581"


def convert() -> Json:
    """tiny-mixtral's tokenizer.model as published checkpoints of the family have it: the rules of a
    piece are all its cuts into pieces, best pieces first."""
    model = sentencepiece_model.ModelProto()  # type: ignore[attr-defined]  # protobuf makes it at import
    model.ParseFromString((TINY_MIXTRAL / "tokenizer.model").read_bytes())
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    merges: list[list[str]] = []
    for piece in sorted(model.pieces, key=lambda piece: -piece.score):
        cuts = [(piece.piece[:i], piece.piece[i:]) for i in range(1, len(piece.piece))] if piece.type == 1 else []
        merges += sorted(([a, b] for a, b in cuts if a in ids and b in ids), key=lambda cut: (ids[cut[0]], ids[cut[1]]))
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": piece, "special": True} for i, piece in enumerate(("<unk>", "<s>", "</s>"))
        ],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]},
        "pre_tokenizer": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "byte_fallback": True,
            "vocab": ids,
            "merges": merges,
        },
    }


CONVERTED = convert()
CONFIG = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}}


def write(directory: Path, values: Json | None = None, **files: Any) -> Path:
    (directory / "tokenizer.json").write_text(json.dumps(values or CONVERTED))
    for name, content in ({"tokenizer_config": CONFIG} | files).items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def changed(change: Callable[[Json], Any]) -> Json:
    values: Json = json.loads(json.dumps(CONVERTED))
    change(values)
    return values


def read(directory: Path) -> Vocabulary:
    vocabulary = read_vocabulary(directory)
    assert vocabulary is not None
    return vocabulary


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


# --- Added and special tokens ---------------------------------------------------------------------


CHATML = {"<|im_end|>": 4096, "<|im_start|>": 4097}


@pytest.mark.parametrize("form", ["added_tokens.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("sentencepiece", [False, True])
def test_tokens_of_a_fine_tune(tmp_path: Path, form: str, sentencepiece: bool) -> None:
    """ChatML: two control tokens, one of which ends a turn, and an embedding padded further."""
    directory = tmp_path / "hf"
    make_checkpoint(directory, Shape(n_layers=1, n_vocab=4100), seed=1)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"eos_token_id": 4096}))
    entries = [{"id": i, "content": content, "special": True} for content, i in CHATML.items()]
    settings: Json = {**CONFIG, "eos_token": "<|im_end|>", "chat_template": "old"}
    files: Json = {"tokenizer_config": settings}
    if form == "added_tokens.json":
        files["added_tokens"] = CHATML
    elif form == "tokenizer_config.json":
        settings["added_tokens_decoder"] = {str(entry["id"]): entry for entry in entries}
    write(directory, changed(lambda v: v["added_tokens"].extend(entries if form == "tokenizer.json" else [])), **files)
    if sentencepiece:
        shutil.copy(TINY_MIXTRAL / "tokenizer.model", directory)
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    report = quantize(directory, tmp_path / "m.gguf", progress=False)
    assert any("2 unused pieces" in note for note in report.notes)
    with GGUFFile(tmp_path / "m.gguf") as file:
        tokens, kinds = file.metadata["tokenizer.ggml.tokens"], file.metadata["tokenizer.ggml.token_type"]
        assert isinstance(tokens, list)
        assert tokens[4095:] == [
            read(TINY_MIXTRAL).tokens[4095],
            "<|im_end|>",
            "<|im_start|>",
            "[PAD4098]",
            "[PAD4099]",
        ]
        np.testing.assert_array_equal(kinds[4096:], [3, 3, 3, 3])  # type: ignore[index]
        assert file.metadata["tokenizer.chat_template"] == "{{ messages }}"
        assert Tokenizer.from_metadata(file.metadata).eos_ids == {4096}


def test_user_defined_tokens_are_text(tmp_path: Path) -> None:
    values = changed(lambda v: v["added_tokens"].append({"id": 4096, "content": "two words", "special": False}))
    vocabulary = read(write(tmp_path, values))
    assert (vocabulary.tokens[4096], vocabulary.types[4096]) == (f"two{SPACE}words", 4)


def test_added_tokens_beyond_the_model_are_left_out(tmp_path: Path) -> None:
    """A padding token that was added for training, without a row in the embedding."""
    vocabulary = read(write(tmp_path, added_tokens={"[PAD]": 4096})).padded(4096)
    assert (len(vocabulary.tokens), vocabulary.n_dropped, vocabulary.n_padding) == (4096, 1, 0)
    with pytest.raises(CheckpointError, match=r"expected the eos token below 4096, .* found 4096"):
        read(write(tmp_path, added_tokens={"<e>": 4096}, generation_config={"eos_token_id": 4096})).padded(4096)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [5, 2]}, {"eos_token_id": 7}, (5, 2)),
        ({"eos_token_id": 5}, {}, (5, 2)),
        ({}, {"eos_token_id": 7}, (7, 2)),
        ({"eos_token_id": None}, {"eos_token_id": None}, (2, None)),
        ({}, {}, (2, None)),
    ],
)
def test_ends_of_a_text(tmp_path: Path, generation: Json, config: Json, expected: tuple[int, int | None]) -> None:
    vocabulary = read(write(tmp_path, generation_config=generation, config=config))
    assert (vocabulary.eos_id, vocabulary.eot_id) == expected


@pytest.mark.parametrize("value", [True, -1, "2", [2, None], 1 << 40])
def test_end_that_is_no_token(tmp_path: Path, value: Any) -> None:
    with pytest.raises(CheckpointError, match="eos_token_id"):
        read(write(tmp_path, generation_config={"eos_token_id": value}))


@pytest.mark.parametrize(
    ("ends", "expected", "note"),
    [
        ([5, 2, 7], {5, 2, 7}, None),
        ([7, 7, 9], {7, 9, 2}, None),
        ([5, 6, 7, 2, 8], {5, 6, 7}, "left out 2, 8"),
        ([5, 6, 7], {5, 6, 7}, "left out 2"),
        ([5, 4096], {5, 2}, "left out 4096"),
    ],
)
def test_as_many_ends_as_gguf_has_keys(tmp_path: Path, ends: list[int], expected: set[int], note: str | None) -> None:
    vocabulary = read(write(tmp_path, generation_config={"eos_token_id": ends}))
    assert Tokenizer.from_metadata(vocabulary.to_gguf()).eos_ids == expected
    notes = [text for text in vocabulary.notes if "end a text" in text]
    assert [text.endswith(note) for text in notes] == [True] if note else notes == []


@pytest.mark.parametrize(
    ("tokenizer", "config", "named", "kind"),
    [
        (None, None, None, 3),  # what is in brackets looks special
        (False, None, None, 4),
        (None, False, None, 4),
        (True, False, None, 4),  # as transformers reads them
        (False, True, None, 3),
        (None, None, "special_tokens_map", 3),
        (None, False, "special_tokens_map", 4),
    ],
)
@pytest.mark.parametrize("text", ["<tool>", "tool"])
def test_whether_an_added_token_is_special(
    tmp_path: Path, tokenizer: bool | None, config: bool | None, named: str | None, kind: int, text: str
) -> None:
    """What a file says counts, and a name in brackets only where none says it."""
    if (tokenizer, config, named) == (None, None, None) and text == "tool":
        kind = 4
    files: Json = {"added_tokens": {text: 4096}, "tokenizer_config": dict(CONFIG)}
    if config is not None:
        files["tokenizer_config"]["added_tokens_decoder"] = {"4096": {"content": text, "special": config}}
    if named:
        files[named] = {"additional_special_tokens": [text]}
    entries = [] if tokenizer is None else [{"id": 4096, "content": text, "special": tokenizer}]
    vocabulary = read(write(tmp_path, changed(lambda v: v["added_tokens"].extend(entries)), **files))
    assert vocabulary.types[4096] == kind


@pytest.mark.parametrize("special", ["yes", 1, []])
def test_special_is_true_or_false(tmp_path: Path, special: object) -> None:
    entry = {"id": 4096, "content": "<a>", "special": special}
    with pytest.raises(CheckpointError, match="added token '<a>': special: expected true or false"):
        read(write(tmp_path, changed(lambda v: v["added_tokens"].append(entry))))


def template(before: list[str], after: list[str]) -> Json:
    """A post-processor as transformers writes it."""
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2}
    around = [[{"SpecialToken": {"id": name, "type_id": 0}} for name in names] for names in (before, after)]
    return {
        "type": "TemplateProcessing",
        "single": [*around[0], {"Sequence": {"id": "A", "type_id": 0}}, *around[1]],
        "special_tokens": {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in before + after},
    }


@pytest.mark.parametrize(
    ("processor", "config", "expected", "note"),
    [
        (None, {}, (True, False), None),
        (template([], []), {}, (False, False), None),
        (template(["<s>"], []), {}, (True, False), None),
        (template(["<s>"], ["</s>"]), {}, (True, True), "pymixtral itself does not"),
        (template([], ["</s>"]), {}, (False, True), "pymixtral itself does not"),
        (template(["<unk>"], []), {}, (False, False), "puts the tokens [0] before a text"),
        (template(["<s>"], ["</s>", "</s>"]), {}, (True, False), "puts the tokens [2, 2] after a text"),
        (template([], []), {"add_bos_token": True}, (True, False), None),
        (template(["<s>"], ["</s>"]), {"add_bos_token": False, "add_eos_token": False}, (False, False), None),
        (None, {"add_bos_token": False, "add_eos_token": True}, (False, True), "pymixtral itself does not"),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template(["<s>"], [])]}, {}, (True, False), None),
        ({"type": "ByteLevel"}, {}, (False, False), None),
        ({"type": "RobertaProcessing", "cls": ["<s>", 1], "sep": ["</s>", 2]}, {}, (True, True), "itself does not"),
        ({"type": "Other"}, {}, (True, False), None),
    ],
)
@pytest.mark.parametrize("sentencepiece", [False, True])
def test_what_is_put_around_a_text(
    tmp_path: Path,
    processor: Json | None,
    config: Json,
    expected: tuple[bool, bool],
    note: str | None,
    sentencepiece: bool,
) -> None:
    write(tmp_path, changed(lambda v: v.update(post_processor=processor)), tokenizer_config={**CONFIG, **config})
    if sentencepiece:
        shutil.copy(TINY_MIXTRAL / "tokenizer.model", tmp_path)
    vocabulary = read(tmp_path)
    assert (vocabulary.add_bos, vocabulary.add_eos) == expected
    notes = [text for text in vocabulary.notes if "space" not in text]
    assert len(notes) == (note is not None)
    assert note is None or note in notes[0]
    first = Tokenizer.from_metadata(vocabulary.to_gguf()).encode("a")[0]
    assert (first == vocabulary.bos_id) == expected[0]


@pytest.mark.parametrize(
    "processor",
    [
        3,
        [],
        {"type": "Sequence", "processors": {}},
        {"type": "Sequence", "processors": [3]},
        {"type": "TemplateProcessing"},
        {"type": "TemplateProcessing", "single": [3], "special_tokens": {}},
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}], "special_tokens": {}},
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": []}}], "special_tokens": {}},
        {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "a"}}],
            "special_tokens": {"a": {"ids": ["b"]}},
        },
        {"type": "BertProcessing", "cls": "<s>", "sep": ["</s>", 2]},
    ],
)
def test_row_17_post_processors_that_are_broken(tmp_path: Path, processor: object) -> None:
    with pytest.raises(CheckpointError, match="post_processor: expected a template"):
        read(write(tmp_path, changed(lambda v: v.update(post_processor=processor))))


@pytest.mark.parametrize(("n_parts", "n_ids"), [(1, 9), (9, 1), (3000, 30000)])
def test_a_template_of_many_tokens_is_refused_before_it_is_expanded(tmp_path: Path, n_parts: int, n_ids: int) -> None:
    processor = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "a"}}] * n_parts,
        "special_tokens": {"a": {"ids": [1] * n_ids}},
    }
    directory = write(tmp_path, changed(lambda v: v.update(post_processor=processor)))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="post_processor: expected at most 8 tokens"):
            read(directory)
        assert tracemalloc.get_traced_memory()[1] < 1 << 25
    finally:
        tracemalloc.stop()


def test_tokens_are_named_by_the_older_file_and_by_the_model_s(tmp_path: Path) -> None:
    names = {"bos_token": {"content": "</s>"}, "eos_token": "<s>"}
    vocabulary = read(write(tmp_path, tokenizer_config={}, special_tokens_map=names))
    assert (vocabulary.bos_id, vocabulary.eos_id) == (2, 1)
    vocabulary = read(
        write(tmp_path, tokenizer_config={}, special_tokens_map={}, config={"bos_token_id": 1, "eos_token_id": 2})
    )
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.add_bos) == (1, 2, True)
    vocabulary = read(write(tmp_path, tokenizer_config={}, special_tokens_map={}, config={}))
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.add_bos) == (None, None, False)


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


def test_files_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="as another file says, found"):
        read(
            write(
                tmp_path,
                added_tokens={"<a>": 4096},
                tokenizer_config={"added_tokens_decoder": {"4096": {"content": "<b>"}}},
            )
        )


_VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 5000)
    | st.text(max_size=3)
    | st.lists(st.none(), max_size=2)
    | st.just({})
)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_row_17_any_change_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    values = json.loads(json.dumps(CONVERTED))
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = values
        for _ in range(data.draw(st.integers(0, 3))):
            inner = [
                item
                for item in (place.values() if isinstance(place, dict) else place)
                if isinstance(item, dict | list) and item
            ]
            if not inner:
                break
            place = data.draw(st.sampled_from(inner))
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        place[key] = data.draw(_VALUES)
    directory = tmp_path_factory.mktemp("changed")
    try:
        vocabulary = read(write(directory, values))
    except (CheckpointError, UnsupportedError):
        return
    assert len(vocabulary.tokens) == len(vocabulary.scores) == len(vocabulary.types)
