"""Bodies of requests: what pydantic checks, and how it is told what is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import Self

from pymixtral.arguments import shown
from pymixtral.errors import ContextLengthError, DeadlineError, InvalidArgumentError, UnsupportedError
from pymixtral.server.api.fields import IGNORED, REFUSED
from pymixtral.server.errors import APIError

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Text = Annotated[str, Field(max_length=1 << 23)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=1 << 20, fail_fast=True)]
"""Of long lists, and of lists of objects, the first error ends the check: a million take seconds and gigabytes."""

_NULL = {"type": "null"}


def _schema_of(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Names the fields that pydantic does not see, and what null stands for."""
    if issubclass(model, Body):
        properties = schema.setdefault("properties", {})
        for name in model.ignored:
            properties[name] = {"description": f"Has no effect: {IGNORED[name]}."}
        for name in model.refused:
            properties[name] = {"type": "null", "description": f"Is refused: {REFUSED[name]}."}
        if model.one_of:
            schema["oneOf"] = [{"required": [name], "properties": {name: {"not": _NULL}}} for name in model.one_of]


class Part(BaseModel):
    """An object inside a request. A field that it does not have is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_schema_of)


class Body(Part):
    """The body of a request. Each field is used, refused, or one of IGNORED.

    Attributes:
        ignored: names of IGNORED that it may have.
        refused: names of REFUSED that clients may send.
        one_of: fields of which a request has one.
    """

    ignored: ClassVar[tuple[str, ...]] = ()
    refused: ClassVar[tuple[str, ...]] = ()
    one_of: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def prepared(cls, data: Any) -> Any:
        """Take out what has no effect.

        Args:
            data: JSON of a request.

        Returns:
            What pydantic checks.

        Raises:
            APIError: for fields that are refused.
        """
        if not isinstance(data, dict):
            return data
        for name in cls.refused:
            if data.get(name) is not None:
                raise APIError(
                    400,
                    f"expected no field {name!r}, found {shown(data[name])}: {REFUSED[name]}",
                    param=name,
                    code="unsupported_parameter",
                )
        return {name: value for name, value in data.items() if name not in cls.ignored and name not in cls.refused}

    @classmethod
    def read(cls, data: Any) -> Self:
        """Check a request that came by another way than HTTP.

        Args:
            data: JSON of a request.

        Returns:
            The request.

        Raises:
            APIError: for anything else than what the class says.
        """
        prepared = cls.prepared(data)
        try:
            return cls.model_validate(prepared)
        except ValidationError as error:
            raise invalid(error.errors(), prepared) from None


class ModelBody(Body):
    """The body of a request to the model, or to one of its adapters."""

    model: Annotated[str, Field(max_length=256)] | None = None


def invalid(errors: Sequence[Mapping[str, Any]], data: Any) -> APIError:
    """Say what pydantic found.

    Args:
        errors: its list.
        data: what it checked.

    Returns:
        An error with status 400 that names the first field that is wrong.
    """
    found = [(_place(error, data), error) for error in errors]
    begin = found[0][0]
    # Of a union each kind has an error: the one that went furthest is what was meant.
    place, first = max((one for one in found if one[0][: len(begin)] == begin), key=lambda one: _depth(one[0]))
    param = _written(place) or None
    name = param or "the body"
    if first["type"] == "extra_forbidden":
        where = _written(place[:-1])
        return APIError(
            400,
            f"expected fields that {where or 'this endpoint'} has, found {place[-1]!r}: remove it",
            param=param,
            code="unknown_parameter",
        )
    if first["type"] == "missing":
        return APIError(400, f"expected {name}, found none: add it", param=param, code="missing_required_parameter")
    wanted = " or ".join(dict.fromkeys(_wanted(error) for at, error in found if at == place))
    return APIError(
        400, f"expected {name} to be {wanted}, found {shown(first.get('input'))}", param=param, code="invalid_value"
    )


def _place(error: Mapping[str, Any], data: Any) -> tuple[str | int, ...]:
    """The keys and indexes that lead to a value. pydantic's has the names of types among them."""
    place: list[str | int] = []
    parts = [part for part in error["loc"] if part != "body"]
    for i, part in enumerate(parts):
        inside = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if inside or (isinstance(data, dict) and part in data):
            place.append(part)
            data = data[part]
        elif i == len(parts) - 1 and error["type"] == "missing":
            place.append(part)
    return tuple(place)


