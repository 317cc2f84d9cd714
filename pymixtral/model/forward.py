"""The model: its weights, and the forward pass over a ragged batch.

Source: Jiang et al. 2024, arXiv:2401.04088. A ragged batch has a different number of tokens of each
sequence, in consecutive rows.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import cast

import numpy as np

from pymixtral import ops
from pymixtral.arguments import shown
from pymixtral.arrays import F32, I32, IdArray
from pymixtral.errors import InvalidArgumentError
from pymixtral.model.adapter import Adapter
from pymixtral.model.bound_adapters import BoundAdapters, Scales
from pymixtral.model.config import ModelConfig
from pymixtral.model.kv_cache import KVCache, Sequence, n_pages_for
from pymixtral.model.weights import ModelWeights
from pymixtral.ops import PAGE

Rows = slice | IdArray
"""A choice of rows: a slice or indices."""

_COUNTED = 8
"""Of so many passes one counts the experts that it reads."""


class Model:
    """A model that is ready to compute. One thread owns it; only cancel() is thread-safe.

    Args:
        weights: the weights of a file that fits `config`.
        config: the model's numbers.
        n_threads: see pymixtral.ops.Context.
        isa: see pymixtral.ops.Context.

    Attributes:
        config: the model's numbers.
        weights: its weights.
        context: the threads and the instruction set.
        layers: the layers, as C sees them.

    Raises:
        InvalidArgumentError: for a number of threads out of range, and for a wrong PYMIXTRAL_PREFETCH.
        UnsupportedError: for an instruction set that this machine does not run.
        NativeError: if there is no memory, or a thread cannot be started.
    """

    def __init__(
        self, weights: ModelWeights, config: ModelConfig, *, n_threads: int | None = None, isa: str | None = None
    ) -> None:
        self.config = config
        self.weights = weights
        self.context = ops.Context(n_threads, isa)
        self.context.planes = config.planes
        self._prefetch = ops.PrefetchTrial(self.context)
        self.layers = [
            ops.Layer(
                attn_norm=layer.attn_norm,
                ffn_norm=layer.ffn_norm,
                q=layer.q,
                k=layer.k,
                v=layer.v,
                output=layer.output,
                router=layer.router,
                experts=layer.experts,
                n_experts_used=config.n_experts_used,
                n_experts_dropped=config.n_experts_used - n_used,
                expert_min_p=config.expert_min_p,
                n_heads=config.n_heads,
                n_kv_heads=config.n_kv_heads,
                window=config.window,
                eps=config.rms_eps,
            )
            for layer, n_used in zip(weights.layers, config.experts_used, strict=True)
        ]
        self._stack = ops.Stack(self.layers)
        self._adapters = BoundAdapters(self.layers, config)
        self._embedding, self._head = ops.BoundMatrix(weights.embedding), ops.BoundMatrix(weights.head)
        self._passes = self._counted = 0
        self._experts = 0.0
        self._batch = ops.Batch(self.layers[0], config.rope_frequencies(), config.rope_factor())

    def new_cache(self, n_tokens: int, kv_type: str = "f16") -> KVCache:
        """Make a cache for one sequence.

        Args:
            n_tokens: positions of the sequence.
            kv_type: "f16", "f32" or "q8_0".

        Returns:
            The cache, empty.

        Raises:
            InvalidArgumentError: for a kv_type that does not fit the model.
            NativeError: if there is no memory.
        """
        c = self.config
        return KVCache(c.n_layers, c.n_kv_heads, c.head_dim, n_pages_for(n_tokens), kv_type)

    def forward(
        self,
        inputs: I32 | F32,
        runs: Seq[tuple[Sequence, int]],
        cache: KVCache,
        *,
        layers: range | None = None,
        rows: Rows = ops.EVERY,
        observers: Seq[ops.Observer] | None = None,
        choices: ops.Choices | None = None,
        adapters: Seq[Scales | None] | None = None,
    ) -> F32:
        """Compute one pass over a ragged batch.

        The sequences advance when the pass has succeeded. After an exception they are as before,
        and reserved pages are given back.

        Args:
            inputs: token ids, int32 [n], or hidden rows of earlier layers, float32 [n, hidden].
            runs: (sequence, number of rows that continue it), in the order of the rows. The
                sequences belong to `cache`, and each occurs at most once.
            cache: the keys and values of all layers, read and written.
            layers: the layers to run, perhaps none; None: all.
            rows: the rows whose result is wanted, a slice or indices, ascending. Rows not wanted skip the
                experts of the last layer; a NonFiniteError from there counts the wanted rows only.
            observers: for calibration, one for each layer of the model. After an exception they
                hold a part of the pass.
            choices: is filled with what the routers choose for all rows; see new_choices().
            adapters: of each run, the adapters of its rows, and what each counts. New ones are bound
                first; see release().

        Returns:
            The wanted rows after the last of `layers`, float32 [n wanted, hidden].

        Raises:
            InvalidArgumentError: for runs, inputs or scales that do not fit.
            AdapterError: for an adapter of another model.
            ContextLengthError: if the cache has too few free pages.
            NonFiniteError: if the weights lead to NaN or infinity.
            CanceledError: after cancel().
            NativeError: if there is no memory.
        """
        self._check(len(inputs), runs, cache)
        _check_rows(rows, len(inputs))
        scales = None if adapters is None else self._adapters.scales([count for _, count in runs], adapters)
        try:
            for sequence, count in runs:
                sequence.reserve(count)
            self._prefetch.begin()
            some = range(self.config.n_layers) if layers is None else layers
            hidden = self._pass(inputs, runs, cache, some, rows, observers, choices, scales)
            if layers is None and len(inputs) == len(hidden) == 1:
                self._prefetch.end()
        except BaseException:
            for sequence, _ in runs:
                sequence.truncate(sequence.length)  # gives back what was reserved
            raise
        for sequence, count in runs:
            sequence.advance(count)
        return hidden

    def _check(self, n: int, runs: Seq[tuple[Sequence, int]], cache: KVCache) -> None:
        for sequence, _ in runs:
            if sequence.cache is not cache:
                raise InvalidArgumentError(
                    "expected sequences of the given cache, found one of another cache: make them with new_sequence()"
                )
        counts = [count for _, count in runs]
        if sum(counts) != n or n == 0 or len({sequence for sequence, _ in runs}) != len(runs):
            raise InvalidArgumentError(
                f"expected different sequences with {n} rows together, and at least one row, found {counts} rows"
            )

    def _pass(
        self,
        inputs: I32 | F32,
        runs: Seq[tuple[Sequence, int]],
        cache: KVCache,
        layers: range,
        rows: Rows,
        observers: Seq[ops.Observer] | None,
        choices: ops.Choices | None,
        scales: F32 | None,
    ) -> F32:
        batch = self._batch
        batch.begin(self.context, [(count, sequence.length, sequence.pages) for sequence, count in runs])
        batch.scale(scales)
        if inputs.dtype.kind == "f":
            batch.fill(cast("F32", inputs))
        else:
            batch.embed(self.context, self._embedding, cast("I32", inputs))
        counted = self._passes % _COUNTED == 0 and len(layers) > 0 and len(inputs) <= PAGE
        self._passes += 1
        if counted and choices is None:
            choices = self.new_choices(len(inputs), full=False, n_layers=len(layers))
        if layers:
            ops.run_layers(
                self.context,
                batch,
                self._stack,
                cache.stack,
                layers,
                rows=rows,
                observers=observers,
                choices=choices,
            )
        if counted and choices is not None:
            self._counted += 1
            different = [
                len(np.unique(experts[weights > 0]))
                for experts, weights in zip(choices.experts.swapaxes(0, 1), choices.weights.swapaxes(0, 1), strict=True)
            ]
            self._experts += sum(different) / len(layers)
        hidden: F32 = (batch.x if layers else batch.x[rows]).copy()  # without layers nobody has dropped rows
        return hidden

    def new_choices(self, n_tokens: int, *, full: bool, n_layers: int | None = None) -> ops.Choices:
        """Make what forward() fills with the routers' choices.

        Args:
            n_tokens: tokens of the pass.
            full: whether their logits are wanted, too.
            n_layers: layers of the pass; None: all.

        Returns:
            The choices, not yet filled.
        """
        c = self.config
        return ops.Choices(n_tokens, n_layers or c.n_layers, c.n_experts, c.n_experts_used, full=full)

    @property
    def experts_read(self) -> float:
        """The mean number of different experts that a layer read in a pass of at most 64 tokens.

        One pass in eight is counted; 0 before the first.
        """
        return self._experts / self._counted if self._counted else 0.0

    def release(self, adapter: Adapter) -> None:
        """Let go of an adapter that forward() was given: the model no longer keeps it in memory.

        Args:
            adapter: one that is not bound is left alone.
        """
        self._adapters.release(adapter)

    def shift(self, sequence: Sequence, first: int, n: int, make_free: Callable[[int], None] | None = None) -> None:
        """Drop whole pages of a sequence, and move the positions after them to their place.

        Args:
            sequence: is shorter by n pages afterwards; see Sequence.shift(), also for errors.
            first: the number of the first page to drop.
            n: how many pages.
            make_free: see Sequence.shift().
        """
        sequence.shift(self.context, self.config.rope_frequencies(), first, n, make_free)

    def logits(self, hidden: F32) -> F32:
        """Compute logits.

        Args:
            hidden: rows after the last layer, float32 [n, hidden].

        Returns:
            float32 [n, n_vocab].

        Raises:
            NonFiniteError: if the weights lead to NaN or infinity.
            CanceledError: after cancel().
        """
        return ops.matmul(self.context, self.head_input(hidden), self._head)

    def head_input(self, hidden: F32) -> F32:
        """Compute the input of the output matrix, the head.

        Args:
            hidden: rows after the last layer, float32 [n, hidden].

        Returns:
            The rows after the last norm, float32 [n, hidden].

        Raises:
            NonFiniteError: if the weights lead to NaN or infinity.
        """
        return ops.rms_norm(self.context, hidden, self.weights.output_norm, self.config.rms_eps)

    def cancel(self, on: bool = True) -> None:
        """Cancel the pass that is running and all later ones: they raise CanceledError.

        Any thread may call this.

        Args:
            on: True cancels; False lets later passes run again.
        """
        self.context.cancel(on)

    def close(self) -> None:
        """End the threads. The model cannot compute afterwards. A second close() does nothing."""
        self.context.close()


def _check_rows(rows: Rows, n: int) -> None:
    if isinstance(rows, slice):
        return
    fits = isinstance(rows, np.ndarray) and rows.ndim == 1 and rows.dtype.kind in "iu" and len(rows) <= n
    if not fits or (len(rows) and not 0 <= rows.min() <= rows.max() < n):
        raise InvalidArgumentError(
            f"expected rows to be a slice or an array of at most {n} indices from 0 to {n - 1}, found {shown(rows)}"
        )
