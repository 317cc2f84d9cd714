"""What the tests of `pymixtral chat` say, and how an answer is shown."""

from __future__ import annotations

from typing import Any

from pymixtral import Mixtral

FIRST, SECOND = "Who are you?", "What did the wolf say?"
LINE = ["-n", 40, "--seed", 5]
CUT = "The answer ends after 40 tokens; -n makes it longer."


def answer(model: Mixtral, messages: list[dict[str, Any]], **options: Any) -> str:
    return model.chat(messages, **{"max_tokens": 40, "seed": 5} | options).content


def shown(text: str) -> str:
    """How an answer is shown, up to the next prompt, where a model wrote no note behind it."""
    return text if text.endswith("\n") else text + "\n"
