"""The plugin for llm, the command line of Simon Willison: it talks with models that pymixtral runs.

llm imports this module whenever it starts, so the engine is imported when a model answers first. A
file is opened once a process, for all models and tasks, and closed with it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from itertools import count
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import click
import llm
from llm.parts import AttachmentPart, Message, TextPart, ToolCallPart, ToolResultPart
from pydantic import Field, TypeAdapter, ValidationError, create_model, model_validator

from pymixtral.adapters.naming import NamedAdapter, parse
from pymixtral.demo import demo_chat_path
from pymixtral.errors import InvalidArgumentError, PymixtralError
from pymixtral.escapes import escaped
from pymixtral.sampling.grammar import grammar_of
from pymixtral.sampling.parameters import SamplingParameters

if TYPE_CHECKING:
    from pymixtral.chatting import AnswerStream, AsyncAnswerStream
    from pymixtral.mixtral import Mixtral

MODEL_ID = "pymixtral"
"""The model of PYMIXTRAL_MODEL, or the demo. Those that have names begin with it and "/"."""

_NAME = re.compile("[A-Za-z0-9._-]{1,100}")


# --- Options ------------------------------------------------------------------------------------------------------

_TYPES: dict[str, Any] = {"float": float | None, "int": int | None, "int | None": int | None}
_SAMPLING: dict[str, Any] = {
    field.name: (_TYPES[str(field.type)], Field(default=None, description=field.metadata["help"]))
    for field in fields(SamplingParameters)
    if str(field.type) in _TYPES  # those that a line of the command line can say
}
_OTHERS: dict[str, Any] = {
    name: (kind, Field(default=None, description=help))
    for name, kind, help in (
        ("max_tokens", int | None, "Tokens of an answer at most.  [default: until the model ends it]"),
        ("stop", str | list[str] | None, "End the answer before this text."),
        ("timeout", float | None, "End the answer after so many seconds."),
        ("json_object", bool | None, "Write a JSON object."),
        ("regex", str | None, "Write what this regular expression matches."),
        ("lark", str | None, "Write what this grammar derives."),
        ("choice", list[str] | None, "Write one of these; in Python alone."),
        ("chat_format", str | None, "The form of the conversation.  [default: the one that fits the model]"),
        ("adapter", str | list[str] | None, "Use a low-rank adapter (LoRA): PATH or PATH:SCALE; several as JSON."),
    )
}


def _adapters(given: str | list[str] | None) -> list[NamedAdapter]:
    """What `adapter` names: one, a list, or a list in JSON, as llm's command line gives an option only once."""
    if isinstance(given, str) and given.startswith("["):
        try:
            given = TypeAdapter(list[str]).validate_json(given)
        except ValidationError:
            raise InvalidArgumentError(
                f'expected several adapters as a list of JSON, such as ["tales.gguf:0.5", "polite.gguf"], found {given}'
            ) from None
    return [parse(text) for text in ([given] if isinstance(given, str) else given or [])]


class _Checked(llm.Options):
    """Refuses wrong values before a model is opened."""

    @model_validator(mode="after")
    def _check(self) -> _Checked:
        given = self.model_dump(exclude_none=True)
        SamplingParameters(**{name: value for name, value in given.items() if name in _SAMPLING})
        grammar_of(given)
        _adapters(given.get("adapter"))
        return self


Options = create_model("Options", __base__=_Checked, **_SAMPLING, **_OTHERS)
"""Those of pymixtral.Options that a user of llm may want. None stands for pymixtral's default."""


# --- Models -------------------------------------------------------------------------------------------------------


class _Local:
    """What the model for threads and the one for tasks have in common.

    Args:
        model_id: the name in llm.
        path: the file; None: that of PYMIXTRAL_MODEL, else the demo's.
    """

    can_stream = True
    supports_schema = True
    Options: Any = Options

    def __init__(self, model_id: str, path: Path | None) -> None:
        named = os.environ.get("PYMIXTRAL_MODEL")
        self.model_id = model_id
        self.path = path or (Path(named) if named else demo_chat_path())
        self.supports_tools = self.path != demo_chat_path()  # of others it is known when they are open

    def __str__(self) -> str:
        return f"pymixtral: {self.model_id} ({escaped(self.path.name)})"


