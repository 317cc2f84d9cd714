"""Pruning: it finds the experts that a model misses least, and writes the model without them.

The saliency of an expert is that of REAP (Lasby et al. 2025, arXiv:2510.13999): the mean, over the
tokens that the router sends to it, of its weight times the Euclidean norm of its output. It is what
the expert adds to the residual stream. The texts are cut into windows, as for calibrate().
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pymixtral.arguments import integer, path_of, shown
from pymixtral.arrays import F64
from pymixtral.errors import InvalidArgumentError, UnsupportedError
from pymixtral.evaluation.calibration import text_windows
from pymixtral.files.atomic import check_dest
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.pruning import drop_experts
from pymixtral.files.rewriting import check_shard_bytes
from pymixtral.mixtral import Mixtral
from pymixtral.model.config import ModelConfig
from pymixtral.progress import progress_bar

CRITERIA = ("reap", "frequency", "random")


@dataclass(frozen=True, eq=False)
class ExpertUse:
    """What the experts of a model did with some texts.

    Attributes:
        n_tokens: tokens that each expert saw, int64 [n_layers, n_experts].
        output_norms: sums, over these tokens, of the expert's weight times the Euclidean norm of its
            output, float64 [n_layers, n_experts].
    """

    n_tokens: NDArray[np.int64]
    output_norms: F64

    @property
    def saliency(self) -> F64:
        """The mean of weight times norm, float64 [n_layers, n_experts]; 0 for an expert without tokens."""
        means: F64 = self.output_norms / np.maximum(self.n_tokens, 1)
        return means

    @property
    def frequency(self) -> F64:
        """The share of each expert in the choices of its layer's router, float64 [n_layers, n_experts]."""
        shares: F64 = self.n_tokens / self.n_tokens.sum(axis=1, keepdims=True)
        return shares


@dataclass(frozen=True, eq=False)
class Pruning:
    """A model that was pruned.

    Attributes:
        files: the files written.
        criterion: by what the experts were chosen.
        kept: the experts of each layer that stayed, ascending.
        scores: what the criterion says of each expert, float64 [n_layers, n_experts]; those with the
            highest stayed.
        use: what the experts did with the texts; None for the criterion "random".
    """

    files: list[Path]
    criterion: str
    kept: list[list[int]]
    scores: F64
    use: ExpertUse | None


def expert_use(
    model: Mixtral,
    texts: Sequence[tuple[str, str]],
    *,
    n_ctx: int = 512,
    n_windows: int | None = None,
    progress: bool = True,
) -> ExpertUse:
    """Measure what the experts of a model do.

    Sums are float64 and in a fixed order, so the same texts give the same sums on every machine.

    Args:
        model: the model.
        texts: (name, text) of each text; the names are for messages.
        n_ctx: tokens of a window, 3 to model.n_ctx.
        n_windows: use only the first windows of all texts together; None: all.
        progress: show a bar on stderr if that is a terminal.

    Returns:
        The sums over all windows.

    Raises:
        InvalidArgumentError: for a text shorter than a window, and `n_windows` out of its range.
        UnsupportedError: for a file without a tokenizer.
        NonFiniteError: if the model's weights lead to NaN or infinity.
    """
    most = None if n_windows is None else integer("n_windows", n_windows, 1)
    windows = text_windows(model, texts, n_ctx)[:most]
    observers = model.observers()
    with progress_bar(total=len(windows) * n_ctx, unit=" tokens", unit_scale=True, shown=progress) as bar:
        for window in windows:
            model.observe(window, observers)
            bar.update(n_ctx)
    return ExpertUse(
        np.stack([observer.n_tokens for observer in observers]),
        np.stack([observer.output_norms for observer in observers]),
    )


def prune(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    n_experts: int,
    texts: Sequence[tuple[str, str]] = (),
    criterion: str = "reap",
    seed: int = 0,
    n_ctx: int = 512,
    n_windows: int | None = None,
    n_threads: int | None = None,
    max_shard_bytes: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> Pruning:
    """Write a model with the experts that it needs most. Which ones may differ from layer to layer.

    Args:
        source: a GGUF file, or any shard of a model in several.
        dest: the file to write.
        n_experts: experts of each layer that stay, 2 to one fewer than there are.
        texts: (name, text) of texts like those that the model will be used for.
        criterion: "reap" keeps the experts of the highest saliency, "frequency" those that the router
            chooses most often, "random" any, for comparison, which needs no texts.
        seed: of the criterion "random", 0 to 2^64 - 1.
        n_ctx: tokens of a window.
        n_windows: use only the first windows of all texts together; None: all.
        n_threads: as of Mixtral.
        max_shard_bytes: as of convert_layout().
        force: replace existing files.
        progress: bars on stderr, if that is a terminal.

    Returns:
        The files, and what was measured.

    Raises:
        ModelFileError: the source cannot be read, or was changed meanwhile.
        ModelConfigError: its metadata or tensors make no sense.
        UnsupportedError: pymixtral does not run the model, or it is dense.
        InvalidArgumentError: an argument is out of its range, or a text shorter than a window.
        NonFiniteError: the model's weights lead to NaN or infinity.
        OutputError: a file cannot be written.
    """
    if criterion not in CRITERIA:
        raise InvalidArgumentError(f"expected a criterion of {', '.join(CRITERIA)}, found {shown(criterion)}")
    if not texts and criterion != "random":
        raise InvalidArgumentError(f"expected texts for the criterion {criterion}, found none")
    seed = integer("seed", seed, 0, (1 << 64) - 1)
    check_shard_bytes(max_shard_bytes)
    path = path_of("dest", dest)
    with GGUFFile(path_of("source", source)) as file:
        config = ModelConfig.from_gguf(file)
        if config.n_experts == 1:
            raise UnsupportedError(f"{file.path}: expected a mixture of experts, found a dense model")
        n_experts = integer("n_experts", n_experts, 2, config.n_experts - 1)
        check_dest(path, file.paths, force)
    use = None
    if criterion != "random":
        with Mixtral(source, n_ctx=n_ctx, n_threads=n_threads, max_batch=1) as model:
            use = expert_use(model, texts, n_ctx=n_ctx, n_windows=n_windows, progress=progress)
        scores = use.saliency if criterion == "reap" else use.frequency
    else:
        draws = random.Random(seed)
        scores = np.array([[draws.random() for _ in range(config.n_experts)] for _ in range(config.n_layers)])
    kept = best(scores, n_experts)
    files = drop_experts(source, dest, kept, max_shard_bytes=max_shard_bytes, force=force, progress=progress)
    return Pruning(files, criterion, kept, scores, use)


def best(scores: F64, n_experts: int) -> list[list[int]]:
    """Choose the experts of the highest scores, of equal ones the lower numbers.

    Args:
        scores: float64 [n_layers, n_experts of the model].
        n_experts: how many to choose in each layer.

    Returns:
        Those of each layer, ascending.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    return [sorted(row) for row in order[:, :n_experts].tolist()]
