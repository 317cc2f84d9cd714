"""Texts that take long to tokenize delay nobody: others are answered meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pymixtral import Mixtral, demo_chat_path
from pymixtral.text.tokenizer import Tokenizer
from support.api_servers import Served, serving

LONG = 120.0
"""Seconds that are enough for anything, however busy the machine is."""

MARK = "tokenized slowly"
MESSAGES = [{"role": "user", "content": MARK}]


class Slow:
    """A tokenizer that takes as long as a test wants for texts with MARK in them.

    Attributes:
        begun: has a permit for each such text that has begun.
        go_on: has a permit for each of them that may end.
        most: the most of them at a time.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.most = self._n = 0
        self._lock = threading.Lock()
        encode = Tokenizer.encode

        def slow(tokenizer: Tokenizer, text: str, *arguments: Any, **more: Any) -> list[int]:
            if MARK in text:
                self._count(1)
                self.begun.release()
                assert self.go_on.acquire(timeout=LONG)
                self._count(-1)
            return encode(tokenizer, text, *arguments, **more)

        monkeypatch.setattr(Tokenizer, "encode", slow)

    def _count(self, n: int) -> None:
        with self._lock:
            self._n += n
            self.most = max(self.most, self._n)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Mixtral(demo_chat_path(), n_threads=1) as model, serving(model) as served:
        yield served


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": MARK}),
        ("/tokenize", {"messages": MESSAGES}),
        ("/apply-template", {"messages": MESSAGES}),
        ("/v1/chat/completions/input_tokens", {"messages": MESSAGES}),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1, "return_token_ids": True}),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1, "stream": True, "return_token_ids": True}),
        ("/v1/responses", {"input": MARK, "max_output_tokens": 1}),
        ("/v1/responses", {"input": MARK, "max_output_tokens": 1, "stream": True}),
        ("/v1/completions", {"prompt": MARK, "max_tokens": 1, "return_token_ids": True}),
        ("/v1/completions", {"prompt": MARK, "max_tokens": 1, "return_token_ids": True, "stream": True}),
        ("/v1/embeddings", {"input": MARK}),
        ("/v1/score", {"context": MARK, "continuations": [" or not"]}),
    ],
)
def test_others_are_answered_while_a_long_text_is_tokenized(
    served: Served, path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        try:
            if body.get("stream"):
                asked = pool.submit(served.chunks, path, **body)
            else:
                asked = pool.submit(served.ok, path, **body)
            n_begun = 0
            while not asked.done():
                if not slow.begun.acquire(timeout=0.05):
                    continue
                n_begun += 1
                assert served.ok("/v1/completions", prompt="A", max_tokens=1)["choices"]
                assert served.ok("/tokenize", prompt="A")["tokens"]
                slow.go_on.release()
        finally:
            slow.go_on.release(100)
    assert asked.result(LONG)
    assert n_begun


def test_few_requests_for_tokens_are_computed_at_a_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch)
    n = 12
    with ThreadPoolExecutor(n) as pool:
        try:
            asked = [pool.submit(served.ok, "/tokenize", prompt=MARK) for _ in range(n)]
            end = time.monotonic() + LONG
            while served.service.n_requests < n:
                assert time.monotonic() < end
                time.sleep(0.01)
            assert slow.begun.acquire(timeout=LONG)
            assert slow.begun.acquire(timeout=LONG)
            for _ in range(3):  # the event loop goes round, and texts of others are tokenized
                assert served.ok("/v1/completions", prompt="A", max_tokens=1)["choices"]
            assert not slow.begun.acquire(blocking=False)
        finally:
            slow.go_on.release(n)
    assert len({tuple(one.result()["tokens"]) for one in asked}) == 1
    assert slow.most == 2
