"""From the arguments of the public calls to questions of one or several requests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from pymixtral.arguments import integer, shown
from pymixtral.arrays import F32, F64, Ids
from pymixtral.engine.asking import Question
from pymixtral.engine.completion import Completion
from pymixtral.engine.logprobs import PromptLogprobs
from pymixtral.engine.requests import Request
from pymixtral.errors import InvalidArgumentError
from pymixtral.model.routing import Routing
from pymixtral.options import How
from pymixtral.request_factory import RequestFactory

MAX_SAMPLES = 128
"""The most texts of one prompt."""

POOLINGS = ("mean", "last")
"""How the states of a text's tokens become one vector."""


def generations(
    factory: RequestFactory,
    prompt: str | Ids | Sequence[str] | Sequence[Ids],
    n: int,
    best_of: int | None,
    options: Mapping[str, Any],
) -> Question[Completion | list[Completion]]:
    """Make the question of Mixtral.generate().

    Args:
        factory: makes the requests.
        prompt: a prompt, or a list of them.
        n: texts of each prompt.
        best_of: texts of each prompt to choose the n from; None: n.
        options: see pymixtral.Options.

    Returns:
        The question.

    Raises:
        InvalidArgumentError: as the factory, and for n and best_of out of range.
    """
    single = not _is_list(prompt)
    prompts: Any = [prompt] if single else prompt
    question = sampled(factory, prompts, n, best_of, options)
    return Question(
        question.stages,
        lambda results: question.answer(results)[0] if single else question.answer(results),
        question.others,
    )


def sampled(
    factory: RequestFactory,
    prompts: Sequence[str | Ids],
    n: int,
    best_of: int | None,
    options: Mapping[str, Any],
    **more: Any,
) -> Question[list[Completion]]:
    """Make the question for one or several texts of each of some prompts.

    Args:
        factory: makes the requests.
        prompts: texts, or token ids.
        n: texts of each prompt.
        best_of: texts of each prompt to choose the n from; None: n.
        options: see pymixtral.Options.
        **more: of RequestFactory.continuations(): begins_text, more_stops and more_stop_ids.

    Returns:
        The question. Each answer has the others of its prompt.

    Raises:
        InvalidArgumentError: for n and best_of out of range, and as the factory.
    """
    n = integer("n", n, 1, MAX_SAMPLES)
    of = n if best_of is None else integer("best_of", best_of, n, MAX_SAMPLES)
    chosen: Any = {**options, "logprobs": 0} if of > n and options.get("logprobs") is None else options
    leaders, *rest = factory.continuations(prompts, chosen, of, streams=False, **more)
    others: list[Request] = []
    for leader, *siblings in zip(leaders, *rest, strict=True):
        leader.siblings = list[Request](siblings)
        others += siblings

    def answer(results: list[Completion]) -> list[Completion]:
        after = iter(results[len(leaders) :])
        texts = [_best([first, *(next(after) for _ in range(of - 1))], n) for first in results[: len(leaders)]]
        if chosen is options:
            return texts
        return [
            replace(text, logprobs=None, others=tuple(replace(o, logprobs=None) for o in text.others)) for text in texts
        ]

    return Question([leaders], answer, others)


def _is_list(prompt: object) -> bool:
    """Whether this is a list of prompts, not a text or a list of ids."""
    return isinstance(prompt, (list, tuple)) and bool(prompt) and isinstance(prompt[0], (str, list, tuple, np.ndarray))


def _best(texts: list[Completion], n: int) -> Completion:
    if len(texts) > n:
        texts = sorted(texts, key=_worth, reverse=True)[:n]
    return replace(texts[0], others=tuple(texts[1:]))


def _worth(text: Completion) -> tuple[bool, float]:
    """The mean log-probability of a token; texts that were cut short, and those of no token, come last."""
    logprobs = text.logprobs or []
    complete = text.finish_reason not in ("cancelled", "deadline")
    return complete, sum(token.logprob for token in logprobs) / len(logprobs) if logprobs else -math.inf


@dataclass(frozen=True)
class Score:
    """How likely a text is to follow another one.

    Attributes:
        logprob: natural logarithm of its probability, the sum of its tokens'.
        tokens: the log-probability of each token.
        greedy: whether each token is the most likely one at its place.
    """

    logprob: float
    tokens: list[float]
    greedy: bool


def scores(
    factory: RequestFactory, context: str | Ids, continuations: Sequence[str | Ids], how: How
) -> Question[list[Score]]:
    """Make the question of Mixtral.score(): the first request computes the context for the others.

    The last token of a text predicts nothing and is not computed. So continuations that differ in
    their last token alone, such as the letters of a choice, are one request.

    Args:
        factory: makes the requests.
        context: a text or token ids.
        continuations: texts or token ids.
        how: priority, timeout, cache_salt and adapter.

    Returns:
        The question.

    Raises:
        InvalidArgumentError: for an empty context or continuation, and ids outside the vocabulary.
        ContextLengthError: if a text is longer than n_ctx.
        UnsupportedError: for texts, if the file has no tokenizer.
    """
    if isinstance(continuations, (str, bytes)) or not isinstance(continuations, Sequence):
        raise InvalidArgumentError(f"expected continuations to be a list, found {shown(continuations)}")
    served = factory.served_alone(how)
    before = factory.prompt_ids(context, name="context")
    readers: list[PromptLogprobs] = []
    readers_of: dict[tuple[bytes, int], list[PromptLogprobs]] = {}
    requests: list[Request] = []
    for i, continuation in enumerate(continuations):
        name = f"continuations[{i}]"
        if isinstance(context, str) and isinstance(continuation, str):
            # Tokens may span the seam: those that the context alone does not have count.
            ids = factory.prompt_ids(context + continuation, name=f"context and {name}")
            n_before = min(len(before), len(ids))
            n_before = int((np.append(before[:n_before], -1) != np.append(ids[:n_before], -2)).argmax())
        else:
            after = (
                factory.text_tokenizer().encode(continuation, False) if isinstance(continuation, str) else continuation
            )
            ids = np.concatenate([before, factory.checked_ids(name, after)])
            ids, n_before = factory.checked_ids(f"context and {name}", ids), len(before)
        if n_before == 0:
            raise InvalidArgumentError(
                f"expected a context whose tokens stay where {name} follows, found that nothing predicts the first "
                "token: give a longer context, or token ids"
            )
        if n_before == len(ids):
            raise InvalidArgumentError(f"expected {name} of at least one token, found {shown(continuation)}")
        readers.append(PromptLogprobs(ids, n_before))
        alike = readers_of.setdefault((ids[:-1].tobytes(), n_before), [])
        if not alike:
            requests.append(factory.rows(ids[:-1], n_before - 1, partial(_read_all, alike), served))
        alike.append(readers[-1])

    def answer(_: list[Any]) -> list[Score]:
        return [
            Score(sum(token.logprob for token in r.tokens), [token.logprob for token in r.tokens], all(r.greedy))
            for r in readers
        ]

    return Question([requests[:1], requests[1:]], answer)


