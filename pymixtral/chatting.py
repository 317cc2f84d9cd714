"""Conversations: what a model answers, whole or piece by piece, with the calls of tools in it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from pymixtral.engine.asking import Question
from pymixtral.engine.completion import Completion, FinishReason, Stats
from pymixtral.engine.generation import Continuation
from pymixtral.engine.stream import AsyncGeneration, Generation
from pymixtral.errors import InvalidArgumentError
from pymixtral.model.routing import Routing
from pymixtral.options import Options
from pymixtral.questions import sampled
from pymixtral.request_factory import RequestFactory
from pymixtral.text.chat_format import ChatFormat, Prompt
from pymixtral.text.messages import ToolCall
from pymixtral.text.tool_calls import Event, TextPiece, ToolCallParser

if TYPE_CHECKING:
    from typing_extensions import Self

Messages = Sequence[Mapping[str, Any]]
"""A conversation: messages as OpenAI's interface has them; see pymixtral.text.messages."""

Tools = Sequence[Mapping[str, Any]]
"""Functions that a model may call, as OpenAI's interface has them."""

_Read = TypeVar("_Read", bound=Generation | AsyncGeneration)


@dataclass(frozen=True)
class Answer:
    """A model's next message in a conversation. str() returns its text.

    Attributes:
        content: its text, without the calls of tools.
        tool_calls: the calls that it asks for.
        finish_reason: "tool_calls" if it asks for any, else as in Completion.
        completion: all that the model wrote, and the work that it took.
        others: the other answers, if several were asked for.
        continued: the text of the message that it continues, which is no part of `content`.
    """

    content: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason | Literal["tool_calls"]
    completion: Completion
    others: tuple[Answer, ...] = ()
    continued: str = ""

    def __str__(self) -> str:
        return self.content

    @property
    def choices(self) -> tuple[Answer, ...]:
        """All answers, this one first."""
        return (self, *self.others)

    @property
    def message(self) -> dict[str, Any]:
        """The message to append to the conversation; in the place of the last one, if it continues that."""
        message: dict[str, Any] = {"role": "assistant", "content": self.continued + self.content}
        if self.tool_calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        return message


@dataclass(frozen=True)
class Conversation:
    """A conversation and the format that its next message is written in.

    Args:
        factory: makes the requests.
        format: the chat format.
        messages: the conversation.
        tools: the functions that the model may call; None: none.
        continue_final: continue the last message, which is an assistant's.
        options: how the answer is written.

    Attributes:
        prompt: what the model reads.

    Raises:
        InvalidArgumentError: for messages and tools that make no sense.
        UnsupportedError: for tools, if the format has none.
    """

    factory: RequestFactory
    format: ChatFormat
    messages: Messages
    tools: Tools | None
    continue_final: bool
    options: Options
    prompt: Prompt = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.messages, Sequence):  # what else they are is found with their prompt
            for i, message in enumerate(self.messages):
                if isinstance(message, Answer):
                    raise InvalidArgumentError(
                        f"expected messages[{i}] to be a message, found an Answer: pass its .message"
                    )
        prompt = self.format.prompt(self.messages, self.tools, self.continue_final)
        object.__setattr__(self, "prompt", prompt)

    def parser(self) -> ToolCallParser:
        """Make what finds the calls in one answer."""
        return self.format.tool_parser() if self.tools else ToolCallParser(None)

    def requests(self, n: int) -> list[Continuation]:
        """Make the requests for answers that come piece by piece.

        Args:
            n: how many.

        Returns:
            The requests.

        Raises:
            PymixtralError: as RequestFactory.continuations().
        """
        found = self.factory.continuations([self.prompt.ids], self.options, n, streams=True, **self._more)
        return [request for (request,) in found]

    @property
    def _more(self) -> dict[str, Any]:
        """What the format says of the text to come."""
        return {
            "begins_text": self.prompt.begins_text,
            "more_stops": self.format.stops,
            "more_stop_ids": self.format.stop_ids,
        }

    def question(self, n: int, best_of: int | None) -> Question[Answer]:
        """Make the question for one or several answers.

        Args:
            n: how many.
            best_of: how many to choose them from; None: n.

        Returns:
            The question.

        Raises:
            PymixtralError: as Mixtral.chat().
        """
        question = sampled(self.factory, [self.prompt.ids], n, best_of, self.options, **self._more)
        return Question(question.stages, lambda results: self._answer(question.answer(results)[0]), question.others)

    def _answer(self, completion: Completion) -> Answer:
        others = tuple(self._answer(other) for other in completion.others)
        completion = replace(completion, others=())
        parser, left = self.parser(), completion.text
        if self.factory.tokenizer and self.tools:
            decoder = self.factory.tokenizer.stream(begins_text=self.prompt.begins_text)
            for id in completion.tokens:
                text = decoder.push(id)[: len(left)]  # a stop string and what follows is no part of the answer
                left = left[len(text) :]
                parser.push(id, text)
        parser.push_text(left)
        parser.finish()
        calls = tuple(parser.calls)
        reason = "tool_calls" if calls else completion.finish_reason
        return Answer(parser.text, calls, reason, completion, others, self.prompt.continued)


