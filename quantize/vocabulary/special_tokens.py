"""Tokens that begin and end a text, and the chat template: what the files beside a tokenizer say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pymixtral.arguments import shown
from pymixtral.errors import CheckpointError, UnsupportedError
from pymixtral.files.strict_json import read_limited

from .added_tokens import with_added
from .post_processor import read_post_processor
from .side_files import SideFiles, content, is_text
from .vocabulary import Vocabulary

_N_ENDS = 3
"""Tokens that end a text or a turn, for which GGUF has keys: eos, eot and eom."""


def completed(files: SideFiles, vocabulary: Vocabulary) -> Vocabulary:
    """Completes a vocabulary.

    Args:
        files: those of the checkpoint; docs/quantizing.md says which decides what.
        vocabulary: the tokenizer's own.

    Returns:
        The vocabulary with what these files say.

    Raises:
        CheckpointError: a file says what makes no sense.
        UnsupportedError: a file says what GGUF cannot express.
    """
    vocabulary = with_added(files, vocabulary)
    ids = {token: i for i, token in reversed(list(enumerate(vocabulary.tokens)))}
    listed_bos = [token for token in _ids(files, "bos_token_id") if token < len(ids)]
    own_bos = vocabulary.bos_id if vocabulary.bos_id is not None or not listed_bos else listed_bos[0]
    bos = _named(files, "bos_token", ids, own_bos)
    own_eos = _named(files, "eos_token", ids, vocabulary.eos_id)
    listed = _ids(files, "eos_token_id")
    ends = [token for token in listed if token < len(ids)] or ([own_eos] if own_eos is not None else [])
    if own_eos is not None and own_eos not in ends:
        # A chat model ends its turns with another token; after the end of a text nothing follows.
        ends.append(own_eos)
    notes = list(vocabulary.notes)
    if dropped := [token for token in listed if token >= len(ids)] + ends[_N_ENDS:]:
        notes.append(
            f"of the tokens that end a text, GGUF has {_N_ENDS} at most, of the vocabulary: left out "
            + ", ".join(map(str, dropped[:8]))
            + ", ..." * (len(dropped) > 8)
        )
    eos, eot, eom = [*ends, None, None, None][:_N_ENDS]
    add_bos, add_eos = _added_around(files, ids, bos, eos, vocabulary.add_bos, notes)
    space = files.flag("tokenizer_config.json", "add_prefix_space")
    if space and vocabulary.pre:
        raise UnsupportedError(
            f"{files.path('tokenizer_config.json')}: add_prefix_space: expected false, as GGUF's byte-level tokenizers "
            "put no space before a text, found true"
        )
    return replace(
        vocabulary,
        bos_id=bos,
        eos_id=eos,
        eot_id=eot,
        eom_id=eom,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=vocabulary.add_space_prefix if space is None else space,
        chat_template=_chat_template(files),
        notes=tuple(notes),
    )


def _named(files: SideFiles, key: str, ids: dict[str, int], default: int | None) -> int | None:
    """The id of a token that tokenizer_config.json or, before it was, special_tokens_map.json
    names.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        text = content(files.object(name).get(key))
        if text in ids:
            return ids[text]
    return default


def _added_around(
    files: SideFiles, ids: dict[str, int], bos: int | None, eos: int | None, adds_bos: bool, notes: list[str]
) -> tuple[bool, bool]:
    """Whether a text gets the begin-of-text and the end-of-text token.

    tokenizer_config.json says it, else the post-processor of tokenizer.json; else it gets the
    first if the tokenizer's kind does, adds_bos.
    """
    around = read_post_processor(files, ids)
    answers = []
    for key, token, default in (("add_bos_token", bos, adds_bos), ("add_eos_token", eos, False)):
        answer = files.flag("tokenizer_config.json", key)
        if answer is None and around is not None:
            found = around.before if key == "add_bos_token" else around.after
            answer = bool(found)
            if found and found != [token]:
                place = "before" if key == "add_bos_token" else "after"
                notes.append(
                    f"tokenizer.json puts the tokens {shown(found)} {place} a text: GGUF has no key "
                    "for them, they are left out"
                )
                answer = False
        answers.append(token is not None and (default if answer is None else answer))
    add_bos, add_eos = answers
    if add_eos:
        notes.append("the checkpoint adds the end-of-text token to each text; pymixtral itself does not")
    return add_bos, add_eos


def _ids(files: SideFiles, key: str) -> list[int]:
    """The token ids under a key, each once: of generation_config.json, else of config.json."""
    for name in ("generation_config.json", "config.json"):
        found = files.object(name).get(key)
        if found is None:
            continue
        ids = found if isinstance(found, list) else [found]
        for token in ids:
            if type(token) is not int or not 0 <= token < 1 << 31:
                raise CheckpointError(
                    f"{files.path(name)}: {key}: expected a token id or a list of them, found {shown(found)}"
                )
        return list(dict.fromkeys(ids))
    return []


def _chat_template(files: SideFiles) -> str | None:
    """chat_template.jinja, else what tokenizer_config.json has.

    That is a string, or the one named "default" of a list of {name, template}.
    """
    path = files.path("chat_template.jinja")
    if path.exists():
        template: Any = read_limited(path).decode("utf-8", "surrogateescape")
    else:
        path = files.path("tokenizer_config.json")
        template = files.object(path.name).get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if template is None:
        return None
    if not is_text(template) or "\0" in template:
        raise CheckpointError(f"{path}: chat_template: expected text, found {shown(template)}")
    return str(template)
