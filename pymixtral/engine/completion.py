"""What the generation of a text gives: the text, why it ended, and the work that it took."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pymixtral.model.routing import Routing

FinishReason = Literal["stop", "length", "context", "cancelled", "deadline"]
"""Why a text ends: an end token or stop string, max_tokens, a full context, its caller's wish, or a
deadline."""


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of a token, as the model gives it, before any sampling step.

    Attributes:
        id: the token.
        logprob: natural logarithm of its probability.
        top: the most likely tokens at its place with their log-probabilities, most likely first;
            as many as were asked for.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Stats:
    """The work and the time of a generation. Times are those of the passes that it was part of, but
    for the last three, which are a clock's and no part of ==.

    Attributes:
        prompt_tokens: ids of the prompt.
        cached_tokens: ids of the prompt that were in the cache.
        generated_tokens: ids generated, without the end token.
        prompt_seconds: time of the passes up to the first token.
        generation_seconds: time of the passes after them.
        passes: number of these passes. Each gives a token, or several if drafts are accepted.
        pass_bytes: bytes of weights that a pass of one token reads.
        drafted_tokens: tokens that prompt lookup proposed, or a grammar forced.
        accepted_tokens: those of them that were right.
        queue_seconds: from its arrival in the engine to its first pass.
        first_seconds: from its arrival to its first token; 0 before that.
        seconds: from its arrival to its end, or until now.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    prompt_seconds: float
    generation_seconds: float
    passes: int
    pass_bytes: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    queue_seconds: float = field(default=0.0, compare=False)
    first_seconds: float = field(default=0.0, compare=False)
    seconds: float = field(default=0.0, compare=False)

    @property
    def prompt_tokens_per_second(self) -> float:
        """Prompt tokens computed per second, without cached ones; 0 if none were computed."""
        return _per_second(self.prompt_tokens - self.cached_tokens, self.prompt_seconds)

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first per second; 0 if there were none."""
        return _per_second(self.passes + self.accepted_tokens, self.generation_seconds)

    @property
    def gigabytes_per_second(self) -> float:
        """Weights read per second after the prompt, in 10^9 bytes, as if each pass had one token; 0
        if there were no passes.
        """
        return _per_second(self.passes * self.pass_bytes / 1e9, self.generation_seconds)


@dataclass(frozen=True)
class Completion:
    """A generated text. str() returns the text.

    Attributes:
        text: what follows the prompt, up to the end token or stop string.
        tokens: the ids generated, with those of a stop string and without the end token.
        finish_reason: "stop" at an end token or stop string, "length" at max_tokens, "context" if
            the context is full, "cancelled", or "deadline".
        stats: the work and the time that it took.
        stop_reason: the stop string, or the id of the end token, that ended the text; else None.
        logprobs: of each generated token, if they were asked for.
        prompt_logprobs: of each prompt token, if they were asked for. The first is None: nothing
            predicts it.
        others: the other texts, if several of one prompt were asked for.
        routing: the experts of each token, if they were asked for.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    stats: Stats
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    others: tuple[Completion, ...] = ()
    routing: Routing | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def choices(self) -> tuple[Completion, ...]:
        """All texts of the prompt, this one first."""
        return (self, *self.others)


def _per_second(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0