class _AnswerReader(Generic[_Read]):
    """What both readers of an answer do with its pieces."""

    def __init__(self, generation: _Read, parser: ToolCallParser, continued: str = "") -> None:
        self.generation = generation
        self._parser = parser
        self._continued = continued
        self._n_parsed = 0
        self._waiting: deque[Event] = deque()
        self._over = False

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The complete calls so far."""
        return tuple(self._parser.calls)

    @property
    def answer(self) -> Answer | None:
        """The whole answer; None until its end was read."""
        completion = self.generation.completion
        if completion is None:
            return None
        reason = "tool_calls" if self._parser.calls else completion.finish_reason
        return Answer(self._parser.text, self.tool_calls, reason, completion, continued=self._continued)

    @property
    def finish_reason(self) -> FinishReason | Literal["tool_calls"] | None:
        """Why the answer ended, as in Answer; None until its end was read."""
        return self.answer.finish_reason if self.answer else None

    @property
    def tokens(self) -> list[int]:
        """The ids of what was read, with those of calls."""
        return self.generation.tokens

    @property
    def stats(self) -> Stats:
        """The work and the time so far."""
        return self.generation.stats

    @property
    def routing(self) -> Routing | None:
        """The experts of what was read, as in Generation; None if they were not asked for."""
        return self.generation.routing

    def cancel(self) -> None:
        """End the answer soon. Any thread may call this."""
        self.generation.cancel()

    def _end(self) -> None:
        self._over = True
        self._waiting.extend([*self._events(""), *self._parser.finish()])

    def _events(self, text: str) -> list[Event]:
        """What the tokens that were read since, and their text, mean."""
        tokens = self.generation.tokens[self._n_parsed :]
        self._n_parsed += len(tokens)
        if not tokens:
            return self._parser.push_text(text)
        *before, last = tokens
        events = [event for id in before for event in self._parser.push(id, "")]
        return events + self._parser.push(last, text)


class AnswerStream(_AnswerReader[Generation], Iterator[str]):
    """An iterator over the pieces of an answer's text; events() has the calls of tools, too.

    It ends early like Generation.

    Args:
        generation: generates the answer.
        parser: finds calls.
        continued: the text of the message that the answer continues.

    Attributes:
        generation: see above.
    """

    def _next(self) -> Event | None:
        """The next event; None at the end."""
        while not self._waiting and not self._over:
            try:
                self._waiting.extend(self._events(next(self.generation)))
            except StopIteration:
                self._end()
        return self._waiting.popleft() if self._waiting else None

    def events(self) -> Iterator[Event]:
        """Read the answer as pieces of text and of calls; see pymixtral.text.tool_calls.

        Yields:
            The events, in order. Use either this or the iterator itself.
        """
        while (event := self._next()) is not None:
            yield event

    def __next__(self) -> str:
        while (event := self._next()) is not None:
            if isinstance(event, TextPiece):
                return event.text
        raise StopIteration

    def close(self) -> None:
        """End the answer and the iteration; the end of a `with` block does so, too."""
        self.generation.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncAnswerStream(_AnswerReader[AsyncGeneration], AsyncIterator[str]):
    """An asynchronous iterator over the pieces of an answer's text; see AnswerStream.

    Args:
        generation: generates the answer.
        parser: finds calls.
        continued: the text of the message that the answer continues.

    Attributes:
        generation: see above.
    """

    async def _next(self) -> Event | None:
        """The next event; None at the end."""
        while not self._waiting and not self._over:
            try:
                self._waiting.extend(self._events(await self.generation.__anext__()))
            except StopAsyncIteration:
                self._end()
        return self._waiting.popleft() if self._waiting else None

    async def events(self) -> AsyncIterator[Event]:
        """Read the answer as pieces of text and of calls; see AnswerStream.

        Yields:
            The events, in order.
        """
        while (event := await self._next()) is not None:
            yield event

    async def __anext__(self) -> str:
        while (event := await self._next()) is not None:
            if isinstance(event, TextPiece):
                return event.text
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the answer and the iteration; the end of an `async with` block does so, too."""
        await self.generation.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
