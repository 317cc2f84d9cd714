"""JSON of strangers: what is read is what was written, and anything else is a 400."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymixtral.server.api.json_body import MAX_DEPTH, MAX_KEYS, parse_json
from pymixtral.server.errors import APIError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**19), 10**19)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
)


@given(values, st.booleans())
def test_json_is_read_as_it_was_written(value: object, ascii: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii).encode()) == value


@given(st.binary(max_size=40) | st.text('[]{}":,0123456789.eE-+ntfalsu\\d8', max_size=40).map(str.encode))
def test_what_is_no_json_is_refused_and_nothing_else_happens(data: bytes) -> None:
    refusal, value = None, None
    try:
        value = parse_json(data)
    except APIError as error:
        refusal = error
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    if refusal is not None:
        assert (refusal.status, refusal.body["error"]["code"]) == (400, "invalid_json")


def nested(n: int) -> bytes:
    return b"[" * n + b"]" * n


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "an error"),
        (b"\xff", "the byte 0xff at offset 0"),
        (b'{"a": NaN}', "NaN"),
        (b"-Infinity", "-Infinity"),
        (b"1e999", "'1e999'"),
        (b"1" * 5000, "one of 5000"),
        (b'{"a": 1, "a": 2}', "'a' twice"),
        (json.dumps({str(i): 0 for i in range(MAX_KEYS + 1)}).encode(), f"one of {MAX_KEYS + 1}"),
        (b'"\\ud800"', "half of a surrogate pair"),
        (b'{"\\udfff": 1}', "half of a surrogate pair"),
        (nested(MAX_DEPTH + 1), "one that is deeper"),
        (nested(100_000), "one that is deeper"),
        (b'{"a":' * 100_000, ""),
    ],
)
def test_the_error_says_what_was_found(data: bytes, found: str) -> None:
    with pytest.raises(APIError) as caught:
        parse_json(data)
    assert found in str(caught.value)


def test_the_limits_themselves_are_let_in() -> None:
    assert parse_json(nested(MAX_DEPTH)) == json.loads(nested(MAX_DEPTH))
    most = {str(i): i for i in range(MAX_KEYS)}
    assert parse_json(json.dumps(most).encode()) == most
    assert parse_json(b"-" + b"9" * 20) == -(10**20 - 1)
    assert parse_json(b'"\\ud83d\\ude00"') == "\U0001f600"
