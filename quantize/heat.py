"""The errors of experts as a picture. Needs matplotlib, the [plot] extra."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from pymixtral.errors import UnsupportedError
from pymixtral.files.names import TensorName

from .report import Report
from .sources.checkpoint import Checkpoint


def check(checkpoint: Checkpoint) -> None:
    """Whether a heat map can be drawn.

    Args:
        checkpoint: the model.

    Raises:
        UnsupportedError: the model is dense, or matplotlib is missing.
    """
    if checkpoint.config.n_experts < 2:
        raise UnsupportedError(f"{checkpoint.path}: expected a model with experts for a heat map, found a dense one")
    _figure()


def draw(report: Report, path: Path) -> None:
    """Draws the relative errors of gate, up and down, layers x experts.

    Args:
        report: of a checkpoint that check() passes.
        path: the PNG file to write.
    """
    by_layer: dict[str, dict[int, list[float]]] = {}
    for tensor in report.tensors:
        name = TensorName.parse(tensor.name)
        if name is not None and name.layer is not None and name.tensor_class == "experts":
            row = by_layer.setdefault(name.stem.removeprefix("ffn_"), {}).setdefault(name.layer, [])
            row += tensor.expert_errors or (tensor.relative_error,)
    errors = {name: np.array(list(rows.values())) for name, rows in by_layer.items()}
    highest = max(values.max() for values in errors.values())
    n_layers, n_experts = next(iter(errors.values())).shape
    figure = _figure()(figsize=(3 * (1.5 + 0.25 * n_experts), 1.5 + 0.25 * n_layers), layout="constrained")
    axes = figure.subplots(1, len(errors), sharey=True)
    for axis, (projection, values) in zip(axes, errors.items(), strict=True):
        image = axis.imshow(100 * values, vmin=0, vmax=100 * highest, aspect="auto", cmap="viridis")
        axis.set(title=projection, xlabel="expert", xticks=range(n_experts))
    axes[0].set(ylabel="layer", yticks=range(0, n_layers, max(1, n_layers // 16)))
    figure.colorbar(image, ax=axes, label="relative error, %")
    figure.suptitle(f"{report.dest.name}: {report.bits_per_weight:.2f} bits per weight")
    figure.savefig(path, format="png", dpi=120)


def _figure() -> Any:
    """matplotlib's Figure, which needs no display and no global state."""
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError:
        raise UnsupportedError(
            "expected matplotlib for a heat map, found none: pip install 'pymixtral[plot]'"
        ) from None
