"""Sizes and counts, written and read."""

from __future__ import annotations

import pytest

from pymixtral.units import parse_bytes, show_bytes, show_count


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.5, "1.00 kB"),
        (131072, "131.1 kB"),
        (9.99e6, "9.99 MB"),
        (9.996e6, "10.0 MB"),
        (999.96e6, "1.00 GB"),
        (26.44e9, "26.4 GB"),
        (1.2e12, "1.20 TB"),
    ],
)
def test_bytes(n: float, text: str) -> None:
    assert show_bytes(n) == text


def test_counts() -> None:
    assert [show_count(n) for n in (7, 8192, 131_072_000, 46_702_792_704)] == ["7", "8.2K", "131.1M", "46.7B"]


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        *(
            ("1000", 1000),
            ("7B", 7),
            ("4G", 4 * 10**9),
            ("4GB", 4 * 10**9),
            ("4GiB", 4 << 30),
            ("21.5gb", 21_500_000_000),
        ),
        *((" 900 mb ", 900_000_000), ("1.5 KiB", 1536), ("2T", 2 * 10**12), ("500k", 500_000)),
    ],
)
def test_sizes_are_read_in_either_unit(text: str, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize(
    "text", ["", "G", "0", "0.0001", "-1G", "1e9", "4 parsecs", "4iB", "4Gi", "4GG", "1.G", "\u0664G", "9" * 400]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a size such as 20GiB"):
        parse_bytes(text)
