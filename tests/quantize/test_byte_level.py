"""Byte-level tokenizer.json through the quantizer and GGUF: the ids are those of the package
tokenizers, which wrote the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Oracle
from tokenizers import models, pre_tokenizers, trainers

from pymixtral import Mixtral
from pymixtral.errors import CheckpointError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.quantize import quantize
from pymixtral.text.tokenizer import Tokenizer
from support.bpe import (
    ADDED_NAMES,
    BYTE_LEVEL,
    CONTROL_NAMES,
    CORPUS,
    CUTS,
    sequence,
    strings,
    tokenizer_json,
    trained,
    without_special,
)
from support.checkpoints import Shape, make_checkpoint
from support.tokenizer_json import Json, mangle, read

CONFIG = {"bos_token": "<|begin|>", "eos_token": {"content": "<|im_end|>"}, "add_prefix_space": False}


def changed(change: Callable[[Json], Any], pre: str = "llama-bpe") -> Json:
    values: Json = json.loads(json.dumps(tokenizer_json(pre)))
    change(values)
    return values


def write(directory: Path, values: Json, **files: Any) -> Path:
    (directory / "tokenizer.json").write_text(json.dumps(values))
    for name, content in ({"tokenizer_config": CONFIG} | files).items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize("pre", CUTS)
def test_the_file_has_the_ids_of_the_package(tmp_path: Path, pre: str) -> None:
    n_vocab = trained(pre).get_vocab_size() + 3
    make_checkpoint(tmp_path / "hf", Shape(n_layers=1, n_vocab=n_vocab), seed=1)
    (tmp_path / "hf" / "tokenizer.model").unlink()
    write(tmp_path / "hf", tokenizer_json(pre), generation_config={"eos_token_id": n_vocab - 4})
    oracle = Oracle.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    quantize(tmp_path / "hf", tmp_path / "m.gguf", progress=False)
    with GGUFFile(tmp_path / "m.gguf") as file:
        assert file.metadata["tokenizer.ggml.model"] == "gpt2"
        assert file.metadata["tokenizer.ggml.pre"] == pre
        assert "tokenizer.ggml.scores" not in file.metadata
        assert "tokenizer.ggml.unknown_token_id" not in file.metadata
        ours = Tokenizer.from_metadata(file.metadata)
        kinds = np.asarray(file.metadata["tokenizer.ggml.token_type"])
    assert kinds[n_vocab - 8 :].tolist() == [4, 4, 3, 3, 3, 3, 3, 3]  # added, control, padding
    assert ours.n_vocab == n_vocab
    assert (ours.bos_id, ours.eos_ids) == (oracle.token_to_id("<|begin|>"), {oracle.token_to_id("<|im_end|>")})
    plain = without_special(oracle)
    for text in [*strings(1500, seed=9), *ADDED_NAMES, *CONTROL_NAMES]:
        assert ours.encode(text) == plain.encode(text).ids, ascii(text)
        assert ours.encode(text, parse_special=True) == oracle.encode(text).ids, ascii(text)


def test_a_model_with_it_writes_text(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", Shape(n_layers=1, n_vocab=trained("smollm").get_vocab_size()), seed=1)
    (tmp_path / "hf" / "tokenizer.model").unlink()
    quantize(write(tmp_path / "hf", tokenizer_json("smollm")), tmp_path / "m.gguf", progress=False)
    with Mixtral(tmp_path / "m.gguf", n_ctx=128) as model:
        ids = model.tokenize("<|im_start|>Don't stop", parse_special=True)
        assert ids[0] == trained("smollm").token_to_id("<|im_start|>")
        done = model.generate(ids, max_tokens=20, temperature=0, ignore_eos=True)
        assert done.text == model.detokenize(done.tokens)


TEMPLATE: Json = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [],
    "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [1502], "tokens": ["<|begin|>"]}},
}


@pytest.mark.parametrize(
    ("processor", "config", "expected"),
    [
        (None, {}, False),
        ({"type": "ByteLevel"}, {}, False),
        (TEMPLATE, {}, True),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, TEMPLATE]}, {}, True),
        (TEMPLATE, {"add_bos_token": False}, False),
        (None, {"add_bos_token": True}, True),
    ],
)
def test_what_comes_before_a_text_is_what_the_files_say(
    tmp_path: Path, processor: Json | None, config: Json, expected: bool
) -> None:
    """The name "llama-bpe" alone says nothing of it, where the file has the key."""
    values = changed(lambda v: v.update(post_processor=processor))
    vocabulary = read(write(tmp_path, values, tokenizer_config={**CONFIG, **config}))
    assert vocabulary.add_bos is expected
    ids = Tokenizer.from_metadata(vocabulary.to_gguf()).encode("a")
    assert (ids[0] == trained("llama-bpe").token_to_id("<|begin|>")) is expected


def test_merges_as_strings(tmp_path: Path) -> None:
    values = changed(lambda v: v["model"].update(merges=[" ".join(pair) for pair in v["model"]["merges"]]))
    assert read(write(tmp_path, values)).merges == read(write(tmp_path, tokenizer_json("llama-bpe"))).merges


def test_special_tokens_inside_the_vocabulary(tmp_path: Path) -> None:
    """As SmolLM2 has them: they are the first of the model's own tokens."""
    oracle = Oracle(models.BPE())
    oracle.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=CONTROL_NAMES,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    oracle.train_from_iterator(CORPUS[:1], trainer)
    oracle.save(str(tmp_path / "tokenizer.json"))
    vocabulary = read(tmp_path)
    assert (list(vocabulary.tokens[:3]), list(vocabulary.types[:4])) == (CONTROL_NAMES, [3, 3, 3, 1])
    ours = Tokenizer.from_metadata(vocabulary.to_gguf())
    for text in [*strings(300), *CONTROL_NAMES]:
        assert ours.encode(text, parse_special=True) == oracle.encode(text).ids
        assert not {0, 1, 2} & set(ours.encode(text))


