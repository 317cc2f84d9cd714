"""tekken.json through the quantizer: the ids are those of Mistral's own tokenizer."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from pymixtral.errors import CheckpointError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.quantize import quantize
from pymixtral.quantize.vocabulary.reading import read_vocabulary
from pymixtral.text.pretokenizers import TEKKEN
from pymixtral.text.tokenizer import Tokenizer
from support.bpe import CHARACTERS, HARD, strings
from support.checkpoints import Shape, make_checkpoint

Json = dict[str, Any]

_package = importlib.util.find_spec("mistral_common")
assert _package, "install the [dev] extra: mistral-common has the tokenizers as data"
NEMO = Path(next(iter(_package.submodule_search_locations or ()))) / "data" / "tekken_240718.json"


@pytest.fixture(scope="module")
def nemo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tekkenizer]:
    """Mistral Nemo's tokenizer, read from a GGUF file, and the original."""
    directory = tmp_path_factory.mktemp("nemo")
    shape = Shape(hidden=32, ffn=32, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=32, n_experts=2, n_vocab=131072)
    make_checkpoint(directory / "hf", shape, seed=1)
    shutil.copy(NEMO, directory / "hf" / "tekken.json")
    quantize(directory / "hf", directory / "m.gguf", "q8_0", progress=False)
    with GGUFFile(directory / "m.gguf") as file:
        assert file.metadata["tokenizer.ggml.pre"] == "tekken"
        return Tokenizer.from_metadata(file.metadata, file.path), Tekkenizer.from_file(NEMO)


def test_ids_equal_mistral_s_own(nemo: tuple[Tokenizer, Tekkenizer]) -> None:
    ours, theirs = nemo
    assert (ours.n_vocab, ours.bos_id, ours.eos_ids) == (theirs.n_words, theirs.bos_id, {theirs.eos_id})
    for text in [*strings(4000, seed=2), *HARD]:
        ids = theirs.encode(text, bos=False, eos=False)
        assert ours.encode(text, add_bos=False) == ids, ascii(text)
        assert ours.encode(text) == [theirs.bos_id, *ids]
        assert ours.decode(ids) == text


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from(CHARACTERS), max_size=40))
def test_any_text(nemo: tuple[Tokenizer, Tekkenizer], text: str) -> None:
    ours, theirs = nemo
    assert ours.encode(text, add_bos=False) == theirs.encode(text, bos=False, eos=False)


def test_every_token(nemo: tuple[Tokenizer, Tekkenizer]) -> None:
    ours, theirs = nemo
    for id in range(ours.n_vocab):
        expected = b"" if id < 1000 else theirs.id_to_byte_piece(id, SpecialTokenPolicy.RAISE)
        assert ours.token_bytes(id) == expected


def test_control_tokens_by_name(nemo: tuple[Tokenizer, Tekkenizer]) -> None:
    ours, theirs = nemo
    names = ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_CONTENT]", "<SPECIAL_999>"]
    assert [ours.control_id(name) for name in names] == [theirs.get_special_token(name) for name in names]
    begin, end = ours.control_id("[INST]"), ours.control_id("[/INST]")
    a, b = (theirs.encode(text, bos=False, eos=False) for text in "ab")
    assert ours.encode("[INST]a[/INST]b</s>", parse_special=True) == [1, begin, *a, end, *b, 2]
    assert begin not in ours.encode("[INST]a[/INST]b</s>")


# --- Other files --------------------------------------------------------------------------------------------------


def small(**more: Any) -> Json:
    """Two control tokens more than the three that are named, the bytes, "ab", "bc", "abc", "zz" and one that the
    model does not have.
    """
    tokens = [*(bytes([byte]) for byte in range(256)), b"ab", b"bc", b"abc", b"zz", b"zzz"]
    names = ["<unk>", "<s>", "</s>"]
    return {
        "config": {
            "pattern": TEKKEN,
            "default_vocab_size": 5 + 260,
            "default_num_special_tokens": 5,
            "version": "v11",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for rank, token in enumerate(tokens)
        ],
        "special_tokens": [{"rank": i, "token_str": name, "is_control": True} for i, name in enumerate(names)],
        **more,
    }


