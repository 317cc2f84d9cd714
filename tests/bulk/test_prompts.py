"""Files of prompts: what is read is what JSON says, and what is no prompt is refused with its line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pymixtral import InvalidArgumentError
from pymixtral.bulk.lines import read_lines
from pymixtral.bulk.prompts import OPTIONS, Prompt, parse_prompt

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PROMPTS = st.fixed_dictionaries(
    {"prompt": st.text() | st.lists(st.integers())},
    optional={
        "id": JSON,
        "max_tokens": st.integers(),
        "stop": st.text() | st.lists(st.text()),
        "temperature": st.floats(0, 2),
        "ignore_eos": st.booleans(),
        "logit_bias": st.dictionaries(st.integers(0, 99), st.floats(-5, 5), max_size=2),
    },
)
SPACE = st.sampled_from(["", " ", "\r", "\t "])


def read(path: Path, data: bytes) -> list[Prompt]:
    path.write_bytes(data)
    return list(read_lines(path, "prompt", "", parse_prompt))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prompts") / "prompts.jsonl"


def problem(path: Path, line: str | bytes) -> str:
    """What is wrong with the third line of a file."""
    data = line if isinstance(line, bytes) else line.encode()
    with pytest.raises(InvalidArgumentError) as info:
        read(path, b'{"prompt": "a"}\n\n' + data + b'\n{"prompt": "b"}\n')
    where = f"{path}, line 3: "
    assert str(info.value).startswith(where)
    return str(info.value)[len(where) :]


@given(st.lists(st.tuples(PROMPTS, SPACE, SPACE, st.booleans(), st.booleans()), max_size=6), st.booleans())
def test_what_is_read_is_what_json_says(path: Path, lines: list[tuple[Any, ...]], ended: bool) -> None:
    texts = [before + json.dumps(fields, ensure_ascii=ascii) + after for fields, before, after, ascii, _ in lines]
    blank = ["\n" if empty else "" for *_, empty in lines]
    data = "".join(f"{text}\n{more}" for text, more in zip(texts, blank, strict=True))
    found = read(path, (data if ended else data.rstrip("\n")).encode("utf-8", "surrogatepass"))
    assert [prompt.index for prompt in found] == list(range(len(lines)))
    for (fields, *_), text, prompt in zip(lines, texts, found, strict=True):
        assert data.split("\n")[prompt.number - 1] == text
        assert prompt.prompt == fields["prompt"]
        assert prompt.options == {name: value for name, value in fields.items() if name not in ("prompt", "id")}
        head = json.loads(prompt.head + "}")
        assert ("id" in head) == ("id" in fields)
        assert head.get("id") == fields.get("id")
        assert "\n" not in prompt.head
        assert prompt.head.isascii() or prompt.head.encode()


@given(st.lists(st.binary(max_size=30) | PROMPTS.map(lambda fields: json.dumps(fields).encode()), max_size=4))
def test_any_bytes_are_prompts_or_an_error_of_a_line(path: Path, lines: list[bytes]) -> None:
    data = b"\n".join(lines)
    assume(not data.startswith(b"PAR1"))  # which is Parquet: test_parquet.py
    n_right = sum(bool(line.strip()) for line in data.split(b"\n"))
    message = ""
    try:
        n = len(read(path, data))
    except InvalidArgumentError as error:
        message = str(error)
    if message:
        match = re.fullmatch(rf"{re.escape(str(path))}, line (\d+): expected [^\n]+", message)
        assert match
        assert data.split(b"\n")[int(match[1]) - 1].strip()
    else:
        assert n == n_right


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Once upon a time", "expected a JSON object in one line, found an error"),
        ('{"prompt": "a"', "expected a JSON object in one line"),
        ('{"prompt": "a"} {}', "expected a JSON object in one line"),
        ('["a"]', 'expected an object such as {"prompt": "Once"}, found [\'a\']'),
        ("{}", 'expected a "prompt", found none'),
        ('{"prompt": null}', "expected prompt to be a text or a list of token ids, found None"),
        ('{"prompt": [1, true]}', "found [1, True]"),
        ('{"prompt": [1.0]}', "found [1.0]"),
        ('{"prompt": "a", "temprature": 1}', "found 'temprature': did you mean 'temperature'?"),
        ('{"prompt": "a", "logits_processor": 1}', "found 'logits_processor'"),
        ('{"prompt": "a", "progress": 1}', "found 'progress'"),
        ('{"prompt": "a", "seed": 1, "seed": 2}', "expected each key once, found 'seed' twice"),
        ('{"prompt": "a", "id": {"x": 1, "x": 1}}', "found 'x' twice"),
        ('{"prompt": "a", "temperature": NaN}', "found NaN"),
        ('{"prompt": "a", "id": -Infinity}', "found -Infinity"),
        ('{"prompt": "a", "id": 1e999}', "found 1e999"),
        ('{"prompt": "a", "ignore_eos": "false"}', "expected ignore_eos to be true or false, found 'false'"),
        ('{"prompt": "a", "parse_special": 1}', "expected parse_special to be true or false, found 1"),
        ('{"prompt": "a", "logit_bias": {"king": 1}}', "expected token ids in logit_bias, found 'king'"),
        ('{"prompt": "a", "seed": ' + "9" * 5000 + "}", "expected a JSON object in one line, found an error"),
        ('{"prompt": ' + "[" * 100_000 + "}", "expected a JSON object, found one nested too deeply"),
        (b'{"prompt": "caf\xe9"}', "expected UTF-8, found the byte 0xe9 at offset 15"),
        (b'\xef\xbb\xbf{"prompt": "a"}', "BOM"),  # but for the first line
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_line_that_is_no_prompt_is_refused_with_its_number(path: Path, line: str | bytes, words: str) -> None:
    assert words in problem(path, line)


def test_every_option_of_generate_but_a_function_may_stand_in_a_line() -> None:
    assert {"max_tokens", "stop", "seed", "temperature", "logprobs", "prompt_lookup", "timeout", "n"} <= set(OPTIONS)
    assert "logits_processor" not in OPTIONS
