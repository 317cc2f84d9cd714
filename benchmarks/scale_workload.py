"""What people ask of simulated machines: conversations, their questions and their lengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from pymixtral.arrays import I32
from pymixtral.engine.requests import Request


@dataclass(frozen=True)
class Workload:
    """What people ask. Lengths are lognormal; no trace of real use was at hand.

    Attributes:
        name: in tables.
        tenants: groups of conversations that begin with the same system prompt.
        system: its tokens.
        message: median tokens of a question.
        answer: median tokens of an answer.
        spread: the standard deviation of their logarithms.
        turns: questions of a conversation on average, geometric.
        think: seconds from an answer to the next question on average, exponential.
        context: the most tokens of a text.
    """

    name: str
    tenants: int = 20
    system: int = 256
    message: int = 60
    answer: int = 150
    spread: float = 0.8
    turns: float = 4.0
    think: float = 30.0
    context: int = 8192

    def conversation(self, rng: np.random.Generator) -> Conversation:
        """Draw a conversation with all of its questions and answers."""
        tenant = int(rng.integers(self.tenants))
        turns, length = [], self.system
        for _ in range(int(rng.geometric(1 / self.turns))):
            message, answer = (self._length(median, rng) for median in (self.message, self.answer))
            if length + message + answer > self.context:
                break
            turns.append((length + message, answer))
            length += message + answer
        if not turns:
            turns, length = [(self.system + 1, 1)], self.system + 2
        ids = np.concatenate([_system(tenant, self.system), rng.integers(3, 32000, length - self.system, np.int32)])
        return Conversation(int(rng.integers(1 << 62)), ids, turns)

    def _length(self, median: int, rng: np.random.Generator) -> int:
        most = self.context // 2
        return int(np.clip(round(median * np.exp(self.spread * rng.standard_normal())), 1, most))


CHAT = Workload("conversations")
DOCUMENTS = Workload("documents", system=64, message=1500, answer=150, spread=1.0, turns=2.0, think=60.0)
SINGLE = Workload("single questions", tenants=1, system=1, message=120, answer=150, turns=1.0)


@dataclass(eq=False)
class Conversation:
    """A conversation.

    Attributes:
        number: any, that of no other.
        ids: all of its tokens.
        turns: of each question the length of the text up to its end, and the tokens of the answer.
    """

    number: int
    ids: I32
    turns: list[tuple[int, int]]


class Text(Request):
    """A question and its answer, which is known from the beginning.

    Args:
        conversation: whose.
        turn: the number of the question.
        asked: when it was asked, in seconds of the virtual clock.

    Attributes:
        first: when it got its first token.
        last: when it got its last one so far.
        n_answer: tokens of the answer.
        front: the number of the process that routed it.
    """

    def __init__(self, conversation: Conversation, turn: int, asked: float) -> None:
        prompt, answer = conversation.turns[turn]
        super().__init__(conversation.ids[:prompt], room=answer, rows=range(0))
        self.ids[prompt:] = conversation.ids[prompt : prompt + answer]
        self.conversation = conversation
        self.turn = turn
        self.asked = asked
        self.first = self.last = asked
        self.n_answer = answer
        self.front = 0

    @property
    def n_left(self) -> int:
        """Tokens of the answer that are missing."""
        return self.n_prompt + self.n_answer - self.n_ids


@cache
def _system(tenant: int, n: int) -> I32:
    """A system prompt."""
    return np.random.default_rng([7, tenant]).integers(3, 32000, n, np.int32)


def questions(lengths: list[tuple[int, int]], seed: int = 0) -> Iterator[Text]:
    """Make questions of one turn with given lengths, asked at the beginning.

    Args:
        lengths: tokens of each prompt and of its answer.
        seed: of the ids.
    """
    rng = np.random.default_rng(seed)
    for number, (prompt, answer) in enumerate(lengths):
        ids = rng.integers(3, 32000, prompt + answer, np.int32)
        yield Text(Conversation(number, ids, [(prompt, answer)]), 0, 0.0)
