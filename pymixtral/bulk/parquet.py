"""Parquet files whose rows are lines of JSON: a column for each key, and nothing where a row has none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pymixtral.arguments import shown
from pymixtral.errors import InvalidArgumentError, PymixtralError, UnsupportedError
from pymixtral.files.kinds import named

_MAGIC = b"PAR1"

_ROWS = 64
"""Rows that are in memory at a time, decoded."""


def is_parquet(path: Path) -> bool:
    """Say whether a file begins as Parquet files do; no JSON begins so.

    Args:
        path: a regular file.

    Raises:
        UnsupportedError: if it does, and pyarrow, which reads them, is not there.
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return False
    if find_spec("pyarrow") is None:
        raise UnsupportedError(
            f"{named(path)}: expected the package pyarrow, as this is a Parquet file, found none: "
            "install it with `pip install pyarrow`"
        )
    return True


def rows(path: Path, first: int) -> Iterator[tuple[int, bytes]]:
    """Read rows, each as the line of JSON that has the same keys and values.

    A value that is null is left out, and so a row may lack what another has. Memory is that of one
    row group, as it lies in the file, and of some rows.

    Args:
        path: the file.
        first: the row to begin with, from 0.

    Yields:
        The number of each row from 0, and its line in UTF-8.

    Raises:
        InvalidArgumentError: for a file that is damaged, or a value that JSON cannot say.
        OSError: if it cannot be read.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := [name for name in names if names.count(name) > 1]:
                raise InvalidArgumentError(f"expected each column once, found {shown(twice[0])} twice: remove one")
            number = 0
            for group in range(file.num_row_groups):
                n_rows = file.metadata.row_group(group).num_rows
                if number + n_rows <= first:
                    number += n_rows
                    continue
                for batch in file.iter_batches(_ROWS, row_groups=[group]):
                    skipped = min(max(first - number, 0), len(batch))
                    number += skipped
                    for row in batch.slice(skipped).to_pylist():
                        yield number, _line(row)
                        number += 1
    except PymixtralError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        why = " ".join(str(error).split())
        raise InvalidArgumentError(
            f"expected a Parquet file with values that JSON has, found another or a damaged one ({why})"
        ) from error


def _line(row: dict[str, Any]) -> bytes:
    fields = {name: value for name, value in row.items() if value is not None}
    try:
        return json.dumps(fields, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"expected values that JSON has, found another ({error})") from None
