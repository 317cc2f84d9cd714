"""Added tokens: found in whatever file has them, special or text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pymixtral.errors import CheckpointError
from pymixtral.files.gguf import GGUFFile
from pymixtral.quantize import quantize
from pymixtral.text.tokenizer import Tokenizer
from support.checkpoints import TINY_MIXTRAL, Shape, make_checkpoint
from support.tokenizer_json import CONFIG, SPACE, Json, changed, read, write

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


def test_files_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="as another file says, found"):
        read(
            write(
                tmp_path,
                added_tokens={"<a>": 4096},
                tokenizer_config={"added_tokens_decoder": {"4096": {"content": "<b>"}}},
            )
        )
