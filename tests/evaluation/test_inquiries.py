"""Many questions at a time: each is answered as alone, in an order that saves work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pymixtral import ContextLengthError, Mixtral
from pymixtral.evaluation.inquiries import Asking, Inquiry, _Line, answers
from pymixtral.questions import generations, scores

HEAD = "Once upon a time there was a king who had three daughters, and the youngest was so beautiful. " * 3


@pytest.fixture
def model() -> Iterator[Mixtral]:
    with Mixtral(n_ctx=512) as model:
        yield model


def scored(model: Mixtral, context: str) -> Inquiry[list[float]]:
    found = yield scores(model.core.factory, context, [" and then", " but", " who"], {})
    return [score.logprob for score in found]


def conversation(model: Mixtral, prompt: str) -> Inquiry[list[str]]:
    """Its second question has the answer to the first."""
    first = yield generations(model.core.factory, prompt, 2, None, {"max_tokens": 8, "seed": 1})
    second = yield generations(model.core.factory, prompt + first.text, 1, None, {"max_tokens": 8, "seed": 2})
    return [first.text, first.others[0].text, second.text]


def test_answers_are_those_that_each_gets_alone(model: Mixtral) -> None:
    contexts = [f"{HEAD} Number {i}" for i in range(12)]
    askings: list[Asking[Any, Any]] = [Asking(("score", c), scored(model, c), "head") for c in contexts]
    askings += [Asking(("text", c), conversation(model, c)) for c in contexts[:4]]
    found = dict(answers(model, askings, n_in_flight=5))
    assert len(found) == 16
    for context in contexts:
        assert found["score", context] == [s.logprob for s in model.score(context, [" and then", " but", " who"])]
    for context in contexts[:4]:
        first = model.generate(context, n=2, max_tokens=8, seed=1)
        second = model.generate(context + first.text, max_tokens=8, seed=2)
        assert found["text", context] == [first.text, first.others[0].text, second.text]


def test_those_that_begin_alike_share_their_beginning(model: Mixtral) -> None:
    contexts = [f"{HEAD} Number {i}" for i in range(10)]
    n_head = len(model.tokenize(HEAD))
    dict(answers(model, [Asking(c, scored(model, c), "head") for c in contexts]))
    assert model.stats().cached_tokens >= 9 * (n_head - 1)


def test_the_first_of_those_that_begin_alike_goes_before_the_others() -> None:
    def nothing() -> Inquiry[None]:
        yield from ()

    askings = [Asking(f"{begins}{i}", nothing(), begins) for begins in "ab" for i in range(3)]
    askings += [Asking("free0", nothing()), Asking("free1", nothing())]
    line = _Line(iter(askings), 1)
    first = line.next()
    assert first is askings[0]
    assert line.next() is None  # a1, a2 wait
    line.done(first)
    assert line.next() is askings[1]  # no more than one is ready: b0 begins beside it
    assert line.next() is askings[3]
    assert line.next() is askings[2]
    assert line.next() is None
    line.done(askings[1])
    assert line.next() is None  # b1, b2 still wait for b0
    line.done(askings[3])
    assert [one.key for one in iter(line.next, None)] == ["b1", "b2", "free0", "free1"]


def test_an_inquiry_that_asks_nothing_is_answered(model: Mixtral) -> None:
    def silent() -> Inquiry[int]:
        return 7
        yield

    assert list(answers(model, [Asking("a", silent())])) == [("a", 7)]
    assert list(answers(model, [])) == []


def test_an_error_comes_out_and_ends_the_others(model: Mixtral) -> None:
    askings = [Asking(i, scored(model, HEAD * (1 if i else 40))) for i in (1, 2, 0)]
    with pytest.raises(ContextLengthError):
        dict(answers(model, askings))
    assert model.generate(HEAD, max_tokens=2).tokens  # nothing of the others is left in the way


def test_whoever_stops_listening_cancels_the_rest(model: Mixtral) -> None:
    def long(i: int) -> Inquiry[str]:
        options = {"max_tokens": 2 + 200 * (i > 0), "seed": 1, "ignore_eos": True}
        text = yield generations(model.core.factory, f"{HEAD} {i}", 1, None, options)
        return str(text.text)

    stream = answers(model, [Asking(i, long(i)) for i in range(8)])
    assert next(stream)[0] == 0
    stream.close()
    for _ in range(1000):  # passes in which the others would go on
        model.generate("Once", max_tokens=1)
        stats = model.stats()
        if not stats.waiting + stats.prefilling + stats.decoding:
            break
    assert (stats.waiting, stats.prefilling, stats.decoding) == (0, 0, 0)
    assert stats.generated_tokens < 7 * 202
