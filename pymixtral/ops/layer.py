"""A decoder layer in two calls, and the batch that goes through the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pymixtral.arrays import F32, F64, I32, IdArray
from pymixtral.files.types import Matrix
from pymixtral.ops.context import Context
from pymixtral.ops.native import check, ffi, lib
from pymixtral.ops.views import BoundMatrix, CacheLayer, Runs, Weights, as_input, check_shape, pointer


class Layer:
    """One decoder layer as C sees it: views of its weights, and its numbers.

    Args:
        attn_norm: float32 [hidden].
        ffn_norm: float32 [hidden].
        q: n_heads*head_dim x hidden.
        k: n_kv_heads*head_dim x hidden.
        v: n_kv_heads*head_dim x hidden.
        output: hidden x n_heads*head_dim.
        router: n_experts x hidden; None in a dense layer.
        experts: gate, up (ffn x hidden) and down (hidden x ffn) of each expert.
        n_experts_used: experts for each token.
        n_heads: query heads.
        n_kv_heads: key/value heads.
        window: positions that a token attends to, itself included; 0: all.
        eps: of the norms.

    Raises:
        InvalidArgumentError: for norms of another shape, and matrices that are not contiguous.
    """

    def __init__(
        self,
        *,
        attn_norm: F32,
        ffn_norm: F32,
        q: Matrix,
        k: Matrix,
        v: Matrix,
        output: Matrix,
        router: Matrix | None,
        experts: Sequence[tuple[Matrix, Matrix, Matrix]],
        n_experts_used: int,
        n_heads: int,
        n_kv_heads: int,
        window: int,
        eps: float,
    ) -> None:
        self.hidden = q.cols
        self.n_experts_used = n_experts_used
        self.n_experts = len(experts)
        self.ffn = experts[0][0].rows
        self.q_dim = q.rows
        self.width = self.hidden, n_experts_used  # what a batch must have been made for
        norms = as_input(attn_norm, 1), as_input(ffn_norm, 1)
        for norm in norms:
            check_shape("norm", norm.shape, (self.hidden,))
        matrices = Weights([q, k, v, output, *([router] if router else [])])
        flat = Weights([matrix for expert in experts for matrix in expert])
        self._keep = norms, matrices, flat
        struct = self.struct = ffi.new("pmx_layer *")
        struct.attn_norm, struct.ffn_norm = map(pointer, norms)
        struct.q, struct.k, struct.v, struct.output = matrices.array[0:4]
        if router:
            struct.router = matrices.array[4]
        struct.experts = flat.array
        struct.n_experts, struct.n_experts_used = self.n_experts, n_experts_used
        struct.n_heads, struct.n_kv_heads, struct.head_dim = n_heads, n_kv_heads, q.rows // n_heads
        struct.hidden, struct.window, struct.eps = self.hidden, window, eps


class Observer:
    """Collects, for calibration, how large the inputs of each matrix of a layer are.

    Attributes:
        qkv_input: float64 [hidden], sums of squares, column by column.
        output_input: float64 [n_heads*head_dim].
        expert_input: float64 [n_experts, hidden], of gate and up.
        down_input: float64 [n_experts, ffn].
        n_tokens: int64 [n_experts], the tokens that each expert saw.
    """

    def __init__(self, layer: Layer) -> None:
        self.qkv_input = np.zeros(layer.hidden)
        self.output_input = np.zeros(layer.q_dim)
        self.expert_input = np.zeros((layer.n_experts, layer.hidden))
        self.down_input = np.zeros((layer.n_experts, layer.ffn))
        self.n_tokens = np.zeros(layer.n_experts, np.int64)
        self.struct = ffi.new("pmx_observer *")
        for name in ("qkv_input", "output_input", "expert_input", "down_input", "n_tokens"):
            setattr(self.struct, name, pointer(getattr(self, name)))


class Batch:
    """The tokens of one pass, and what the layers hand on about them.

    It serves one pass after the other: its arrays only grow, so that a pass of as many tokens as
    an earlier one allocates none.

    Args:
        layer: one of the layers, all of which are of one width.
        frequencies: of rope, float64 [head_dim/2], in radians per position.
        factor: what rope's cosines and sines are multiplied by.

    Attributes:
        n_tokens: rows of the arrays below.
        x: float32 [n_tokens, hidden], the residual stream, changed in place by each layer.
        normed: float32 [n_tokens, hidden], the input of a layer's experts.
        ids: int32 [n_tokens, n_experts_used], the router's choice, ascending.
        weights: float32 [n_tokens, n_experts_used], what the chosen experts count.
    """

    def __init__(self, layer: Layer, frequencies: F64, factor: float = 1.0) -> None:
        self.width = layer.width
        self._frequencies = as_input(frequencies, 1, np.float64)
        self._factor = factor
        self.n_pairs = len(self._frequencies)
        self.struct = ffi.new("pmx_batch *")
        self.runs = Runs([])
        self.begin_rows(1)

    def begin(self, ctx: Context, runs: Sequence[tuple[int, int, I32]]) -> None:
        """Makes it the batch of other runs. The arrays' contents are then undefined.

        Args:
            ctx: where rope's cosines and sines are computed.
            runs: see Runs.

        Raises:
            InvalidArgumentError: for runs and positions that make no sense.
        """
        if not self.runs.advance(runs):
            self.runs = Runs(runs)
            self.struct.runs, self.struct.n_runs = self.runs.array, self.runs.n_runs
        self.begin_rows(self.runs.n_tokens)
        at = 0
        for n_tokens, first, _ in runs:
            self._positions[at : at + n_tokens] = first if n_tokens == 1 else np.arange(first, first + n_tokens, dtype=np.int32)
            at += n_tokens
        check(lib.pmx_rope_table(ctx.pointer, *self._rotation, *self._angles, self.n_tokens, self.n_pairs, self._factor))

    def begin_rows(self, n_tokens: int) -> None:
        """Makes it a batch of so many rows of no sequence, for layer_experts() alone."""
        if n_tokens > getattr(self, "_capacity", 0):
            hidden, n_used = self.width
            self._capacity = n_tokens
            self._x, self._normed = (np.empty((n_tokens, hidden), np.float32) for _ in range(2))
            self._ids, self._weights = np.empty((n_tokens, n_used), np.int32), np.empty((n_tokens, n_used), np.float32)
            self._positions = np.empty(n_tokens, np.int32)
            tables = [np.empty((n_tokens, self.n_pairs), np.float32) for _ in range(2)]
            self._rotation = tuple(map(pointer, tables))
            self._angles = pointer(self._frequencies), pointer(self._positions)
            self._keep = [pointer(x) for x in (self._x, self._normed, self._ids, self._weights)]
            struct = self.struct
            struct.x, struct.normed, struct.ids, struct.weights = self._keep
            struct.cosines, struct.sines = self._rotation
            self.n_tokens = 0
        if n_tokens != self.n_tokens:
            self._show(n_tokens)

    def embed(self, ctx: Context, embedding: BoundMatrix, ids: I32) -> None:
        """Sets x to the rows `ids`, int32 [n_tokens], of the embedding. Raises InvalidArgumentError for ids outside it."""
        ids = as_input(ids, 1, np.int32)
        if len(ids) != self.n_tokens or embedding.cols != self.width[0]:
            check_shape("x", (len(ids), embedding.cols), self.x.shape)
        check(lib.pmx_embed(ctx.pointer, self.struct.x, embedding.struct, pointer(ids), self.n_tokens))

    def fill(self, x: F32) -> None:
        """Sets x. Raises InvalidArgumentError for another shape."""
        check_shape("x", x.shape, self.x.shape)
        self.x[:] = x

    def keep(self, rows: slice | IdArray) -> None:
        """Drops all rows but some, when only the experts are still to come: no run is left."""
        if isinstance(rows, slice) and rows == slice(None):
            return
        n_kept = len(self.ids[rows])
        for array in (self.x, self.normed, self.ids, self.weights):
            array[:n_kept] = array[rows]
        self._show(n_kept)

    def _show(self, n_tokens: int) -> None:
        self.n_tokens = self.struct.n_tokens = n_tokens
        self.x, self.normed = self._x[:n_tokens], self._normed[:n_tokens]
        self.ids, self.weights = self._ids[:n_tokens], self._weights[:n_tokens]


def layer_attention(ctx: Context, batch: Batch, layer: Layer, cache: CacheLayer, observer: Observer | None = None) -> None:
    """The first half of a layer: norm, attention, norm, router.

    Adds attention to batch.x, writes the runs' keys and values to the cache, and fills batch.normed,
    batch.ids and batch.weights.

    Args:
        ctx: threads and instruction set.
        batch: begun with the runs of this pass.
        layer: the layer's weights.
        cache: the layer's keys and values, of the pages that the runs name.
        observer: for calibration, made for this layer.

    Raises:
        InvalidArgumentError: for a batch, cache or observer of another shape, and pages that are not there.
        NonFiniteError: for NaN or infinity, and a key or value beyond the cache's type.
        CanceledError: after Context.cancel().
        NativeError: if there is no memory.
    """
    runs = batch.runs
    if batch.width != layer.width or batch.n_pairs != cache.n_pairs or batch.n_tokens != runs.n_tokens:
        check_shape("a batch for this layer", batch.width, layer.width)
        check_shape("rope's frequencies", (batch.n_pairs,), (cache.n_pairs,))
        check_shape("rows of the batch's runs", (batch.n_tokens,), (runs.n_tokens,))
    observed = ffi.NULL if observer is None else _observed(observer, layer)
    check(lib.pmx_layer_attention(ctx.pointer, batch.struct, layer.struct, cache.struct, observed))


def layer_experts(ctx: Context, batch: Batch, layer: Layer, observer: Observer | None = None) -> None:
    """The second half of a layer: adds the outputs of the chosen experts to batch.x.

    Args:
        ctx: threads and instruction set.
        batch: with normed, ids and weights of this layer.
        layer: the layer's weights.
        observer: for calibration, made for this layer.

    Raises:
        InvalidArgumentError: for a batch or observer of another shape, and ids that are not there.
        NonFiniteError: for NaN or infinity.
        CanceledError: after Context.cancel().
        NativeError: if there is no memory.
    """
    if batch.width != layer.width:
        check_shape("a batch for this layer", batch.width, layer.width)
    observed = ffi.NULL if observer is None else _observed(observer, layer)
    check(lib.pmx_layer_experts(ctx.pointer, batch.struct, layer.struct, observed))


def _observed(observer: Observer, layer: Layer) -> Any:
    """The C struct of an observer made for a layer of these sizes."""
    check_shape("observer", observer.expert_input.shape, (layer.n_experts, layer.hidden))
    check_shape("observer", observer.down_input.shape, (layer.n_experts, layer.ffn))
    check_shape("observer", observer.output_input.shape, (layer.q_dim,))
    return observer.struct
