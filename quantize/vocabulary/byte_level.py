"""The vocabulary of a byte-level tokenizer.json (of the package tokenizers), as GGUF's "gpt2".

GGUF has the tokens and merges, and a name for how a text is cut into pieces. A tokenizer.json has
the patterns of the cut themselves: they get the name that means exactly them, or are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import TokenType

from pymixtral.arguments import shown
from pymixtral.errors import UnsupportedError
from pymixtral.text.pretokenizers import PRE_TOKENIZERS

from .tokenizer_json import merges_of, pieces_of, steps_of
from .vocabulary import MAX_CHARACTERS, Vocabulary

_NAMES = {
    (PRE_TOKENIZERS[name].pattern, PRE_TOKENIZERS[name].ignore_merges): name
    for name in ("gpt-2", "llama-bpe", "smaug-bpe", "qwen2", "tekken")
}
_GPT2 = PRE_TOKENIZERS["gpt-2"].pattern
_DIGITS = {"type": "Digits", "individual_digits": True}


def is_byte_level(values: dict[str, Any]) -> bool:
    """Whether the object of a tokenizer.json is a BPE over bytes, whatever else may be wrong with it."""
    model = values.get("model")
    before = values.get("pre_tokenizer")
    if not isinstance(model, dict) or not isinstance(before, dict) or model.get("byte_fallback"):
        return False
    steps = before.get("pretokenizers") if before.get("type") == "Sequence" else [before]
    return isinstance(steps, list) and any(isinstance(step, dict) and step.get("type") == "ByteLevel" for step in steps)


def read_byte_level(path: Path, values: dict[str, Any]) -> Vocabulary:
    """The vocabulary of a byte-level tokenizer.json.

    Args:
        path: the file, for messages.
        values: the object in it.

    Returns:
        Its vocabulary, without what other files say. Nothing is added before a text: where it is,
        the post-processor says so.

    Raises:
        CheckpointError: it is broken.
        UnsupportedError: GGUF cannot express the tokenizer.
    """
    model = values["model"]
    for key, expected in (
        ("type", ("BPE",)),
        ("dropout", (None, 0)),
        ("continuing_subword_prefix", (None, "")),
        ("end_of_word_suffix", (None, "")),
        ("ignore_merges", (None, False, True)),
    ):
        # Files from before the key "type" have none for BPE.
        if (value := model.get(key, "BPE" if key == "type" else None)) not in expected:
            raise UnsupportedError(
                f"{path}: model: {key}: expected {shown(expected[0])}, which a vocabulary of kind 'gpt2' means, found "
                f"{shown(value)}"
            )
    pieces = pieces_of(path, model, MAX_CHARACTERS)
    return Vocabulary(
        tokens=list(pieces),
        scores=[0.0] * len(pieces),
        types=[int(TokenType.NORMAL)] * len(pieces),
        bos_id=None,
        eos_id=None,
        unknown_id=None,
        add_space_prefix=False,
        chat_template=None,
        add_bos=False,
        pre=_pre(path, values, bool(model.get("ignore_merges"))),
        merges=[" ".join(pair) for pair in merges_of(path, model)],
        notes=_normalizer_notes(path, values),
    )


def _pre(path: Path, values: dict[str, Any], ignore_merges: bool) -> str:
    """GGUF's name for the cut."""
    *steps, last = steps_of(path, values, "pre_tokenizer", "pretokenizers")
    use_regex, add_space = last.get("use_regex", True), last.get("add_prefix_space", True)
    if last.get("type") != "ByteLevel" or add_space is not False:
        raise UnsupportedError(
            f"{path}: pre_tokenizer: expected ByteLevel as the last step, with add_prefix_space false, found "
            f"{shown(last)}"
        )
    name = None
    if use_regex is True and not steps:
        name = _NAMES.get((_GPT2, ignore_merges))
    elif use_regex is True and steps == [_DIGITS] and not ignore_merges:
        name = "smollm"
    elif use_regex is False and len(steps) == 1 and isinstance(pattern := _pattern(steps[0]), str):
        name = _NAMES.get((pattern, ignore_merges))
    if name is None:
        raise UnsupportedError(
            f"{path}: pre_tokenizer: expected a cut that GGUF has a name for ({', '.join(_NAMES.values())}, smollm), "
            f"found {shown(steps or last)} and ignore_merges {ignore_merges}: write a file that takes token ids only, "
            "with no_tokenizer=True"
        )
    return name


def _pattern(step: dict[str, Any]) -> object:
    """The pattern whose matches become pieces; None for a step that does anything else."""
    pattern = step.get("pattern")
    isolated = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return pattern.get("Regex") if step == isolated and isinstance(pattern, dict) else None


def _normalizer_notes(path: Path, values: dict[str, Any]) -> tuple[str, ...]:
    notes = []
    for step in steps_of(path, values, "normalizer", "normalizers"):
        if step != {"type": "NFC"}:
            raise UnsupportedError(f"{path}: normalizer: expected none or NFC, found {shown(step)}")
        notes.append(
            "tokenizer.json composes characters (NFC) before all else: GGUF has no key for it, so texts in another "
            "form get other tokens"
        )
    return tuple(notes)