def test_a_merge_to_a_special_token_contradicts_itself(tmp_path: Path) -> None:
    token = next(piece for piece, i in tokenizer_json("gpt-2")["model"]["vocab"].items() if i == 300)
    values = changed(lambda v: v["added_tokens"].append({"id": 300, "content": token, "special": True}))
    with pytest.raises(CheckpointError, match="pairs of normal tokens that make a normal token"):
        read(write(tmp_path, values))


def test_tokens_with_spaces_keep_them(tmp_path: Path) -> None:
    vocabulary = read(write(tmp_path, tokenizer_json("gpt-2")))
    i = list(vocabulary.tokens).index("two words")
    assert vocabulary.types[i] == 4


def test_nfc_is_noted(tmp_path: Path) -> None:
    values = changed(lambda v: v.update(normalizer={"type": "NFC"}), "qwen2")
    (note,) = read(write(tmp_path, values)).notes
    assert "(NFC)" in note


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v["model"].update(type="WordPiece"), "type: .*found 'WordPiece'"),
        (lambda v: v["model"].update(dropout=0.1), "dropout"),
        (lambda v: v["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (lambda v: v["model"].update(ignore_merges="yes"), "ignore_merges"),
        (lambda v: v.update(normalizer={"type": "Lowercase"}), "normalizer: .*Lowercase"),
        (lambda v: v["pre_tokenizer"]["pretokenizers"].reverse(), "expected ByteLevel as the last step"),
        (lambda v: v["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "add_prefix_space"),
        (lambda v: v["pre_tokenizer"]["pretokenizers"][1].pop("add_prefix_space"), "add_prefix_space"),
        (
            lambda v: v["pre_tokenizer"]["pretokenizers"][1].update(use_regex=True),
            "expected a cut that GGUF has a name",
        ),
        (lambda v: v["pre_tokenizer"]["pretokenizers"][0].update(invert=True), "expected a cut that GGUF has a name"),
        (lambda v: v["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"), "expected a cut that GGUF"),
        (lambda v: v["pre_tokenizer"]["pretokenizers"][0].update(pattern={"String": " "}), "expected a cut that GGUF"),
        (lambda v: v["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"\w+|\s+"}), r"found .*w\+"),
        (lambda v: v["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Punctuation"}), "found .*Punctuation"),
        (lambda v: v.update(pre_tokenizer=BYTE_LEVEL), "ignore_merges True"),
        (lambda v: v.update(pre_tokenizer=CUTS["smollm"]), "ignore_merges True"),
        (lambda v: v.update(pre_tokenizer=CUTS["qwen2"]), "ignore_merges True"),
    ],
)
def test_what_gguf_has_no_name_for_is_unsupported(tmp_path: Path, change: Callable[[Json], Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        read(write(tmp_path, changed(change)))


def test_a_space_before_a_text_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"tokenizer_config\.json: add_prefix_space"):
        read(write(tmp_path, tokenizer_json("gpt-2"), tokenizer_config={**CONFIG, "add_prefix_space": True}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v["model"].update(vocab={}), "vocab: expected an object"),
        (lambda v: v["model"]["vocab"].update(zzzzz=9000), "each of the ids 0 to"),
        (lambda v: v["model"].update(merges={}), "merges: expected a list"),
        (lambda v: v["model"]["merges"].append(["a", 3]), "expected pairs"),
        (lambda v: v["model"]["merges"].append(["a", "b c"]), "pairs of normal tokens"),
        (lambda v: v["model"]["merges"].append(["\u2122", "a"]), "pairs of normal tokens"),
        (lambda v: v["model"]["merges"].append(v["model"]["merges"][0]), "each pair once"),
        (lambda v: v["added_tokens"].append({"id": 10**12, "content": "<x>"}), "with 1000000000000"),
        (lambda v: v.update(pre_tokenizer=sequence(BYTE_LEVEL, None)), "pre_tokenizer: expected an object"),  # type: ignore[arg-type]
        (lambda v: v.update(normalizer=3), "normalizer: expected an object"),
    ],
)
def test_row_17_what_is_broken_is_refused(tmp_path: Path, change: Callable[[Json], Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read(write(tmp_path, changed(change)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_row_17_any_change_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    values = changed(lambda _: None, data.draw(st.sampled_from(list(CUTS))))
    mangle(values, data)
    try:
        vocabulary = read(write(tmp_path_factory.mktemp("changed"), values))
    except (CheckpointError, UnsupportedError):
        return
    assert len(vocabulary.tokens) == len(vocabulary.scores) == len(vocabulary.types)