def _depth(place: Sequence[str | int]) -> tuple[int, list[int]]:
    return len(place), [part for part in place if isinstance(part, int)]


def _written(place: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


_WANTED = {
    "string_type": "text",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def _wanted(error: Mapping[str, Any]) -> str:
    if error["type"] in _WANTED:
        return _WANTED[error["type"]]
    context = error.get("ctx", {})
    tag = str(context.get("discriminator", "type")).strip("'")
    if error["type"] == "union_tag_invalid":
        return f"an object whose {tag} is one of {context['expected_tags']}"
    if error["type"] == "union_tag_not_found":
        return f"an object with a {tag}"
    if error["type"] in ("too_short", "string_too_short"):
        return f"a {context.get('field_type', 'text').lower()} of the length {context['min_length']} or more"
    if error["type"] in ("too_long", "string_too_long"):
        return f"a {context.get('field_type', 'text').lower()} of the length {context['max_length']} or less"
    if error["type"] == "string_pattern_mismatch":
        return f"a text of the pattern {context['pattern']}"
    message = str(error["msg"])
    for before in ("Value error, expected ", "Value error, ", "Input should be "):
        if message.startswith(before):
            return message.removeprefix(before)
    return message[:1].lower() + message[1:]


_NAMES = {
    "json_schema": ("response_format", "structured_outputs", "text"),
    "json_object": ("response_format", "structured_outputs", "text"),
    "regex": ("structured_outputs",),
    "choice": ("structured_outputs",),
    "lark": ("structured_outputs",),
    "template": ("chat_template_kwargs",),
    "variables": ("chat_template_kwargs",),
    "texts": ("input",),
    "token": ("tokens",),
    "tools": ("messages", "input"),  # calls in a conversation
    "prompt": ("prompt", "messages", "input"),
    "messages": ("messages", "input"),
    "max_tokens": ("max_completion_tokens", "max_output_tokens"),
    "context": ("context",),
    "adapter": ("model",),
    "continuation": ("continuations",),
}
"""What words of pymixtral's messages are called in requests."""


def of_library(error: BaseException, body: Body) -> BaseException:
    """Say an error of pymixtral with the field that it is about.

    Args:
        error: any exception.
        body: the request that led to it.

    Returns:
        An APIError with status 400 for what is wrong with the request; else the error itself.
    """
    if isinstance(error, ContextLengthError):
        return APIError(
            400,
            str(error),
            param=next((name for name in ("prompt", "messages", "input", "context") if hasattr(body, name)), None),
            code="context_length_exceeded",
            n_prompt_tokens=error.n_tokens,
            n_ctx=error.n_ctx,
        )
    if isinstance(error, DeadlineError) and getattr(body, "timeout", None) is not None:
        return APIError(408, str(error), param="timeout", code="deadline", headers={"x-should-retry": "false"})
    if not isinstance(error, (InvalidArgumentError, UnsupportedError)):
        return error
    param = _param(str(error), body)
    if isinstance(error, UnsupportedError) and param is None:
        return error
    code = "invalid_value" if isinstance(error, InvalidArgumentError) else "unsupported_value"
    return APIError(400, str(error), param=param, code=code)


def _param(message: str, body: Body) -> str | None:
    """The field of a request that a message is about: the first that it names."""
    place = re.search(r"\b(messages|tools|continuations|texts)\[\d+\](\.\w+|\[\d+\])*", message)
    if place:
        name = "input" if place[1] not in type(body).model_fields else place[1]
        if name in body.model_fields_set:
            return place[0].replace(place[1], name, 1)
    for word in re.findall(r"\w+", message.partition(", found ")[0]) + re.findall(r"\w+", message):
        for name in (word, *_NAMES.get(word, ())):
            if name in body.model_fields_set:
                return str(name)
    return None
