"""For the reference: quantize/ is installed as pymixtral.quantize, and in the tree it lies
elsewhere.
"""

from __future__ import annotations

from typing import Any

import griffe


class Quantize(griffe.Extension):
    """Puts it where it is imported from."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        if pkg.name == "pymixtral" and "quantize" not in pkg.members:
            module = loader.load("quantize", try_relative_path=False)
            pkg.set_member("quantize", module)
