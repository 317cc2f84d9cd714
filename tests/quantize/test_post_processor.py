"""Post-processors: which tokens are put around a text."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path

import pytest

from pymixtral.errors import CheckpointError
from pymixtral.text.tokenizer import Tokenizer
from support.checkpoints import TINY_MIXTRAL
from support.tokenizer_json import CONFIG, Json, changed, read, template, write


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
