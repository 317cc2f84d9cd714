"""Arguments of a wrong type meet the house's sentence, which names them; no internal's TypeError
comes out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pymixtral import ContextLengthError, InvalidArgumentError, Mixtral
from pymixtral.questions import _is_list

NOT_TEXT: list[Any] = [b"Once", bytearray(b"Once"), None, 5, 2.5, {"a": 1}, Ellipsis]
NOT_IDS: list[Any] = [
    "Once",
    b"Once",
    None,
    5,
    2.5,
    {1: 2},
    {1, 2},
    [[1, 2], [3]],
    [[1, 2]],
    ["1"],
    [1.5],
    [None],
    [2**70],
    np.array(3),
]


@pytest.fixture(scope="module")
def model(tiny_q8_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0, n_ctx=64, n_threads=1) as model:
        yield model


def refused(found: str, call: Any, *arguments: Any, **named: Any) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        call(*arguments, **named)
    message = str(error.value)
    assert re.match(rf"expected (an argument of )?.*{found}.*, found ", message), message
    assert len(message) < 800
    assert "\n" not in message


@pytest.mark.parametrize("value", NOT_TEXT, ids=repr)
def test_what_is_no_text(model: Mixtral, value: Any) -> None:
    refused("text", model.tokenize, value)


@pytest.mark.parametrize("value", [value for value in NOT_TEXT if not isinstance(value, dict)] + NOT_IDS[2:], ids=repr)
def test_what_is_no_prompt(model: Mixtral, value: Any) -> None:
    refused("prompt", model.stream, value)
    if not _is_list(value):  # generate() takes lists of prompts
        refused("prompt", model.generate, value)


@pytest.mark.parametrize("value", NOT_IDS, ids=repr)
def test_what_are_no_ids(model: Mixtral, value: Any) -> None:
    refused("tokens", model.logits, value)
    refused("token ids", model.detokenize, value)


@pytest.mark.parametrize("value", [5, b"x", [b"x"], ["x", ""], {"x": 1}, [None]], ids=repr)
def test_what_is_no_stop_string(model: Mixtral, value: Any) -> None:
    refused("stop", model.generate, "a", stop=value)


@pytest.mark.parametrize("name", ["n_ctx", "n_threads", "n_batch", "experts_used", "kv_type", "overrides", "path"])
@pytest.mark.parametrize("value", ["4", b"4", 4.0, [4]], ids=repr)
def test_what_a_model_is_not_opened_with(tiny_q8_0: Path, name: str, value: Any) -> None:
    if name == "path":
        if not isinstance(value, str):
            refused("path", Mixtral, value)
    else:
        refused(name, Mixtral, tiny_q8_0, **{name: value})


@pytest.mark.parametrize("name", ["max_tokens", "first"])
@pytest.mark.parametrize("value", ["4", b"4", 4.0, True, -1], ids=repr)
def test_what_is_no_count(model: Mixtral, name: str, value: Any) -> None:
    if name == "first":
        refused(name, model.logits, [1, 2], first=value)
    else:
        refused(name, model.generate, "a", max_tokens=value)


def test_numbers_of_numpy_are_numbers(model: Mixtral) -> None:
    ids = np.array([1, 2, 3], np.uint16)
    assert (
        model.generate(ids, max_tokens=np.int8(2), temperature=np.float32(0)).tokens
        == model.generate([1, 2, 3], max_tokens=2, temperature=0).tokens
    )
    assert model.detokenize(ids) == model.detokenize([1, 2, 3]) == model.detokenize(iter([1, 2, 3]))  # type: ignore[arg-type]
    assert model.detokenize([]) == ""


class Loud:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "value", [10**5000, "a\nb" * 100, Loud(), np.timedelta64(5, "s"), np.zeros((9, 9)), "\x1b[2J"], ids=type
)
def test_any_value_is_shown_in_a_line(model: Mixtral, value: Any) -> None:
    refused("temperature", model.generate, "a", temperature=value)
    refused("max_tokens", model.generate, "a", max_tokens=value if not isinstance(value, int) else -value)
    refused("generate", model.generate, "a", **{str(value) if isinstance(value, str) else "a\nb": 1})


@pytest.mark.parametrize("call", ["logits", "generate"])
def test_too_many_ids_are_refused_before_they_are_copied(model: Mixtral, call: str) -> None:
    class Huge(Sequence[int]):
        def __len__(self) -> int:
            return 1 << 62

        def __getitem__(self, i: Any) -> Any:
            raise AssertionError("no id is looked at")

    for ids in (range(10**8), Huge()):
        with pytest.raises(ContextLengthError, match=f"found {len(ids)}"):
            getattr(model, call)(ids)
