"""Byte-level BPE vocabularies, trained here by the package tokenizers, which is also the oracle."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Oracle

from support.paths import ROOT

Json = dict[str, Any]

CORPUS = tuple(
    path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "tests/text").glob("*.py"))
)

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

SPLITS = {
    "gpt-2": [_GPT2],
    "smollm": [r"\p{N}", _GPT2],
    "llama-bpe": [_LLAMA3],
    "smaug-bpe": [_LLAMA3],
    "qwen2": [_LLAMA3.replace("{1,3}", "")],
    "tekken": [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
}
"""The lists by which the formats define a cut, each pattern over what the one before it made."""

IGNORE_MERGES = ("llama-bpe", "tekken")
CONTROL_NAMES = ["<|begin|>", "<|im_start|>", "<|im_end|>"]
ADDED_NAMES = ["<tool>", "two words"]


# Characters of Unicode 3.2, whose kinds all versions of Unicode agree on.
CHARACTERS = [chr(c) for c in range(0x110000) if unicodedata.ucd_3_2_0.category(chr(c)) not in ("Cn", "Cs", "Co")]
HARD = [
    *(" ", "  ", "\n", " \n", "\t", "\r\n", "\n\n  ", "\xa0", "\u3000", "   x", "\x1c", "\x85", "\u2028", "\0"),
    *("'s", "'S", "'re", "'LL", "'\u017f", "don't", "\u2019s", "1", "12", "12345", "\u0663\u0664\u0665", "\xbd", " 7"),
    *("?!", "...", "/", "//\n", "$+<=>^~|`", "\u0301", "e\u0301", "\u01c5", "\u02b0", "\xdf", "\u1e9e", "camelCase"),
    *("\u0939\u093f\u0928\u094d\u0926\u0940", "\u6df7\u5408\u4e13\u5bb6", "\U0001f469\u200d\U0001f467", "HTTPServer"),
    *CONTROL_NAMES,
    *ADDED_NAMES,
]


def strings(n: int, seed: int = 3) -> Iterator[str]:
    """Cuts of the book, hard texts and any characters, in any order."""
    g = np.random.Generator(np.random.PCG64(seed))
    for _ in range(n):
        parts = []
        for _ in range(g.integers(1, 9)):
            text = CORPUS[g.integers(len(CORPUS))]
            begin = int(g.integers(len(text)))
            block = int(g.integers(len(CHARACTERS)))
            parts.append(
                [
                    text[begin : begin + int(g.integers(1, 40))],
                    "".join(CHARACTERS[(block + int(i)) % len(CHARACTERS)] for i in g.integers(0, 60, g.integers(6))),
                    HARD[g.integers(len(HARD))],
                ][g.integers(3)]
            )
        yield "".join(parts)


@cache
def trained(pre: str, n_vocab: int = 1500) -> Oracle:
    """A tokenizer of this cut, trained on the book; control and user-defined tokens are its last."""
    oracle = Oracle(models.BPE(ignore_merges=pre in IGNORE_MERGES))
    oracle.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[pre]),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    oracle.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    oracle.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=n_vocab, initial_alphabet=alphabet, show_progress=False)
    )
    oracle.add_tokens([AddedToken(name, special=False, normalized=False) for name in ADDED_NAMES])
    oracle.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROL_NAMES])
    return oracle


def without_special(oracle: Oracle) -> Oracle:
    """The same with control tokens whose names are ordinary text, as Tokenizer.encode() has them."""
    values = json.loads(oracle.to_str())
    values["added_tokens"] = [token for token in values["added_tokens"] if not token["special"]]
    return Oracle.from_str(json.dumps(values))


def metadata_of(oracle: Oracle, pre: str | None, **more: Any) -> dict[str, Any]:
    """The keys of a GGUF file."""
    values = json.loads(oracle.to_str())
    tokens = [oracle.id_to_token(i) for i in range(oracle.get_vocab_size())]
    types = [1] * len(tokens)
    for token in values["added_tokens"]:
        types[token["id"]] = 3 if token["special"] else 4
    keys = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": np.array(types, np.int32),
        "merges": [" ".join(pair) for pair in values["model"]["merges"]],
        "bos_token_id": tokens.index("<|begin|>"),
        "eos_token_id": tokens.index("<|im_end|>"),
        **more,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items() if value is not None}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _split(pattern: str) -> Json:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def sequence(*steps: Json) -> Json:
    return {"type": "Sequence", "pretokenizers": list(steps)}


CUTS = {
    "gpt-2": BYTE_LEVEL,
    "smollm": sequence({"type": "Digits", "individual_digits": True}, BYTE_LEVEL),
    **{
        pre: sequence(_split(SPLITS[pre][0]), {**BYTE_LEVEL, "use_regex": False})
        for pre in ("llama-bpe", "smaug-bpe", "qwen2", "tekken")
    },
}
"""As published checkpoints have them: GPT-2, SmolLM2, Llama 3, a fine-tune of it, Qwen2, Mistral Nemo."""


def tokenizer_json(pre: str) -> Json:
    """The object of a published tokenizer.json."""
    values: Json = json.loads(trained(pre).to_str())
    values["pre_tokenizer"] = CUTS[pre]
    assert values["model"]["ignore_merges"] is (pre in IGNORE_MERGES)
    return values