def _read_all(readers: Sequence[PromptLogprobs], position: int, rows: F32) -> None:
    for reader in readers:
        reader(position, rows)


def embeddings(
    factory: RequestFactory, texts: Sequence[str | Ids], pooling: str, normalize: bool, how: How
) -> Question[F32]:
    """Make the question of Mixtral.embed().

    Args:
        factory: makes the requests.
        texts: texts or token ids.
        pooling: one of POOLINGS.
        normalize: divide each vector by its length.
        how: priority, timeout, cache_salt and adapter.

    Returns:
        The question.

    Raises:
        InvalidArgumentError: for another pooling, no text, and ids outside the vocabulary.
        ContextLengthError: for a text longer than n_ctx.
        UnsupportedError: for texts, if the file has no tokenizer.
    """
    if pooling not in POOLINGS:
        raise InvalidArgumentError(f"expected pooling to be one of {', '.join(POOLINGS)}, found {shown(pooling)}")
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence) or not len(texts):
        raise InvalidArgumentError(f"expected texts to be a list of at least one text, found {shown(texts)}")
    served = factory.served_alone(how)
    pools = [_Pool(factory.config.hidden) for _ in texts]
    requests: list[Request] = []
    for i, (text, pool) in enumerate(zip(texts, pools, strict=True)):
        ids = factory.prompt_ids(text, name=f"texts[{i}]")
        requests.append(factory.rows(ids, 0 if pooling == "mean" else len(ids) - 1, pool, served, reads_hidden=True))

    def answer(_: list[Any]) -> F32:
        vectors = np.stack([pool.total / pool.n for pool in pools])
        if normalize:
            vectors /= np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
        return vectors.astype(np.float32)

    return Question([requests], answer)


class _Pool:
    """The sum of rows, added one by one in the order of the text, so that pieces change no bit."""

    def __init__(self, hidden: int) -> None:
        self.total: F64 = np.zeros(hidden)
        self.n = 0

    def __call__(self, position: int, rows: F32) -> None:  # noqa: ARG002
        for row in rows:
            self.total += row
        self.n += len(rows)


def logits(factory: RequestFactory, tokens: Ids, last_only: bool, first: int, how: How) -> Question[F32]:
    """Make the question of Mixtral.logits().

    Args:
        factory: makes the requests.
        tokens: the ids.
        last_only: only the last row is wanted, as an array of one dimension.
        first: index of the first token whose row is wanted.
        how: priority, timeout, cache_salt and adapter.

    Returns:
        The question.

    Raises:
        InvalidArgumentError: for ids outside the vocabulary, and `first` out of range.
        ContextLengthError: for more than n_ctx ids.
    """
    ids = factory.checked_ids("tokens", tokens)
    first = integer("first", first, 0)
    if first >= len(ids):
        raise InvalidArgumentError(
            f"expected first to be less than the number of tokens, {len(ids)}, found {shown(first)}"
        )
    if last_only:
        first = len(ids) - 1
    rows: F32 = np.empty((len(ids) - first, factory.config.n_vocab), np.float32)
    request = factory.rows(ids, first, partial(_put, rows, first), factory.served_alone(how))
    return Question([[request]], lambda _: rows[0] if last_only else rows)


def routings(factory: RequestFactory, text: str | Ids, full: bool, how: How) -> Question[Routing]:
    """Make the question of Mixtral.routing().

    Args:
        factory: makes the requests.
        text: a text or token ids.
        full: whether the routers' probabilities are wanted.
        how: priority, timeout, cache_salt and adapter.

    Returns:
        The question.

    Raises:
        InvalidArgumentError: for no ids, ids outside the vocabulary, and `full` of another type.
        ContextLengthError: for a text longer than n_ctx.
        UnsupportedError: for a dense model, and for a text if the file has no tokenizer.
    """
    if not isinstance(full, (bool, np.bool_)):
        raise InvalidArgumentError(f"expected full to be True or False, found {shown(full)}")
    trace = factory.trace("full" if full else True)
    assert trace is not None
    ids = factory.prompt_ids(text, name="text")
    request = factory.rows(ids, len(ids), _ignore, factory.served_alone(how), trace=trace)
    return Question([[request]], lambda _: trace.routing(len(ids), len(ids)))


def _ignore(position: int, rows: F32) -> None:
    """Takes no rows: none are asked for."""


def _put(rows: F32, first: int, position: int, part: F32) -> None:
    rows[position - first : position - first + len(part)] = part