class LocalModel(_Local, llm.Model):
    """A model for llm's commands and for threads."""

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,  # noqa: ARG002
        response: llm.Response,
        conversation: llm.Conversation | None,  # noqa: ARG002
    ) -> Iterator[str]:
        """Answer; llm calls this.

        Args:
            prompt: the conversation and what is wanted.
            stream: has no meaning here: pieces are what there is.
            response: is told of calls of tools and of the work.
            conversation: has nothing that `prompt` has not.

        Yields:
            Pieces of the answer's text.

        Raises:
            ModelError: for everything that pymixtral refuses.
        """
        with _for_llm():
            model, question = _asked(self.path, prompt)
            with model.stream_chat(**question) as answer:
                yield from answer
                _tell(response, answer, self.path)


class AsyncLocalModel(_Local, llm.AsyncModel):
    """A model for tasks."""

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,  # noqa: ARG002
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None,  # noqa: ARG002
    ) -> AsyncGenerator[str, None]:
        """Answer; see LocalModel.

        Args:
            prompt: as there.
            stream: as there.
            response: as there.
            conversation: as there.

        Yields:
            Pieces of the answer's text.

        Raises:
            ModelError: as there.
        """
        from pymixtral.asynchronous import AsyncMixtral

        with _for_llm():
            model, question = await asyncio.to_thread(_asked, self.path, prompt)
            async with AsyncMixtral(model).stream_chat(**question) as answer:
                async for piece in answer:
                    yield piece
                _tell(response, answer, self.path)


@contextmanager
def _for_llm() -> Iterator[None]:
    try:
        yield
    except PymixtralError as error:
        raise llm.ModelError(str(error)) from error


_opening = Lock()


def _opened(path: Path) -> Mixtral:
    with _opening:  # two threads would open it twice
        return _open(path)


@cache
def _open(path: Path) -> Mixtral:
    from pymixtral.mixtral import Mixtral

    return Mixtral(path)


@cache
def _load(path: Path, adapter: Path, name: str) -> str:
    """Loads an adapter into the model of a file. Returns the name that it got."""
    model = _open(path)
    free = (f"{name} ({n})" if n else name for n in count())
    loaded = next(one for one in free if one not in model.adapters)  # others are of other places
    model.load_adapter(loaded, adapter)
    return loaded


def _asked(path: Path, prompt: llm.Prompt) -> tuple[Mixtral, dict[str, Any]]:
    """The model with what the prompt needs, and the arguments of stream_chat()."""
    question = _question(prompt)
    adapters, scales = _adapters(question.pop("adapter", None)), dict[str, float]()
    model = _opened(path)
    with _opening:
        for name, place, scale in adapters:
            loaded = _load(path, place.absolute(), name)
            scales[loaded] = scales.get(loaded, 0.0) + scale
    return model, question | {"adapter": scales}


def _question(prompt: llm.Prompt) -> dict[str, Any]:
    """The arguments of stream_chat(), but for adapters, which have to be loaded."""
    messages = [message for given in prompt.messages for message in _messages(given)]
    if not messages or messages[-1]["role"] == "system":  # llm leaves out a prompt that is empty
        messages.append({"role": "user", "content": ""})
    tools = []
    for tool in prompt.tools:
        if not isinstance(tool, llm.Tool):
            raise llm.ModelError(f"expected tools that are functions, found {tool.name}, which a provider runs")
        function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
        tools.append({"type": "function", "function": function})
    return {
        "messages": messages,
        "tools": tools,
        "json_schema": _closed(prompt.schema),
        **prompt.options.model_dump(exclude_none=True),
    }


def _closed(schema: Any) -> Any:
    """A schema whose object has no other properties unless it says so: llm's short form cannot say it."""
    return {"additionalProperties": False, **schema} if isinstance(schema, dict) and "properties" in schema else schema


