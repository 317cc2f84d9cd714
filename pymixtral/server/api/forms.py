"""What a text has to match: OpenAI's response_format, and vLLM's structured_outputs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pymixtral.server.api.bodies import Part
from pymixtral.server.errors import APIError

Schema = dict[str, Any]
"""A JSON Schema. How large it may be, pymixtral.sampling.grammar says."""

_Grammar = Annotated[str, Field(min_length=1, max_length=1 << 16)]


class TextFormat(Part):
    """Any text."""

    type: Literal["text"]


class JSONObjectFormat(Part):
    """A JSON object; with llama.cpp's `schema`, one that the schema describes."""

    type: Literal["json_object"]
    schema_: Schema | None = Field(None, alias="schema")


class NamedSchema(Part):
    """A schema with OpenAI's fields around it. It is followed whatever `strict` says."""

    name: Annotated[str, Field(max_length=64)] | None = None
    description: Annotated[str, Field(max_length=1 << 16)] | None = None
    schema_: Schema = Field(alias="schema")
    strict: bool | None = None


class JSONSchemaFormat(Part):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JSONObjectFormat | JSONSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(Part):
    """vLLM's way to say it; one of them."""

    json_: Schema | Annotated[str, Field(max_length=1 << 18)] | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: _Grammar | None = None
    choice: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1 << 12)] | None = None
    grammar: _Grammar | None = None


def form_options(format: Any, structured: StructuredOutputs | None) -> dict[str, Any]:
    """Turn what a request wants of its text into options.

    Args:
        format: a ResponseFormat; None: none.
        structured: vLLM's; None: none.

    Returns:
        Those of pymixtral.sampling.grammar.Form.

    Raises:
        APIError: for several of them.
    """
    options: dict[str, Any] = {}
    if isinstance(format, JSONObjectFormat):
        options = {"json_object": True} if format.schema_ is None else {"json_schema": format.schema_}
    elif isinstance(format, JSONSchemaFormat):
        options = {"json_schema": format.json_schema.schema_}
    if structured is not None:
        given = {
            "json_schema": structured.json_,
            "json_object": structured.json_object or None,
            "regex": structured.regex,
            "choice": structured.choice,
            "lark": structured.grammar,
        }
        more = {name: value for name, value in given.items() if value is not None}
        if len(more) + bool(options and more) > 1:
            raise APIError(
                400,
                "expected one form of the text, found several: leave all but one out of structured_outputs and "
                "response_format",
                param="structured_outputs",
                code="invalid_value",
            )
        options |= more
    return options
