"""Packages of extras, looked for before the work begins."""

from __future__ import annotations

from importlib.util import find_spec

from pymixtral.errors import UnsupportedError


def check_packages(extra: str, *names: str) -> None:
    """Check that the packages of an extra are there.

    Args:
        extra: its name.
        *names: the modules that are needed.

    Raises:
        UnsupportedError: if one is missing; it says what to install.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UnsupportedError(
            f"expected the packages of the extra [{extra}], found no {missing[0]}: "
            f"install them with `pip install 'pymixtral[{extra}]'`"
        )
