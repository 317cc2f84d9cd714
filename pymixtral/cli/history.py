"""The messages of a conversation, as its user changes, saves and loads them."""

from __future__ import annotations

import json
from pathlib import Path

from pymixtral.errors import InvalidArgumentError
from pymixtral.files.atomic import Identity, replacing
from pymixtral.text.messages import ASSISTANT, SYSTEM, USER, checked_messages

MAX_BYTES = 1 << 26
"""The largest file that is loaded. No context holds so much text."""


class History:
    """A conversation of a user and a model.

    Args:
        system: its system text; empty: none.

    Raises:
        InvalidArgumentError: for a text as ask() refuses it.

    Attributes:
        messages: what Mixtral.chat() takes. The last is the user's while it has no answer.
        path: the file that it was last saved to or loaded from.
    """

    def __init__(self, system: str = "") -> None:
        self.messages: list[dict[str, str]] = []
        self.path: Path | None = None
        self._file: Identity | None = None
        self.system = system

    @property
    def system(self) -> str:
        """The system text that the conversation begins with; empty: none."""
        first = self.messages[:1]
        return first[0]["content"] if first and first[0]["role"] == SYSTEM else ""

    @system.setter
    def system(self, text: str) -> None:
        first = [{"role": SYSTEM, "content": _unicode(text)}] if text else []
        self.messages = first + self.messages[bool(self.system) :]

    @property
    def question(self) -> str:
        """The user's last message.

        Raises:
            InvalidArgumentError: if there is none.
        """
        return self.messages[self._last_question()]["content"]

    def ask(self, text: str) -> None:
        """Add a message of the user. It replaces one that has no answer.

        Args:
            text: what it says.

        Raises:
            InvalidArgumentError: for a text with lone surrogates, which are bytes that are not UTF-8.
        """
        text = _unicode(text)
        if self.messages and self.messages[-1]["role"] == USER:
            self.messages.pop()
        self.messages.append({"role": USER, "content": text})

    def answer(self, text: str) -> None:
        """Add the model's answer.

        Args:
            text: what it says. An empty one is not kept, because most formats cannot express it.
        """
        if text:
            self.messages.append({"role": ASSISTANT, "content": text})

    def take_back(self) -> None:
        """Remove what follows the user's last message.

        Raises:
            InvalidArgumentError: if there is none.
        """
        del self.messages[self._last_question() + 1 :]

    def reset(self) -> None:
        """Remove all but the system text."""
        del self.messages[bool(self.system) :]

    def save(self, path: Path | None = None) -> Path:
        """Write the messages to a file, as JSON. It appears when it is complete.

        Args:
            path: the file. One that this conversation was saved to or loaded from is replaced;
                None: that one.

        Returns:
            The file.

        Raises:
            InvalidArgumentError: if no file is named, or there is nothing to save.
            OutputError: if the file cannot be written, or is another that exists.
        """
        path = path or self.path
        if path is None:
            raise InvalidArgumentError("expected the name of a file to save to, found none: name one")
        if not self.messages:
            raise InvalidArgumentError("expected messages to save, found none yet: say something first")
        with replacing(path, force=False, own=self._file) as temporary:
            temporary.write_text(json.dumps(self.messages, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        self.path, self._file = path, Identity.of(path)
        return path

    def load(self, path: Path) -> None:
        """Replace the conversation by one that was saved. After an error it is as it was.

        Args:
            path: JSON of messages with the roles system, user and assistant, as Mixtral.chat() has
                them.

        Raises:
            InvalidArgumentError: for anything else.
            OSError: if the file cannot be read.
        """
        own = Identity.of(path)
        messages = _read(path)
        self.messages, self.path, self._file = messages, path, own

    def _last_question(self) -> int:
        for i in reversed(range(len(self.messages))):
            if self.messages[i]["role"] == USER:
                return i
        raise InvalidArgumentError("expected a message of yours, found none yet: say something first")


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError("expected a text in UTF-8, found other bytes: write it again") from None
    return text


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():  # a pipe would be waited for
        raise InvalidArgumentError(f"{path}: expected a file with a conversation, found none: name another")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InvalidArgumentError(f"{path}: expected at most {MAX_BYTES >> 20} MiB, found more: name another file")
    try:
        given = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f"{path}: expected messages as JSON, found something else ({error}): name another file"
        ) from None
    if not isinstance(given, list) or not given:
        raise InvalidArgumentError(f"{path}: expected a list of messages, found something else: name another file")
    try:
        checked = checked_messages([*given, {"role": USER, "content": ""}])[:-1]  # one to answer is checked alone
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{path}: {error}") from None
    for i, message in enumerate(checked):
        if message.role not in (SYSTEM, USER, ASSISTANT) or message.tool_calls:
            raise InvalidArgumentError(
                f"{path}: expected messages of system, user and assistant without calls of tools, found one in "
                f"messages[{i}]: continue it from Python"
            )
    return [{"role": message.role, "content": message.text("\n\n")} for message in checked]
