"""A file of prompts: JSON lines, each an object with a prompt and what it has of its own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pymixtral.arguments import refuse_unknown, shown
from pymixtral.bulk.lines import Line, json_line
from pymixtral.errors import InvalidArgumentError
from pymixtral.options import Options

_OF_PYTHON = ("logits_processor", "routing")
"""Options that JSON cannot say, or whose answer it cannot hold."""

OPTIONS = (*(name for name in Options.__annotations__ if name not in _OF_PYTHON), "n", "best_of")
"""The options of Mixtral.generate() that a line may have."""

_FLAGS = ("ignore_eos", "parse_special")


@dataclass(frozen=True)
class Prompt(Line):
    """A line of a file of prompts; see Line.

    Attributes:
        prompt: a text, or token ids.
        options: those of Mixtral.generate() that the line has.
    """

    prompt: str | list[int]
    options: dict[str, Any]


def parse_prompt(data: bytes, number: int, index: int, digest: str) -> Prompt:
    """Read a line: {"prompt": text or ids, "id": anything, option: value, ...}.

    Args:
        data: the line, in UTF-8.
        number: see Line.
        index: see Line.
        digest: of the line and of what else the text depends on.

    Returns:
        The prompt. Its options are not checked further than their names.

    Raises:
        InvalidArgumentError: for a line that is no such object.
    """
    try:
        fields = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refused, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            f"expected UTF-8, found the byte 0x{data[error.start]:02x} at offset {error.start}"
        ) from None
    except RecursionError:
        raise InvalidArgumentError("expected a JSON object, found one nested too deeply") from None
    except InvalidArgumentError:
        raise
    except ValueError as error:
        raise InvalidArgumentError(f"expected a JSON object in one line, found an error ({error})") from None
    if not isinstance(fields, dict):
        raise InvalidArgumentError(f'expected an object such as {{"prompt": "Once"}}, found {shown(fields)}')
    refuse_unknown(fields, ("prompt", "id", *OPTIONS), "prompts")
    if "prompt" not in fields:
        raise InvalidArgumentError('expected a "prompt", found none: give a text or token ids')
    prompt = fields.pop("prompt")
    if not isinstance(prompt, str) and not (isinstance(prompt, list) and all(type(id) is int for id in prompt)):
        raise InvalidArgumentError(f"expected prompt to be a text or a list of token ids, found {shown(prompt)}")
    head = {"index": index, "digest": digest}
    if "id" in fields:
        head["id"] = fields.pop("id")
    for name in _FLAGS:
        if type(fields.get(name, False)) is not bool:
            raise InvalidArgumentError(f"expected {name} to be true or false, found {shown(fields[name])}")
    if isinstance(bias := fields.get("logit_bias"), Mapping):
        fields["logit_bias"] = {_id(text): number for text, number in bias.items()}
    return Prompt(number, index, json_line(head)[:-1], prompt, fields)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidArgumentError(f"expected each key once, found {shown(twice)} twice: remove one")
    return found


def _refused(name: str) -> Any:
    raise InvalidArgumentError(f"expected JSON, found {name}, which it does not have: write a finite number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refused(text if len(text) < 20 else "a huge number")


def _id(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidArgumentError(f"expected token ids in logit_bias, found {shown(text)}") from None