def _messages(given: Message) -> Iterator[dict[str, Any]]:
    """A message of llm in the shape of OpenAI's: results are each one, and one without content is none.

    What another model's provider did by itself, and reasoning, is left out.
    """
    text, calls = "", []
    for part in given.parts:
        if isinstance(part, TextPart):
            text += part.text
        elif isinstance(part, ToolCallPart) and not part.server_executed:
            function = {"name": part.name, "arguments": part.arguments}
            calls.append({"id": part.tool_call_id, "type": "function", "function": function})
        elif isinstance(part, ToolResultPart) and not part.server_executed:
            yield {"role": "tool", "content": part.output, "tool_call_id": part.tool_call_id}
        elif isinstance(part, AttachmentPart):
            raise llm.ModelError("expected messages of text, found an attachment, which these models do not read")
    if calls:
        yield {"role": given.role, "content": text, "tool_calls": calls}
    elif text or given.role == "user":
        yield {"role": given.role, "content": text}


def _tell(response: llm.Response | llm.AsyncResponse, answer: AnswerStream | AsyncAnswerStream, path: Path) -> None:
    from pymixtral.text.messages import parsed

    for call in answer.tool_calls:
        arguments = parsed(call.arguments)
        given = arguments if isinstance(arguments, dict) else {"_raw": call.arguments}  # what llm itself makes of it
        response.add_tool_call(llm.ToolCall(call.name, given, call.id))
    stats = answer.stats
    details = {"cached_tokens": stats.cached_tokens} if stats.cached_tokens else None
    response.set_usage(input=stats.prompt_tokens, output=stats.generated_tokens, details=details)
    response.set_resolved_model(path.name)
    response.response_json = {"finish_reason": answer.finish_reason}


# --- Names of files -----------------------------------------------------------------------------------------------


def _names_path() -> Path:
    return Path(llm.user_dir()) / "pymixtral.json"  # type: ignore[no-untyped-call]


def _named() -> dict[str, Path]:
    """The files that have names. What is no such list is told, because llm must start all the same."""
    path = _names_path()
    if not path.exists():
        return {}
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): Path(file) for name, file in names.items()}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        click.echo(escaped(f"{path}: expected names of models as JSON, found something else ({error})"), err=True)
        return {}


def _write(names: dict[str, Path]) -> None:
    from pymixtral.files.atomic import replacing

    with replacing(_names_path(), force=True) as temporary:
        text = json.dumps({name: str(file) for name, file in sorted(names.items())}, indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")


@contextmanager
def _for_click() -> Iterator[None]:
    try:
        yield
    except (PymixtralError, OSError) as error:
        raise click.ClickException(escaped(str(error))) from error


# --- Hooks --------------------------------------------------------------------------------------------------------


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """Offer the models; llm calls this.

    Args:
        register: takes each.
    """
    register(LocalModel(MODEL_ID, None), AsyncLocalModel(MODEL_ID, None))
    for name, path in _named().items():
        register(LocalModel(f"{MODEL_ID}/{name}", path), AsyncLocalModel(f"{MODEL_ID}/{name}", path))


@llm.hookimpl
def register_commands(cli: click.Group) -> None:
    """Offer `llm pymixtral`; llm calls this.

    Args:
        cli: llm's own command.
    """

    @cli.group(name=MODEL_ID)
    def names() -> None:
        """Give names to model files: GGUF of the Mixtral family."""

    @names.command()
    @click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
    @click.option("--name", metavar="TEXT", help="The name.  [default: the file's, without .gguf]")
    def add(file: Path, name: str | None) -> None:
        """Offer FILE as the model pymixtral/NAME."""
        from pymixtral.files.gguf import GGUFFile

        name = name or file.stem
        if not _NAME.fullmatch(name):
            raise click.ClickException(f"expected a name of letters, digits, '.', '_' and '-', found {escaped(name)}")
        with _for_click():
            with GGUFFile(file):  # it is one
                pass
            _write(_named() | {name: file.resolve()})
        click.echo(f"{MODEL_ID}/{name}")

    @names.command()
    @click.argument("name")
    def remove(name: str) -> None:
        """Forget the name NAME; the file stays."""
        named = _named()
        if named.pop(name.removeprefix(f"{MODEL_ID}/"), None) is None:
            there = ", ".join(named) or "none"
            raise click.ClickException(escaped(f"expected one of the names {there}, found {name}"))
        with _for_click():
            _write(named)

    @names.command("list")
    def list_() -> None:
        """Show the names and their files."""
        for name, path in _named().items():
            click.echo(escaped(f"{MODEL_ID}/{name}  {path}"))
