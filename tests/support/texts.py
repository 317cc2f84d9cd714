"""Texts that the engine computes beside others, and the same alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from pymixtral import Mixtral
from pymixtral.engine.completion import Completion
from pymixtral.model.forward import Model


def lone(alone: Mixtral, prompt: Any, **options: Any) -> Completion:
    """A text of a model that computes one at a time, without its cache of earlier ones."""
    alone.forget()
    return alone.generate(prompt, **options)


def same(a: Completion, b: Completion) -> None:
    """Both are the same in all that they say."""
    assert (a.text, a.tokens, a.finish_reason, a.stop_reason) == (b.text, b.tokens, b.finish_reason, b.stop_reason)
    assert a.logprobs == b.logprobs
    assert a.prompt_logprobs == b.prompt_logprobs


@contextmanager
def held(model: Mixtral) -> Iterator[None]:
    """The engine computes nothing meanwhile, so that all that is asked for begins together."""
    begun, go_on = threading.Event(), threading.Event()

    def wait(_: Model) -> None:
        begun.set()
        assert go_on.wait(60)

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(model.core.engine.call, wait)
        assert begun.wait(60)
        try:
            yield
        finally:
            go_on.set()
        call.result()
