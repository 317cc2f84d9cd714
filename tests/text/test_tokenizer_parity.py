"""The tokenizers of Mistral's own models (mistral-common's data) through the quantizer's vocabulary
and GGUF: equal to sentencepiece.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from pymixtral.files.gguf import GGUFFile
from pymixtral.quantize import quantize
from pymixtral.text.tokenizer import Tokenizer
from support.checkpoints import Shape, make_checkpoint

_package = importlib.util.find_spec("mistral_common")
assert _package, "install the [dev] extra: mistral-common has the tokenizers as data"
DATA = Path(next(iter(_package.submodule_search_locations or ()))) / "data"
MODELS = {
    "v1": DATA / "tokenizer.model.v1",  # Mixtral 8x7B, Mistral 7B v0.1 and v0.2
    "v2": DATA / "mistral_instruct_tokenizer_240216.model.v2",
    "v3": DATA / "mistral_instruct_tokenizer_240323.model.v3",  # Mixtral 8x22B Instruct, Mistral 7B v0.3
}
N_STRINGS = {"v1": 10_000, "v2": 2_000, "v3": 2_000}

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, doesn't it? It's 3.14159 o'clock on 2023-12-11.",
    "Voilà l'été: où est passée la garçonne qui buvait du café à Nîmes — « déjà ? »",
    "Perché no? L'università è lontana, e c'è già più gente così.",
    "Über Straßen und Flüsse läuft der Fuß; Grüße aus Köln, Donaudampfschifffahrtsgesellschaft!",
    "¿Dónde está el niño? ¡Mañana por la mañana, en España!",
    "def f(x: int) -> int:\n    if x <= 1:\n\treturn 1\n    return x * f(x - 1)  # n!\n",
    '#include <stdio.h>\nint main(void) {\r\n  printf("%d\\n", 0xFF & ~1);\r\n}\n',
    '{"a": [1, 2.5e-3, null, true], "b": {"c": "\\u00e9"}}',
    "SELECT * FROM t WHERE a != 'b' AND c <> 1;  -- comment",
    "😀👩‍👩‍👧‍👦🏳️‍🌈👍🏽🇫🇷🧑🏿‍🚀",
    "混合专家模型。日本語の文章、ひらがなとカタカナ。한국어 문장입니다.",
    "Ελληνικά, русский текст, עברית, العربية, हिन्दी, ไทย",
    "e\u0301a\u0300o\u0302\u0323n\u0303 Z\u0335\u0321a\u0334l\u0353g\u030ao \u1e9b\u0323 \ufb01 \u212b",
    "        \t\t\n\n\n   \n \r\n\u00a0\u2003\u3000\u200b\ufeff\u2581\u2581 \u2581",
    "<s></s><unk>[INST][/INST]<<SYS>><|im_start|><0x0A><0x41>[TOOL_CALLS][IMG]",
    "\0\x01\x1b[2J\x7f\u0085\u2028\ud7ff\ue000\uffff\U0010ffff",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 00000000000000001111111111111111 ----------------________________",
]


class Pair:
    """Our tokenizer, read from a GGUF file, and sentencepiece's of the original file."""

    def __init__(self, model: Path, directory: Path) -> None:
        self.oracle = SentencePieceProcessor(model_file=str(model))
        shape = Shape(
            hidden=32,
            ffn=32,
            n_layers=1,
            n_heads=1,
            n_kv_heads=1,
            head_dim=32,
            n_experts=2,
            n_vocab=self.oracle.vocab_size(),
        )
        make_checkpoint(directory / "checkpoint", shape, seed=1)
        shutil.copy(model, directory / "checkpoint" / "tokenizer.model")
        quantize(directory / "checkpoint", directory / "m.gguf", "q8_0", progress=False)
        with GGUFFile(directory / "m.gguf") as file:
            self.ours = Tokenizer.from_metadata(file.metadata, file.path)
            self.metadata = file.metadata
        tokens: Any = self.metadata["tokenizer.ggml.tokens"]
        types: Any = self.metadata["tokenizer.ggml.token_type"]
        added = [piece for piece, kind in zip(tokens, types, strict=True) if kind == 4]
        self.added = re.compile("|".join(map(re.escape, added)) or "(?!)")

    def expected(self, text: str) -> list[int]:
        """sentencepiece's ids, those of each side of an added token by itself."""
        ids: list[int] = []
        at = 0
        for match in self.added.finditer(text):
            ids += [*self.oracle.encode(text[at : match.start()]), self.oracle.piece_to_id(match[0])]
            at = match.end()
        return ids + self.oracle.encode(text[at:])

    def check(self, text: str) -> None:
        ids = self.expected(text)
        assert self.ours.encode(text, add_bos=False) == ids, repr(text)
        assert self.ours.encode(text) == [1, *ids]
        assert self.ours.decode(ids) == self.oracle.decode(ids), repr(text)
        assert self.ours.fewest_tokens(text) <= len(ids)


_pairs: dict[str, Pair] = {}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Pair]]:
    _pairs.update({name: Pair(model, tmp_path_factory.mktemp(name)) for name, model in MODELS.items()})
    yield _pairs
    _pairs.clear()


every_model = pytest.mark.parametrize("name", MODELS)


