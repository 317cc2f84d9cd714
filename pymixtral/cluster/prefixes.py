"""Where a prompt begins, and which replica texts that begin so go to.

A replica keeps the pages of earlier texts. So texts that begin alike should meet on one of them, and a
conversation should come back to where it was. Rendezvous hashing does that without a table: each replica
has a number for each beginning, and the highest one counts. Where a replica comes or goes, only the texts
that are its own change their place.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from pydantic_core import from_json

LENGTH = 512
"""Characters of a prompt that count as its beginning: of English text some eight pages of the cache."""

LOOKED_AT = 1 << 15
"""Bytes of a body that are read here, at each of its ends. Others wait for it: some milliseconds at the worst."""

_MODEL = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.)*")')


def prefix_of(path: str, body: bytes) -> str:
    """Find where the prompt of a request begins.

    Of a conversation it is what stands before its first answer, so that it stays the same from turn to
    turn. Texts for different adapters begin differently, as their pages do. Of a long body only the first
    LOOKED_AT bytes are read, and as many at its end for the name of the model, which many clients write there.

    Args:
        path: of the request.
        body: JSON. What is wrong with it, the replica says.

    Returns:
        A text; "": there is no prompt whose pages another request could use.
    """
    try:
        fields = from_json(body[:LOOKED_AT].decode("utf-8", "ignore"), allow_partial="trailing-strings")
    except ValueError:
        return ""
    if not isinstance(fields, dict):
        return ""
    if "messages" in fields:
        text = _opening(fields["messages"])
    elif path.endswith("/responses"):
        given = fields.get("input")
        text = _text(fields.get("instructions")) + (_opening(given) if isinstance(given, list) else _text(given))
    else:
        prompt = fields.get("prompt")
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            prompt = prompt[0]  # of several prompts
        text = _text(prompt)
    model = fields.get("model") or _model_at_end(body)
    whose = (model[:LENGTH] if isinstance(model, str) else "") + _scales(fields.get("adapter"))[:LENGTH]
    return f"{whose}\0{text[:LENGTH]}" if text else ""


def _model_at_end(body: bytes) -> Any:
    found = _MODEL.findall(body[max(LOOKED_AT, len(body) - LOOKED_AT) :])
    try:
        return from_json(found[-1]) if found else ""
    except ValueError:
        return ""


def _scales(adapter: Any) -> str:
    """The adapters that a request names beside its model, in whatever order."""
    if isinstance(adapter, dict):
        return " ".join(f"{name} {scale}" for name, scale in sorted(adapter.items()) if isinstance(scale, (int, float)))
    return adapter if isinstance(adapter, str) else ""


def _opening(messages: Any) -> str:
    """The texts of messages up to the first one of the user, with their roles."""
    found = ""
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            role = message.get("role")
            found += f"{role}\0{_text(message.get('content'))}\0"
            if role == "user" or len(found) > LENGTH:
                break
    return found


def _text(value: Any) -> str:
    """A text, the texts of its parts, or the numbers of its tokens."""
    if isinstance(value, str):
        return value[:LENGTH]
    if not isinstance(value, list):
        return ""
    parts = [part.get("text") if isinstance(part, dict) else part for part in value[:LENGTH]]
    return " ".join(str(part)[:LENGTH] for part in parts if isinstance(part, (str, int)))


def ranked(prefix: str, replicas: Sequence[str]) -> list[str]:
    """Order replicas by whose a beginning is.

    Args:
        prefix: as prefix_of() returns it.
        replicas: their names.

    Returns:
        The names, the one that the beginning belongs to first.
    """
    key = blake2b(prefix.encode("utf-8", "surrogatepass"), digest_size=32).digest()
    return sorted(replicas, key=lambda name: blake2b(name.encode(), key=key).digest(), reverse=True)


def chosen(prefix: str, loads: Mapping[str, int], slack: int, draw: random.Random) -> list[list[str]]:
    """Choose replicas for a request.

    The replica that the beginning belongs to takes it, unless it has more than `slack` requests over the
    idlest; then two that are drawn are compared, as for a request without a beginning.

    Args:
        prefix: as prefix_of() returns it.
        loads: requests that each replica has, by its name; at least one.
        slack: see above.
        draw: draws.

    Returns:
        Groups of replicas, of which the first one that takes requests counts; within a group the idlest.
    """
    names = list(loads)
    pair = draw.sample(names, min(2, len(names)))
    if prefix:
        first = ranked(prefix, names)[0]
        if loads[first] <= min(loads.values()) + slack:
            return [[first], pair, names]
    return [pair, names]
