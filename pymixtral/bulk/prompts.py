"""A file of prompts: JSON lines, each an object with a prompt and what it has of its own."""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymixtral.arguments import refuse_unknown, shown
from pymixtral.errors import InvalidArgumentError
from pymixtral.escapes import escaped_json
from pymixtral.files.kinds import named
from pymixtral.options import Options

MAX_LINE = 1 << 24
"""Bytes of a line: above any prompt that a context holds."""

_OF_PYTHON = ("logits_processor", "routing")
"""Options that JSON cannot say, or whose answer it cannot hold."""

OPTIONS = (*(name for name in Options.__annotations__ if name not in _OF_PYTHON), "n", "best_of")
"""The options of Mixtral.generate() that a line may have."""

_FLAGS = ("ignore_eos", "parse_special")


@dataclass(frozen=True)
class Prompt:
    """A line of a file of prompts.

    Attributes:
        line: its number in the file, from 1.
        index: its number among the prompts, from 0.
        prompt: a text, or token ids.
        options: those of Mixtral.generate() that the line has.
        head: how the record of its text begins: index, digest and id as JSON, without the closing
            brace.
    """

    line: int
    index: int
    prompt: str | list[int]
    options: dict[str, Any]
    head: str


def read_prompts(path: Path, key: str) -> Iterator[Prompt]:
    """Read a file of prompts, a line at a time.

    Each line is an object: {"prompt": text or ids, "id": anything, option: value, ...}. Empty lines
    are left out.

    Args:
        path: the file, in UTF-8.
        key: whatever else the texts depend on; the digest of each line covers it.

    Yields:
        The prompts, in the order of the file. Their options are not checked further than their
        names.

    Raises:
        InvalidArgumentError: for a line that is no such object, with the file's name and the line's
            number; and for what is no regular file, as the file is read more than once.
        OSError: if it cannot be read.
    """
    index = 0
    with path.open("rb") as file:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InvalidArgumentError(
                f"{named(path)}: expected a file of prompts that can be read twice, found something else: "
                "save the prompts in a file first"
            )
        number = 0
        while data := file.readline(MAX_LINE + 1):
            number += 1
            if data.isspace():
                continue
            try:
                yield _parsed(data, number, index, key)
            except InvalidArgumentError as error:
                raise InvalidArgumentError(f"{named(path)}, line {number}: {error}") from None
            index += 1


def _parsed(data: bytes, number: int, index: int, key: str) -> Prompt:
    if len(data) > MAX_LINE:
        raise InvalidArgumentError(f"expected a line of at most {MAX_LINE} bytes, found more: cut the prompt")
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
    head = {"index": index, "digest": digest(key, data)}
    if "id" in fields:
        head["id"] = fields.pop("id")
    for name in _FLAGS:
        if type(fields.get(name, False)) is not bool:
            raise InvalidArgumentError(f"expected {name} to be true or false, found {shown(fields[name])}")
    if isinstance(bias := fields.get("logit_bias"), Mapping):
        fields["logit_bias"] = {_id(text): number for text, number in bias.items()}
    return Prompt(number, index, prompt, fields, json_line(head)[:-1])


def digest(key: str, line: bytes) -> str:
    """Make the digest that tells whether a text belongs to a line.

    Args:
        key: what else the text depends on.
        line: the line; white space around it does not count.

    Returns:
        32 characters, of SHA-256.
    """
    return hashlib.sha256(key.encode("utf-8", "surrogatepass") + b"\0" + line.strip()).hexdigest()[:32]


def json_line(value: Any) -> str:
    """Make JSON of one line that is safe on a terminal, without an end of line.

    Args:
        value: what JSON can say.
    """
    return escaped_json(json.dumps(value, ensure_ascii=False, allow_nan=False))


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
