"""A conversation on a terminal: lines are read, edited and obeyed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import FrameType

import click

from pymixtral.cli import in_options
from pymixtral.cli.expert_table import table
from pymixtral.cli.talk import Talk
from pymixtral.cli.text import note
from pymixtral.cli.work import n_tokens, note_lines, summary
from pymixtral.errors import ContextLengthError, InvalidArgumentError, OutputError, PymixtralError
from pymixtral.escapes import escaped

try:
    import readline
except ImportError:  # some builds of Python lack it: lines are typed as the terminal itself lets them be
    readline = None  # type: ignore[assignment]

_COMMANDS = {
    "/help": ("", "show this"),
    "/system": ("[TEXT]", "set the system text; without TEXT, remove it"),
    "/retry": ("", "answer the last message again, with another seed"),
    "/edit": ("[TEXT]", "change the last message, and answer it"),
    "/reset": ("", "begin a new conversation with the same system text"),
    "/save": ("[FILE]", "write the messages to a file; without FILE, to the last one"),
    "/load": ("FILE", "go on with the messages of a file"),
    "/adapter": ("[NAME[:SCALE] ...]", "answer with these adapters; without NAME, with none"),
    "/stats": ("", "show the length of the conversation and the last speed"),
    "/routing": ("", "show how often each expert was chosen for the last answer"),
}

_ENDS = ("/quit", "/exit", "/bye", "/q")
"""What other programs call their end."""

_MORE_HELP = '''
A line that ends with \\ goes on in the next one. A message of several lines may
also stand between """ and """; nothing in it is a command. The arrow keys bring
earlier lines back. Ctrl-C stops an answer, which is kept as far as it came, or
drops what is typed. Ctrl-D leaves.'''

_HINT = "/help lists the commands, Ctrl-D leaves."


def converse(talk: Talk, command: click.Command) -> None:
    """Hold a conversation until the end of input.

    Args:
        talk: the conversation.
        command: whose options the messages of the library are told in.
    """
    with _stopping(talk), _completing():
        _Terminal(talk, command).run()


class _Terminal:
    def __init__(self, talk: Talk, command: click.Command) -> None:
        self._talk, self._command = talk, command
        self._n_retries = 0

    def run(self) -> None:
        model, format = self._talk.model, self._talk.model.chat_format(self._talk.options["chat_format"])
        note(f"{model.path.name}, format {format.name}, context of {n_tokens(model.n_ctx)}.")
        adapters = model.core.factory.adapters
        if adapted := adapters.chosen(None):
            note(f"Answering with {adapters.written(adapted)}.")
        note(_HINT)
        while True:
            try:
                self._turn(*_message())
            except EOFError:
                note("")
                break
            except KeyboardInterrupt:
                self._talk.stop()  # the answer that may have begun at this moment
                note("")
                note(_HINT)
            except UnicodeDecodeError as error:
                note(f"expected UTF-8, found the byte 0x{error.object[error.start]:02x}: type the message again")

    def _turn(self, text: str, is_command: bool) -> None:
        try:
            wants_answer = self._obey(text) if is_command else self._ask(text)
        except (PymixtralError, OSError) as error:
            note(in_options(str(error), self._command))
            return
        if wants_answer:
            self._answer()

    def _answer(self) -> None:
        talk = self._talk
        try:
            talk.answer(self._n_retries)
        except OutputError:
            raise
        except ContextLengthError:
            most = talk.model.config.n_ctx_train
            longer = f", --context makes it longer, up to {most}" if talk.model.n_ctx < most else ""
            note(
                f"The conversation is longer than the context of {n_tokens(talk.model.n_ctx)}: "
                f"/reset begins a new one{longer}."
            )
        except PymixtralError as error:
            note(in_options(str(error), self._command))
        else:
            if talk.last and talk.last.answer and talk.last.answer.finish_reason == "cancelled":
                note("Stopped; /retry answers again.")
        note("")

    # --- What is typed: each says whether an answer is wanted -------------------------------------

    def _ask(self, text: str) -> bool:
        if not text.strip():
            return False
        self._n_retries = 0
        self._talk.history.ask(text)
        return True

    def _obey(self, line: str) -> bool:
        name, _, rest = line.partition(" ")
        if name not in _COMMANDS:
            near = get_close_matches(name, _COMMANDS, 1)
            advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(_COMMANDS)}"
            if name in _ENDS:
                advice = "Ctrl-D leaves"
            raise InvalidArgumentError(
                f'expected a command, found {name}: {advice}; a message goes between """ and """'
            )
        command: bool = getattr(self, f"_{name[1:]}")(rest.strip())
        return command

    def _help(self, _: str) -> bool:
        for name, (argument, line) in _COMMANDS.items():
            note(f"  {f'{name} {argument}':25}{line}")
        note_lines(_MORE_HELP)
        return False

    def _system(self, text: str) -> bool:
        before, self._talk.history.system = self._talk.history.system, text
        note(f"System text: {text}" if text else f"No system text; it was: {before}" if before else "No system text.")
        return False

    def _retry(self, _: str) -> bool:
        self._talk.history.take_back()
        self._n_retries += 1
        return True

    def _edit(self, text: str) -> bool:
        before = self._talk.history.question
        text = text or _line("> ", typed=escaped(before, keep="\n\t"))
        if text.strip():
            self._talk.history.take_back()
        return self._ask(text)

    def _reset(self, _: str) -> bool:
        self._talk.history.reset()
        self._talk.last = None
        note("A new conversation.")
        return False

    def _save(self, name: str) -> bool:
        path = self._talk.history.save(_path(name) if name else None)
        note(f"Saved {self._n_messages()} in {path}.")
        return False

    def _load(self, name: str) -> bool:
        if not name:
            raise InvalidArgumentError("expected the name of a file to load, found none: name one")
        self._talk.history.load(_path(name))
        self._talk.last = None
        note(f"Going on after {self._n_messages()}.")
        return False

    def _adapter(self, text: str) -> bool:
        adapters = self._talk.model.core.factory.adapters
        if not adapters.named:
            note("No adapter is loaded; --adapter loads one at the start.")
            return False
        scales = _scales(text, adapters.named)
        adapted = adapters.chosen(scales)  # refuses what is not loaded
        self._talk.options["adapter"] = scales
        note(
            f"Answering with {adapters.written(adapted)}."
            if adapted
            else f"Answering without an adapter; there are {', '.join(adapters.named)}."
        )
        return False

    def _stats(self, _: str) -> bool:
        note(f"conversation: {self._n_messages()}")
        if self._talk.last:
            stats = self._talk.last.generation.stats
            n = stats.prompt_tokens + stats.generated_tokens
            note(f"context: {n} of {n_tokens(self._talk.model.n_ctx)}, {stats.cached_tokens} of them from the cache")
            note_lines(summary(self._talk.last.generation))
        return False

    def _routing(self, _: str) -> bool:
        config = self._talk.model.config
        if config.n_experts == 1:
            note("The model is dense: it has no experts to choose from.")
            return False
        note_lines(table(self._talk.shares()))
        note(f"Percent of what went to each expert; every token has {config.n_experts_used} of them in a layer.")
        return False

    def _n_messages(self) -> str:
        n = len(self._talk.history.messages)
        return f"{n} message{'' if n == 1 else 's'}"


def _path(name: str) -> Path:
    return Path(os.path.expanduser(name))  # noqa: PTH111  # Path's own raises where there is no such user


# --- Keys ---------------------------------------------------------------------------------------------------------


def _message() -> tuple[str, bool]:
    """Reads a message, or a command: its text, and which it is."""
    line = _line("> ")
    if line.startswith('"""'):
        text = line[3:]
        while not text.endswith('"""'):
            text += "\n" + _line(". ")
        return text[:-3].strip("\n"), False
    while line.endswith("\\"):
        line = line[:-1] + "\n" + _line(". ")
    return line, line.startswith("/")


