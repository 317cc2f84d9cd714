"""Special tokens: which begin and end a text, by the files that say it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pymixtral.errors import CheckpointError
from pymixtral.text.tokenizer import Tokenizer
from support.tokenizer_json import Json, read, write


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