def strings(n: int, pieces: list[str]) -> Iterator[str]:
    """Cuts of the sentences, pieces of the vocabulary and any characters, in any order and with any
    spacing.
    """
    g = np.random.Generator(np.random.PCG64(5))
    letters = [
        chr(c)
        for s, e in ((32, 127), (0xA0, 0x250), (0x300, 0x36F), (0x400, 0x460), (0x4E00, 0x9FFF))
        for c in range(s, e)
    ]
    for _ in range(n):
        parts = []
        for _ in range(g.integers(1, 6)):
            sentence = SENTENCES[g.integers(len(SENTENCES))]
            begin, end = sorted(g.integers(0, len(sentence) + 1, 2).tolist())
            some = "".join(letters[i] for i in g.integers(0, len(letters), g.integers(0, 6)))
            word = pieces[g.integers(len(pieces))].replace("\u2581", " ")
            parts.append(
                [sentence[begin:end], some, word, " " * int(g.integers(0, 20)), "\n" * int(g.integers(0, 5))][
                    g.integers(5)
                ]
            )
        yield "".join(parts)


@every_model
def test_encode_and_decode_equal_sentencepiece_on_generated_strings(pairs: dict[str, Pair], name: str) -> None:
    pair = pairs[name]
    pieces = [pair.oracle.id_to_piece(i) for i in range(3, pair.oracle.vocab_size())]
    for text in [*SENTENCES, "", " ", *strings(N_STRINGS[name], pieces)]:
        pair.check(text)


@every_model
def test_every_piece_alone_and_every_id_alone(pairs: dict[str, Pair], name: str) -> None:
    pair = pairs[name]
    assert pair.ours.n_vocab == pair.oracle.vocab_size()
    for id in range(pair.ours.n_vocab):
        pair.check(pair.oracle.id_to_piece(id))
        assert pair.ours.decode([id]) == pair.oracle.decode([id])


@every_model
@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text(pairs: dict[str, Pair], name: str, text: str) -> None:
    pairs[name].check(text)


@every_model
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_ids(pairs: dict[str, Pair], name: str, data: st.DataObject) -> None:
    pair = pairs[name]
    ids = data.draw(st.lists(st.one_of(st.integers(0, pair.ours.n_vocab - 1), st.integers(0, 1100)), max_size=30))
    assert pair.ours.decode(ids) == pair.oracle.decode(ids)


def test_without_the_space_prefix(pairs: dict[str, Pair]) -> None:
    """As sentencepiece does with the option changed in its own model."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(MODELS["v1"].read_bytes())
    model.normalizer_spec.add_dummy_prefix = False
    oracle = SentencePieceProcessor(model_proto=model.SerializeToString())
    ours = Tokenizer.from_metadata({**pairs["v1"].metadata, "tokenizer.ggml.add_space_prefix": False})
    for text in [*SENTENCES, *strings(1000, ["\u2581a", "b"])]:
        ids = oracle.encode(text)
        assert ours.encode(text, add_bos=False) == ids
        assert ours.decode(ids) == oracle.decode(ids) == text.replace("\u2581", " ")


# --- Special tokens -----------------------------------------------------------------------------------------------

PUBLISHED = [
    *(1, 733, 16289, 28793, 264, 733, 28748, 16289, 28793, 287, 2),
    *(733, 16289, 28793, 277, 733, 28748, 16289, 28793, 281, 2),
]
"""What Mistral publishes for Mixtral 8x7B Instruct: user "a", assistant "b", user "c", assistant
"d".
"""


def test_the_published_ids_of_a_chat(pairs: dict[str, Pair]) -> None:
    encode = pairs["v1"].ours.encode
    ids = [1]
    for user, assistant in (("[INST] a [/INST]", "b"), ("[INST] c [/INST]", "d")):
        ids += [*encode(user, add_bos=False), *encode(assistant, add_bos=False), 2]
    assert ids == PUBLISHED
    chat = "<s>[INST] a [/INST] b</s>[INST] c [/INST] d</s>"
    assert encode(chat, parse_special=True) == encode(chat, add_bos=False, parse_special=True) == PUBLISHED
    assert (
        encode(chat.removeprefix("<s>"), parse_special=True) == PUBLISHED
    )  # one begin-of-text token, not two and not none


@every_model
def test_special_tokens_are_parsed_only_where_asked(pairs: dict[str, Pair], name: str) -> None:
    pair = pairs[name]
    control = {i for i in range(pair.ours.n_vocab) if pair.oracle.is_control(i)}
    for id in sorted(control):
        text = f"a{pair.oracle.id_to_piece(id)}b"
        assert not control & set(pair.ours.encode(text, add_bos=False))
        parsed = pair.ours.encode(text, add_bos=False, parse_special=True)
        assert parsed == [*pair.oracle.encode("a"), id, *pair.oracle.encode("b")]
    for text in SENTENCES[:-6]:
        assert pair.ours.encode(text, parse_special=True) == pair.ours.encode(text)


def test_instruct_tokens_of_later_vocabularies(pairs: dict[str, Pair]) -> None:
    pair = pairs["v3"]
    assert pair.ours.encode("[INST] a[/INST]", parse_special=True) == [1, 3, *pair.oracle.encode(" a"), 4]
