"""What the post-processor of a tokenizer.json puts around a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from pymixtral.arguments import shown
from pymixtral.errors import CheckpointError

from .side_files import SideFiles

_MAX_AROUND = 8
"""Ids on a side of a text. GGUF has a key for one. A template can name a long list many times."""


@dataclass(frozen=True)
class Around:
    """Token ids that are put around a text; -1 for a token that the vocabulary does not have.

    Attributes:
        before: in front of it.
        after: behind it.
    """

    before: list[int]
    after: list[int]


def read_post_processor(files: SideFiles, ids: Mapping[str, int]) -> Around | None:
    """Reads the post-processor.

    Args:
        files: those of the checkpoint.
        ids: text of a token to its id.

    Returns:
        What it puts around a text; None where there is none, or of a kind that does not say it.

    Raises:
        CheckpointError: it is broken.
    """
    step = files.object("tokenizer.json").get("post_processor")
    if step is None:
        return None
    steps = step.get("processors") if isinstance(step, dict) and step.get("type") == "Sequence" else [step]
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        _fail(files, step)
    around = None
    for step in steps:
        if step.get("type") == "TemplateProcessing":
            around = _template(files, step, ids)
        elif step.get("type") in ("BertProcessing", "RobertaProcessing"):
            around = Around(*([_id(files, step, pair, ids)] for pair in (step.get("cls"), step.get("sep"))))
        elif step.get("type") == "ByteLevel":
            around = around or Around([], [])  # it changes offsets alone
        else:
            return None
    return around


def _template(files: SideFiles, step: dict[str, Any], ids: Mapping[str, int]) -> Around:
    parts, known = step.get("single"), step.get("special_tokens")
    if not isinstance(parts, list) or not isinstance(known, dict):
        _fail(files, step)
    sides: tuple[list[int], list[int]] = [], []
    side = 0
    for part in parts:
        if not isinstance(part, dict) or len(part) != 1:
            _fail(files, step)
        ((kind, value),) = part.items()
        if kind == "Sequence":
            side = 1
            continue
        name = value.get("id") if kind == "SpecialToken" and isinstance(value, dict) else None
        token = known.get(name) if isinstance(name, str) else None
        numbers = token.get("ids") if isinstance(token, dict) else None
        if not isinstance(numbers, list):
            _fail(files, step)
        if (n := len(sides[side]) + len(numbers)) > _MAX_AROUND:
            raise CheckpointError(
                f"{files.path('tokenizer.json')}: post_processor: expected at most {_MAX_AROUND} tokens on a side of a "
                f"text, found {n} or more"
            )
        if not all(type(number) is int for number in numbers):
            _fail(files, step)
        sides[side].extend(number if 0 <= number < len(ids) else -1 for number in numbers)
    return Around(*sides)


def _id(files: SideFiles, step: object, pair: object, ids: Mapping[str, int]) -> int:
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
        _fail(files, step)
    return ids.get(pair[0], -1)


def _fail(files: SideFiles, step: object) -> NoReturn:
    raise CheckpointError(
        f"{files.path('tokenizer.json')}: post_processor: expected a template of tokens around a "
        f"text, found {shown(step)}"
    )