def changed(change: Callable[[Json], Any]) -> Json:
    values = small()
    change(values)
    return values


def read(directory: Path, values: Json) -> Any:
    (directory / "tekken.json").write_text(json.dumps(values))
    vocabulary = read_vocabulary(directory)
    assert vocabulary is not None
    return vocabulary


def test_merges_are_all_pairs_that_make_a_token(tmp_path: Path) -> None:
    vocabulary = read(tmp_path, small())
    assert vocabulary.merges == ["a b", "b c", "a bc", "ab c", "z z"]
    assert list(vocabulary.tokens[:6]) == ["<unk>", "<s>", "</s>", "<SPECIAL_3>", "<SPECIAL_4>", "\u0100"]
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.unknown_id, vocabulary.add_bos) == (1, 2, 0, True)
    assert Tokenizer.from_metadata(vocabulary.to_gguf()).encode("abc zz") == [1, 5 + 258, 5 + 32, 5 + 259]


@pytest.mark.parametrize("pattern", [None, "", r"\p{L}+", TEKKEN.replace(r"\p{N}", r"\p{N}{1,3}")])
def test_another_cut_is_unsupported(tmp_path: Path, pattern: object) -> None:
    with pytest.raises(UnsupportedError, match=r"config: pattern: expected that of GGUF's 'tekken'"):
        read(tmp_path, changed(lambda v: v["config"].update(pattern=pattern)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.pop("config"), "config: expected an object"),
        (lambda v: v["config"].update(default_vocab_size=None), "default_vocab_size"),
        (lambda v: v["config"].update(default_vocab_size=10**9), "default_vocab_size"),
        (lambda v: v["config"].update(default_num_special_tokens=-1), "default_num_special_tokens"),
        (lambda v: v["config"].update(default_num_special_tokens=True), "default_num_special_tokens"),
        (lambda v: v["config"].update(default_num_special_tokens=200), "expected a list of 256 tokens or more"),
        (lambda v: v["config"].update(default_vocab_size=267), "found 261 for 262"),
        (lambda v: v.pop("special_tokens"), "special_tokens: expected a list"),
        (lambda v: v["special_tokens"].append("a"), "special_tokens: expected a list"),
        (lambda v: v["special_tokens"][0].update(rank=5), "ranks from 0 to 4"),
        (lambda v: v["special_tokens"][0].update(rank=1), "ranks from 0 to 4, each once"),
        (lambda v: v["special_tokens"][0].update(token_str="\ud800"), "special_tokens: expected names"),
        (lambda v: v.update(vocab={}), "vocab: expected a list"),
        (lambda v: v["vocab"].reverse(), "in the order of their ranks"),
        (lambda v: v["vocab"].__setitem__(3, None), "found None at 3"),
        (lambda v: v["vocab"][3].update(token_bytes="%%"), "at 3"),
        (lambda v: v["vocab"][3].update(token_bytes="\u00e9"), "at 3"),
        (lambda v: v["vocab"][3].update(token_bytes=""), "at 3"),
        (lambda v: v["vocab"][257].update(token_bytes="YWJj" * 100), "tokens of 1 to 256 bytes"),
        (lambda v: v["vocab"][3].update(token_bytes="BA=="), "expected the 256 bytes first"),
        (lambda v: v["vocab"][257].update(token_bytes="YWI="), "each normal token once"),
    ],
)
def test_row_17_what_is_broken_is_refused(tmp_path: Path, change: Callable[[Json], Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read(tmp_path, changed(change))


def test_the_first_versions_name_no_control_tokens(tmp_path: Path) -> None:
    def change(values: Json) -> None:
        del values["special_tokens"]
        values["config"].update(version="v3", default_vocab_size=260 + 21, default_num_special_tokens=21)

    tokens = read(tmp_path, changed(change)).tokens
    assert tokens[:21] == [*(token["token_str"] for token in Tekkenizer.DEPRECATED_SPECIAL_TOKENS), "<SPECIAL_20>"]


def test_tokenizer_json_counts_before_tekken_json(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: model"):
        read(tmp_path, small())
