"""The model: weights, and the forward pass over a ragged batch."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pymixtral import ops
from pymixtral.errors import InvalidArgumentError
from pymixtral.model.config import ModelConfig
from pymixtral.model.kv_cache import KVCache, Sequence, n_pages_for
from pymixtral.model.weights import ModelWeights
from pymixtral.ops import PAGE

Batch = Seq[tuple[Sequence, int]]
EVERY = slice(None)


class Model:
    """Runs a model's layers. Not thread-safe but for cancel(): one engine thread owns it.

    n_threads, isa: see pymixtral.ops.Context, which may raise.
    """

    def __init__(self, weights: ModelWeights, config: ModelConfig, *, n_threads: int | None = None, isa: str | None = None) -> None:
        self.config = config
        self.weights = weights
        self.context = ops.Context(n_threads, isa)
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
                n_heads=config.n_heads,
                n_kv_heads=config.n_kv_heads,
                window=config.window,
                eps=config.rms_eps,
            )
            for layer in weights.layers
        ]
        self._embedding, self._head = ops.BoundMatrix(weights.embedding), ops.BoundMatrix(weights.head)
        self._frequencies, self._rope_factor = config.rope_frequencies(), config.rope_factor()
        # Kept between passes, of which most are of one token:
        self._cache_views: tuple[KVCache, list[ops.CacheLayer]] | None = None
        self._shared: ops.Pass | None = None
        self._run: tuple[NDArray[np.int32], ops.Runs] | None = None
        self._rotation: tuple[int, ops.Rotation] | None = None

    def new_cache(self, n_tokens: int, kv_type: str = "f16") -> KVCache:
        """A cache for n_tokens positions of one sequence; kv_type: "f16", "f32" or "q8_0"."""
        c = self.config
        return KVCache(c.n_layers, c.n_kv_heads, c.head_dim, n_pages_for(n_tokens), kv_type)

    def forward(
        self,
        inputs: NDArray[np.int32] | NDArray[np.float32],
        batch: Batch,
        cache: KVCache,
        *,
        layers: range | None = None,
        rows: slice = EVERY,
        observers: Seq[ops.Observer] | None = None,
    ) -> NDArray[np.float32]:
        """The hidden rows float32 [n, hidden], or those of them that `rows` names, after some layers, by default all.

        inputs: token ids int32 [n], or hidden rows float32 [n, hidden] from earlier layers. batch: (sequence, how many of the rows
        continue it), in the order of the rows; the sequences belong to `cache`, each at most once. They advance when the pass has
        succeeded; after an exception they are as before, and what was reserved is given back. rows: the last layer's experts are spared
        the others, which nothing depends on; a NonFiniteError from there counts among these rows. observers: for calibration, one for
        each layer of the model; an exception leaves parts of the pass in them. Raises InvalidArgumentError,
        ContextLengthError when the cache is full, NonFiniteError, and CanceledError after cancel().
        """
        self.context.cancel(False)
        n, n_batch, sequences = len(inputs), 0, set()
        for sequence, count in batch:
            if sequence.cache is not cache:
                raise InvalidArgumentError("expected sequences of the given cache, found one of another: make them with its new_sequence()")
            n_batch += count
            sequences.add(sequence)
        if n_batch != n or n == 0 or len(sequences) != len(batch):
            found = [count for _, count in batch]
            raise InvalidArgumentError(f"expected a batch of different sequences with {n} tokens together and at least one, found {found}")
        try:
            for sequence, count in batch:
                sequence.reserve(count)
            x = self._pass(inputs, batch, cache, range(self.config.n_layers) if layers is None else layers, rows, observers)
        except BaseException:
            for sequence, _ in batch:
                sequence.truncate(sequence.length)  # gives back what was reserved
            raise
        for sequence, count in batch:
            sequence.advance(count)
        return x

    def _pass(
        self,
        inputs: NDArray[np.int32] | NDArray[np.float32],
        batch: Batch,
        cache: KVCache,
        layers: range,
        rows: slice,
        observers: Seq[ops.Observer] | None,
    ) -> NDArray[np.float32]:
        rotation, runs = self._rotation_of(batch), self._runs_of(batch)
        if inputs.dtype.kind == "f":
            x = np.array(inputs, np.float32, order="C")
        else:
            x = ops.embed(self.context, self._embedding, cast("NDArray[np.int32]", inputs))
        views = self._views(cache)
        shared = self._pass_of(x)
        for i in layers:
            observer = observers[i] if observers else None
            ops.layer_attention(self.context, shared, self.layers[i], views[i], runs, rotation, observer)
            if i == layers[-1] and rows != EVERY:
                shared = self._part(shared, rows)
            if shared.n_tokens:
                ops.layer_experts(self.context, shared, self.layers[i], observer)
        return shared.x

    def _part(self, whole: ops.Pass, rows: slice) -> ops.Pass:
        part = ops.Pass(self.layers[0], whole.x[rows].copy())
        part.normed[:], part.ids[:], part.weights[:] = whole.normed[rows], whole.ids[rows], whole.weights[rows]
        return part

    def _rotation_of(self, batch: Batch) -> ops.Rotation:
        """The next token of a text mostly has its position in the same page of them as the last one."""
        (page, first), count = divmod(batch[0][0].length, PAGE), batch[0][1]
        if len(batch) > 1 or first + count > PAGE:
            return self._new_rotation([(sequence.length, count) for sequence, count in batch])
        if self._rotation is None or self._rotation[0] != page:
            self._rotation = page, self._new_rotation([(page * PAGE, PAGE)])
        rotation = self._rotation[1]
        rotation.move(first, count)
        return rotation

    def _new_rotation(self, runs: list[tuple[int, int]]) -> ops.Rotation:
        """runs: first positions and numbers of them."""
        positions = np.concatenate([np.arange(first, first + count, dtype=np.int32) for first, count in runs])
        return ops.Rotation(*ops.rope_table(self.context, self._frequencies, positions, self._rope_factor))

    def _runs_of(self, batch: Batch) -> ops.Runs:
        """The last ones again, moved, for one text that has the same pages as the last one."""
        sequence, count = batch[0]
        if len(batch) > 1:
            return ops.Runs([(count, sequence.length, sequence.pages) for sequence, count in batch])
        if self._run is None or self._run[0] is not sequence.pages:
            self._run = sequence.pages, ops.Runs([(count, sequence.length, sequence.pages)])
        runs = self._run[1]
        runs.move(count, sequence.length)
        return runs

    def _pass_of(self, x: NDArray[np.float32]) -> ops.Pass:
        """The last one again, if it was of as many tokens."""
        if self._shared is None or self._shared.n_tokens != len(x):
            self._shared = ops.Pass(self.layers[0], x)
        else:
            self._shared.begin(x)
        return self._shared

    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [n, n_vocab] of hidden rows [n, hidden] after the last layer."""
        self.context.cancel(False)
        return ops.matmul(self.context, self.head_input(hidden), self._head)

    def head_input(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """The normed rows float32 [n, hidden] that logits() multiplies with the head."""
        return ops.rms_norm(self.context, hidden, self.weights.output_norm, self.config.rms_eps)

    def cancel(self) -> None:
        """Ends the pass under way with CanceledError. A pass that begins later is not concerned. Any thread may call it."""
        self.context.cancel()

    def close(self) -> None:
        """Ends the threads; the model is of no use afterwards. May be called again."""
        self.context.close()

    def _views(self, cache: KVCache) -> list[ops.CacheLayer]:
        if self._cache_views is None or self._cache_views[0] is not cache:
            self._cache_views = cache, [ops.CacheLayer(k, v) for k, v in zip(cache.k, cache.v, strict=True)]
        return self._cache_views[1]
