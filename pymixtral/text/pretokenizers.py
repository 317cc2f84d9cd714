"""How the byte-level tokenizers of GGUF cut a text into pieces: `tokenizer.ggml.pre`.

A token never reaches over the end of a piece. llama.cpp defines a cut by a list of patterns, each of
which cuts the pieces that the one before it made. Every list here is one pattern that makes the
same pieces. Its matches, one after the other, are the whole text. The time is linear in the text's
length: whatever a part of a pattern takes too much, it gives back once.
"""

from __future__ import annotations

from dataclasses import dataclass

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Digits by themselves first. Spaces before a digit are then the end of a piece.
_DIGITS = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"

# Punctuation first, then _GPT2, then numbers without their space, then three digits at a time.
_SIGNS = r"\p{P}$+<=>^~|"
_DEFAULT = (
    rf"[{_SIGNS}]+| ?\p{{L}}+|[0-9]{{3}}|(?:(?![0-9]{{3}})\p{{N}})+| ?[^\s\p{{L}}\p{{N}}{_SIGNS}]+"
    rf"|\s+(?![^\s{_SIGNS}])|\s+"
)

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"

TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern that tekken.json has. llama.cpp has an approximation of it, which cuts scripts without
capital letters, such as Devanagari, in other places."""


@dataclass(frozen=True)
class PreTokenizer:
    """What a name of `tokenizer.ggml.pre` means.

    Attributes:
        pattern: matches a piece of a text; together the matches are the text.
        ignore_merges: whether a piece that is a token becomes that token, whatever the merges say.
        add_bos: whether a text begins with the begin-of-text token where the file does not say it.
    """

    pattern: str
    ignore_merges: bool = False
    add_bos: bool = False


PRE_TOKENIZERS = {
    **dict.fromkeys(("gpt-2", "phi-2"), PreTokenizer(_GPT2)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), PreTokenizer(_DIGITS)
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "pixtral", "falcon3", "falcon-h1", "midm-2.0", "lfm2"),
        PreTokenizer(_LLAMA3, ignore_merges=True, add_bos=True),
    ),
    **dict.fromkeys(("smaug-bpe", "dbrx"), PreTokenizer(_LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"), PreTokenizer(_QWEN2)),
    "tekken": PreTokenizer(TEKKEN, ignore_merges=True, add_bos=True),
    "default": PreTokenizer(_DEFAULT),
}
"""By the names that llama.cpp gives them. "default" is for files from before the key."""
