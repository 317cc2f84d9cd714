"""One word for an adapter. What commands make of it is tested in tests/cli/test_adapters.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from pymixtral import InvalidArgumentError
from pymixtral.adapters.naming import parse


@pytest.mark.parametrize(
    ("text", "name", "path", "scale"),
    [
        ("tales.gguf", "tales", "tales.gguf", 1),
        ("a/tales-lora:0.5", "tales-lora", "a/tales-lora", 0.5),
        ("x=a:b.gguf:-2", "x", "a:b.gguf", -2),
        ("x=c:2:y", "x", "c:2:y", 1),
        ("x=a=b", "x", "a=b", 1),
        ("x=:2", "x", ":2", 1),
    ],
)
def test_name_path_and_scale(text: str, name: str, path: str, scale: float) -> None:
    assert parse(text) == (name, Path(path), scale)


@pytest.mark.parametrize("text", ["", "=", "x=", "=x", "/"])
def test_what_names_no_adapter(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="found"):
        parse(text)
