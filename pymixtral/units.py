"""Sizes and counts as people read and write them. GB is 10^9 bytes, GiB is 2^30."""

from __future__ import annotations

import re

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def show_bytes(n: float) -> str:
    """Show a size with three or four digits.

    Args:
        n: bytes.

    Returns:
        Such as "131.1 kB" and "28.4 GB".
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= 0.9995 * size:
            return f"{n / size:.2f} {unit}" if n < 9.995 * size else f"{n / size:.1f} {unit}"
    return f"{n:.0f} B"


def show_count(n: float) -> str:
    """Show a large number with one digit after the point.

    Args:
        n: a count, such as of parameters.

    Returns:
        Such as "46.7B", "131.1M" and "266.2K".
    """
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n >= 0.9995 * size:
            return f"{n / size:.1f}{unit}"
    return f"{n:.0f}"


def parse_bytes(text: str) -> int:
    """Read a size.

    Args:
        text: such as 4G or 4GB (both 4 * 10^9), 20GiB, 21.5 gb, or 1000.

    Returns:
        Bytes, at least 1.

    Raises:
        ValueError: for anything else.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*(?:([KMGT])(I?B)?|B)?", text.strip().upper(), re.ASCII)
    n_bytes = int(float(match[1]) * (1024 if match[3] == "IB" else 1000) ** _UNITS[match[2] or ""]) if match else 0
    if n_bytes < 1:
        raise ValueError(f"expected a size such as 20GiB, 21.5GB or 4G, found {text!r}")
    return n_bytes
