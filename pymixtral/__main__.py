"""`python -m pymixtral` is the command `pymixtral`."""

from __future__ import annotations

from pymixtral.cli import main

main()
