"""tiny-mixtral's vocabulary as a tokenizer.json, whole or changed, and what the quantizer reads of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from pymixtral.quantize.vocabulary.reading import read_vocabulary
from pymixtral.quantize.vocabulary.vocabulary import Vocabulary
from support.checkpoints import TINY_MIXTRAL

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
    """A tokenizer.json, of CONVERTED unless others are given, and other files of JSON by their names."""
    (directory / "tokenizer.json").write_text(json.dumps(values or CONVERTED))
    for name, content in ({"tokenizer_config": CONFIG} | files).items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def changed(change: Callable[[Json], Any]) -> Json:
    """A copy of CONVERTED, changed."""
    values: Json = json.loads(json.dumps(CONVERTED))
    change(values)
    return values


_VALUES = st.one_of(
    *(st.none(), st.booleans(), st.integers(-2, 5000), st.text(max_size=3)),
    *(st.lists(st.none(), max_size=2), st.just({})),
)


def mangle(values: Json, data: st.DataObject) -> None:
    """Replaces one to three values, wherever they are."""
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = values
        for _ in range(data.draw(st.integers(0, 4))):
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


def read(directory: Path) -> Vocabulary:
    """The vocabulary that the quantizer finds."""
    vocabulary = read_vocabulary(directory)
    assert vocabulary is not None
    return vocabulary


def template(before: list[str], after: list[str]) -> Json:
    """A post-processor as transformers writes it."""
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2}
    around = [[{"SpecialToken": {"id": name, "type_id": 0}} for name in names] for names in (before, after)]
    return {
        "type": "TemplateProcessing",
        "single": [*around[0], {"Sequence": {"id": "A", "type_id": 0}}, *around[1]],
        "special_tokens": {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in before + after},
    }