def _line(prompt: str, typed: str = "") -> str:
    """Reads a line, which begins with what is `typed` already."""
    if not sys.stdout.isatty():  # which is where input() would write the prompt
        sys.stderr.write(prompt)
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n")
    if readline and typed:
        readline.set_startup_hook(lambda: readline.insert_text(typed))
    try:
        return input(prompt)
    finally:
        if readline and typed:
            readline.set_startup_hook()


@contextmanager
def _stopping(talk: Talk) -> Iterator[None]:
    """Ctrl-C stops the answer that is written; else it is a KeyboardInterrupt."""

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if not talk.writing:
            raise KeyboardInterrupt
        talk.stop()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _scales(text: str, loaded: Container[str]) -> dict[str, float]:
    """What follows /adapter: names, each with its scale. One that stands alone may have spaces."""
    scales = {}
    alone = text in loaded or text.rpartition(":")[0] in loaded
    for part in [text] if alone else text.split():
        name, colon, number = part.rpartition(":")
        if part in loaded or not colon:
            name, number = part, "1"
        try:
            scales[name] = float(number)
        except ValueError:
            raise InvalidArgumentError(f"expected NAME:SCALE with a number, found {part}: type another") from None
    return scales


@contextmanager
def _completing() -> Iterator[None]:
    """The Tab key completes commands."""
    if not readline:
        yield
        return

    def complete(text: str, i: int) -> str | None:
        names = [name for name in _COMMANDS if name.startswith(text)] if readline.get_begidx() == 0 and text else []
        return names[i] if i < len(names) else None

    before, delimiters = readline.get_completer(), readline.get_completer_delims()
    readline.set_completer(complete)
    readline.set_completer_delims(" ")  # "/" is one of the usual ones
    readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
    try:
        yield
    finally:
        readline.set_completer(before)
        readline.set_completer_delims(delimiters)
