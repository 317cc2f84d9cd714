"""Traces as a picture: heat maps of shares, and repetition by layer. Needs matplotlib, the [plot] extra."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pymixtral.errors import UnsupportedError
from pymixtral.escapes import escaped
from pymixtral.evaluation.routing import Usage, chance
from pymixtral.files.atomic import replacing

_MARKERS = "os^Dv*Px"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")


def check() -> None:
    """Check, before the work begins, that a picture can be drawn.

    Raises:
        UnsupportedError: if matplotlib is missing.
    """
    _module("figure")


def draw(usages: Sequence[Usage], title: str, path: Path, *, force: bool = False) -> None:
    """Draw the numbers of domains of one model as a PNG file.

    Above, a heat map for each domain: the share of each expert in each layer, times the number of
    experts, so that 1 is even. Below, how often a token has the first, and any, expert of the token
    before it, with chance as a dashed line.

    Args:
        usages: of the domains.
        title: the picture's.
        path: the file.
        force: whether an existing file is replaced.

    Raises:
        UnsupportedError: if matplotlib is missing.
        OutputError: if the file cannot be written, or exists.
    """
    n_layers, n_experts, n_used = usages[0].n_layers, usages[0].n_experts, usages[0].n_experts_used
    wide = max(len(usages) * (1.2 + 0.3 * n_experts) + 1.2, 8)
    high = 1.2 + min(0.3 * n_layers, 8)
    figure = _module("figure").Figure(figsize=(wide, high + 3.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[high, 3.2])
    figure.suptitle(_plain(title))
    highest = max(2.0, n_experts * max(usage.either.max() for usage in usages))
    norm = _module("colors").TwoSlopeNorm(1, 0, highest)
    maps = above.subplots(1, len(usages), sharey=True, squeeze=False)[0]
    for axis, usage in zip(maps, usages, strict=True):
        image = axis.imshow(n_experts * usage.either, cmap="PuOr_r", norm=norm, aspect="auto", interpolation="none")
        axis.set(title=_plain(usage.name), xlabel="expert", xticks=range(0, n_experts, max(1, n_experts // 8)))
    maps[0].set(ylabel="layer", yticks=range(0, n_layers, max(1, n_layers // 16)))
    above.colorbar(image, ax=maps, label="share, times the\nnumber of experts")
    expected = chance(n_experts, n_used)
    names = [("repeats_first", "the same first expert")]
    names += [("repeats_any", "an expert of the token before")] if n_used > 1 else []
    for axis, (name, label) in zip(below.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for i, usage in enumerate(usages):
            axis.plot(
                100 * getattr(usage, name),
                color=_COLOURS[i % len(_COLOURS)],
                marker=_MARKERS[(i + i // len(_COLOURS)) % len(_MARKERS)],
                markersize=4,
                label=_plain(usage.name),
            )
        axis.axhline(100 * expected[name], color="grey", linestyle="--", label="chance")
        axis.set(title=label, xlabel="layer", ylabel="% of tokens", xticks=range(0, n_layers, max(1, n_layers // 8)))
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    with replacing(path, force=force) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _plain(text: str) -> str:
    """A text without what a terminal obeys or matplotlib takes for a formula."""
    return escaped(text).replace("$", r"\$")


def _module(name: str) -> Any:
    """A part of matplotlib; its Figure needs no display and no global state."""
    try:
        return importlib.import_module(f"matplotlib.{name}")
    except ImportError:
        raise UnsupportedError("expected matplotlib for a picture, found none: pip install 'pymixtral[plot]'") from None
