"""Texts that the engine computes beside others, and the same alone."""

from __future__ import annotations

from typing import Any

from pymixtral import Mixtral
from pymixtral.engine.completion import Completion


def lone(alone: Mixtral, prompt: Any, **options: Any) -> Completion:
    """A text of a model that computes one at a time, without its cache of earlier ones."""
    alone.forget()
    return alone.generate(prompt, **options)


def same(a: Completion, b: Completion) -> None:
    """Both are the same in all that they say."""
    assert (a.text, a.tokens, a.finish_reason, a.stop_reason) == (b.text, b.tokens, b.finish_reason, b.stop_reason)
    assert a.logprobs == b.logprobs
    assert a.prompt_logprobs == b.prompt_logprobs
