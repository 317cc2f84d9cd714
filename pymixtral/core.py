"""Core: what is inside an open model, for the rooms of this package that ask it in ways of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pymixtral.arguments import refuse_unknown, shown, text_of
from pymixtral.arrays import Ids
from pymixtral.chatting import Conversation, Messages
from pymixtral.engine.engine import Engine
from pymixtral.errors import InvalidArgumentError
from pymixtral.files.gguf import GGUFFile
from pymixtral.model.overrides import Override
from pymixtral.options import CHAT_OPTIONS, ChatOptions, Options
from pymixtral.request_factory import RequestFactory
from pymixtral.text.chat import choose
from pymixtral.text.chat_format import ChatFormat
from pymixtral.text.tokenizer import Tokenizer

_ADVICE = "put instructions in a system message; pymixtral.Options lists the options"


class Core:
    """The parts of an open model, and what several of its callers make of them.

    Mixtral, AsyncMixtral, the server, evaluation and bulk share it as Mixtral.core. It is no part of the
    public interface: it changes without notice.

    Args:
        file: see below.
        different: see below.
        factory: see below.
        engine: see below.

    Attributes:
        file: the model's file, as long as the model is open.
        different: metadata that replaced the file's, as pymixtral.model.overrides.override() gives it.
        factory: makes requests; pymixtral.questions makes questions with it.
        engine: answers them.
    """

    def __init__(
        self, file: GGUFFile, different: Mapping[str, Override], factory: RequestFactory, engine: Engine
    ) -> None:
        self.file, self.different, self.factory, self.engine = file, different, factory, engine
        self._formats: dict[str | None, ChatFormat] = {}

    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            UnsupportedError: if the file has none.
            ClosedError: if the model is closed.
        """
        self.engine.check_open()
        return self.factory.text_tokenizer()

    def chat_format(self, name: str | None) -> ChatFormat:
        """Choose the format of conversations; see Mixtral.chat_format().

        Args:
            name: one of pymixtral.text.chat.NAMES; None: the one that fits.

        Returns:
            The format, the same each time.

        Raises:
            PymixtralError: as Mixtral.chat_format().
        """
        if name is not None:
            text_of("chat_format", name)
        if name not in self._formats:
            template = self.file.metadata.get("tokenizer.chat_template")
            self._formats[name] = choose(self.tokenizer(), template if isinstance(template, str) else None, name)
        return self._formats[name]

    def conversation(self, messages: Messages, options: ChatOptions, call: str) -> Conversation:
        """Make a conversation of the arguments of a call. Its prompt is tokenized.

        Args:
            messages: the messages so far.
            options: see ChatOptions.
            call: the call, in whose name unknown options are refused.

        Returns:
            The conversation.

        Raises:
            PymixtralError: as Mixtral.chat().
        """
        refuse_unknown(options, CHAT_OPTIONS, call, _ADVICE)
        given: dict[str, Any] = dict(options)
        variables = given.pop("template_variables", None) or {}
        if not isinstance(variables, Mapping):
            raise InvalidArgumentError(
                f"expected template_variables to be a mapping of names to values, found {shown(variables)}"
            )
        format = self.chat_format(given.pop("chat_format", None)).with_variables(variables)
        tools, continue_final = given.pop("tools", None) or None, given.pop("continue_final", False)
        return Conversation(self.factory, format, messages, tools, continue_final, cast("Options", given))

    def ids_of(self, text: str | Ids | Messages) -> str | Ids:
        """Turn what may be the messages of a conversation into their ids.

        Args:
            text: messages; or a text or ids, which stay as they are.

        Returns:
            A text or ids.

        Raises:
            PymixtralError: as Mixtral.routing().
        """
        if isinstance(text, (list, tuple)) and text and isinstance(text[0], Mapping):
            return self.conversation(text, {}, "routing()").prompt.ids
        return cast("str | Ids", text)
