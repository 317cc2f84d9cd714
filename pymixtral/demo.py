"""The demo model that comes with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def demo_path() -> Path:
    """Find the demo model.

    Returns:
        Its GGUF file: a trained Mixtral of 15 million parameters.
    """
    return Path(str(files("pymixtral") / "data" / "tiny-mixtral-q8_0.gguf"))


def demo_chat_path() -> Path:
    """Find the demo model for conversations.

    Returns:
        Its GGUF file: the demo model after a short training on questions and answers, in the format
        of Mixtral Instruct.
    """
    return Path(str(files("pymixtral") / "data" / "tiny-mixtral-instruct-q4_k_m.gguf"))
