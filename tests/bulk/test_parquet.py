"""Parquet files of prompts: the rows are the lines of JSON that say the same."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymixtral import InvalidArgumentError
from pymixtral.bulk.lines import Place, read_lines, read_places
from pymixtral.bulk.prompts import Prompt, parse_prompt

pytestmark = pytest.mark.ray  # pyarrow comes with it

ROWS: list[dict[str, Any]] = [
    {"prompt": "Once", "id": "a", "max_tokens": 9},
    {"prompt": "\u2028 Zwölf \U0001f43a", "seed": 3, "stop": ["x", "y"]},
    {"prompt": "", "temperature": 0.25, "id": ""},
    *({"prompt": f"prompt {i}", "id": str(i)} for i in range(200)),
]


def write(path: Path, rows: list[dict[str, Any]], **settings: Any) -> Path:
    import pyarrow
    from pyarrow import parquet

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pyarrow.table({name: pyarrow.array([row.get(name) for row in rows]) for name in names})
    parquet.write_table(table, path, **settings)
    return path


def lines(path: Path, start: Place | None = None) -> list[tuple[Place, Prompt]]:
    return list(read_places(path, "prompt", "key", parse_prompt, start or Place()))


@pytest.mark.parametrize("row_group_size", [1, 7, 64, 1000])
def test_rows_are_the_prompts_that_lines_of_json_are(tmp_path: Path, row_group_size: int) -> None:
    found = lines(write(tmp_path / "p.parquet", ROWS, row_group_size=row_group_size))
    prompts = [prompt for _, prompt in found]
    assert [(one.prompt, one.options) for one in prompts] == [
        (row["prompt"], {name: value for name, value in row.items() if name not in ("prompt", "id")}) for row in ROWS
    ]
    assert [json.loads(one.head + "}").get("id") for one in prompts] == [row.get("id") for row in ROWS]
    assert len({one.head for one in prompts}) == len(ROWS)
    for i in (0, 1, 6, 7, 63, 64, 130, len(ROWS) - 1):
        assert lines(tmp_path / "p.parquet", found[i][0]) == found[i:]


def test_a_row_has_the_digest_of_its_line(tmp_path: Path) -> None:
    """Where the line is written as Python writes it, with the keys in the order of the columns."""
    rows = [{"prompt": "Once", "id": str(i), "seed": i} for i in range(3)]
    text = tmp_path / "p.jsonl"
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [line for _, line in lines(write(tmp_path / "p.parquet", rows))] == [line for _, line in lines(text)]


def test_token_ids(tmp_path: Path) -> None:
    found = lines(write(tmp_path / "p.parquet", [{"prompt": [1, 262]}, {"prompt": []}]))
    assert [one.prompt for _, one in found] == [[1, 262], []]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"id": "a"}], 'row 1: expected a "prompt"'),
        ([{"prompt": "a"}, {"prompt": None, "id": "b"}], 'row 2: expected a "prompt"'),
        ([{"prompt": b"bytes"}], "row 1: expected values that JSON has"),
        ([{"prompt": "a", "temperature": float("nan")}], "row 1: expected values that JSON has"),
        ([{"prompt": "a", "unknown": 1}], "unknown"),
        ([{"prompt": 5}], "expected prompt to be a text"),
    ],
)
def test_rows_that_are_no_prompts(tmp_path: Path, rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        lines(write(tmp_path / "p.parquet", rows))
    assert words in str(error.value)
    assert str(error.value).startswith(f"{tmp_path}/p.parquet, row ")


def test_values_that_python_or_json_do_not_have(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    def nested(depth: int) -> Any:
        return pa.list_(nested(depth - 1)) if depth else pa.int64()

    twice = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    far = (pa.array([2**30], pa.int32()).cast(pa.date32()), pa.array([2**55], pa.timestamp("ms")))
    for i, ids in enumerate((twice, *far, pa.array([2**62], pa.duration("s")), pa.array([None], nested(150)))):
        path = tmp_path / f"{i}.parquet"
        parquet.write_table(pa.table({"prompt": ["a"], "id": ids}), path)
        with pytest.raises(InvalidArgumentError, match="row 1: expected a Parquet file with values that JSON has"):
            lines(path)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever bytes change, nothing but an error of one sentence comes of it."""
    whole = write(tmp_path_factory.getbasetemp() / "whole.parquet", ROWS[:20]).read_bytes()
    damaged = bytearray(whole)
    for at in data.draw(st.lists(st.integers(4, len(whole) - 1), min_size=1, max_size=8)):
        damaged[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    path.write_bytes(damaged[: data.draw(st.integers(len(whole) // 2, len(whole)))])
    with suppress(InvalidArgumentError):
        assert len(list(read_lines(path, "prompt", "key", parse_prompt))) <= len(ROWS)
