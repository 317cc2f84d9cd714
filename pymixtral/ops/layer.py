"""A decoder layer in two calls, and the batch that goes through the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pymixtral.arrays import F32, F64, I32
from pymixtral.errors import InvalidArgumentError
from pymixtral.files.names import FFN_STEMS, TensorName
from pymixtral.files.types import Matrix
from pymixtral.ops.context import Context
from pymixtral.ops.native import check, ffi, lib
from pymixtral.ops.views import (
    BoundMatrix,
    CacheLayer,
    Delta,
    Pair,
    Runs,
    Weights,
    as_input,
    check_shape,
    pointer,
)


class Layer:
    """One decoder layer as C sees it: views of its weights, and its numbers.

    Args:
        attn_norm: weights of the norm before attention, float32 [hidden].
        ffn_norm: weights of the norm before the experts, float32 [hidden].
        q: n_heads*head_dim x hidden.
        k: n_kv_heads*head_dim x hidden.
        v: n_kv_heads*head_dim x hidden.
        output: hidden x n_heads*head_dim.
        router: n_experts x hidden; None in a dense layer.
        experts: gate, up (ffn x hidden) and down (hidden x ffn) of each expert.
        n_experts_used: experts for each token.
        n_experts_dropped: how many of these, the least likely, have weight 0 and are not computed:
            with fewer experts in this layer than in others, as all layers of a batch have the same
            n_experts_used.
        expert_min_p: experts that are less than this part as likely as the first one have weight 0.
        n_heads: query heads.
        n_kv_heads: key/value heads.
        window: positions that a token attends to, its own included; 0: all.
        eps: the small number that the norms add to the mean square.

    Attributes:
        hidden: the width of the residual stream.
        n_experts: experts of the layer; 1 in a dense layer.
        n_experts_used: experts for each token.
        ffn: inner width of an expert.
        q_dim: n_heads*head_dim.
        width: (hidden, n_experts_used), which a Batch for this layer must have.
        struct: the C struct pmx_layer.

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
        n_experts_dropped: int = 0,
        expert_min_p: float = 0.0,
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
        self.width = self.hidden, n_experts_used
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
        struct.n_experts_dropped, struct.expert_min_p = n_experts_dropped, expert_min_p
        names: list[tuple[str, int | None]] = [("attn_q", None), ("attn_k", None), ("attn_v", None)]
        names += [("attn_output", None), *([("ffn_gate_inp", None)] if router else [])]
        views = [struct.q, struct.k, struct.v, struct.output, struct.router]
        self._views = dict(zip(names, views, strict=False))
        for e in range(self.n_experts):
            for i, stem in enumerate(FFN_STEMS):
                self._views[stem, e if self.n_experts > 1 else None] = flat.array[3 * e + i]
        self._deltas: list[Delta] = []

    def adapt(self, deltas: Mapping[TensorName, Sequence[Pair]]) -> None:
        """Replace what adapters add to the matrices. No pass may be running.

        Args:
            deltas: the pairs of each matrix that has any. The number of the layer in a name is not
                looked at; a dense layer's matrices are no expert's.

        Raises:
            InvalidArgumentError: for a matrix that the layer does not have, and pairs of another shape.
        """
        unknown = [str(name) for name in deltas if (name.stem, name.expert) not in self._views]
        if unknown:
            raise InvalidArgumentError(f"expected matrices of the layer, found {unknown[0]}")
        built = {}
        for name, pairs in deltas.items():
            view = self._views[name.stem, name.expert]
            built[name.stem, name.expert] = Delta(view.rows, view.cols, pairs)
        self._deltas += built.values()  # the old ones are alive until C has no pointer to them
        for key, view in self._views.items():
            view.delta = built[key].struct if key in built else ffi.NULL
        self._deltas = list(built.values())


class Observer:
    """Sums, for calibration, the squared inputs of each matrix of a layer, column by column, and
    what each expert adds to the residual stream.

    Args:
        layer: the layer to observe.

    Attributes:
        qkv_input: sums of squares for q, k and v, float64 [hidden].
        output_input: sums of squares for the output matrix, float64 [n_heads*head_dim].
        expert_input: sums of squares for gate and up, float64 [n_experts, hidden].
        down_input: sums of squares for down, float64 [n_experts, ffn].
        n_tokens: tokens that each expert saw, int64 [n_experts].
        output_norms: sums of each expert's weight times the Euclidean norm of its output, float64
            [n_experts].
        struct: the C struct pmx_observer.
    """

    def __init__(self, layer: Layer) -> None:
        self.qkv_input = np.zeros(layer.hidden)
        self.output_input = np.zeros(layer.q_dim)
        self.expert_input = np.zeros((layer.n_experts, layer.hidden))
        self.down_input = np.zeros((layer.n_experts, layer.ffn))
        self.n_tokens = np.zeros(layer.n_experts, np.int64)
        self.output_norms = np.zeros(layer.n_experts)
        self.struct = ffi.new("pmx_observer *")
        for name in ("qkv_input", "output_input", "expert_input", "down_input", "n_tokens", "output_norms"):
            setattr(self.struct, name, pointer(getattr(self, name)))


class Batch:
    """The tokens of one pass, and the arrays that its layers pass on.

    One batch serves all passes. Its arrays only grow: a pass with no more tokens than an earlier
    one allocates nothing.

    Args:
        layer: one of the layers, which all have the same width.
        frequencies: frequencies of the rotary embedding, float64 [head_dim/2], in radians per
            position.
        factor: multiplies the cosines and sines of the rotary embedding.

    Attributes:
        width: (hidden, n_experts_used), as of the layers that it fits.
        n_pairs: head_dim/2.
        runs: which positions of which sequences the rows are.
        n_tokens: rows of the arrays below.
        x: the residual stream, float32 [n_tokens, hidden]; each layer changes it in place.
        normed: the input of a layer's experts, float32 [n_tokens, hidden].
        ids: the experts that the router chose, int32 [n_tokens, n_experts_used], ascending.
        weights: the weights of these experts, float32 [n_tokens, n_experts_used]; those of weight 0
            are not computed.
        scales: what each adapter counts in each row, float32 [n_tokens, n_adapters]; None: nothing.
        rotation: pointers to the cosines and the sines of the rotary embedding.
        pointers: pointers to x, normed, ids and weights.
    """

    def __init__(self, layer: Layer, frequencies: F64, factor: float = 1.0) -> None:
        self.width = layer.width
        self._frequencies = as_input(frequencies, 1, np.float64)
        self._factor = factor
        self.n_pairs = len(self._frequencies)
        self.struct = ffi.new("pmx_batch *")
        self.runs = Runs([])
        self.scales: F32 | None = None
        self._capacity = self.n_tokens = 0
        self.begin_rows(1)

    def begin(self, ctx: Context, runs: Sequence[tuple[int, int, I32]]) -> None:
        """Begin a pass over other runs. The contents of the arrays are undefined afterwards.

        Args:
            ctx: computes the cosines and sines of the rotary embedding.
            runs: (number of tokens, first position, cache pages) of each run; see Runs.

        Raises:
            InvalidArgumentError: for runs and positions that make no sense.
        """
        if not self.runs.advance(runs):
            self.runs = Runs(runs)
        # Each time, so that an interrupt between two passes leaves no pointer to runs that are gone.
        self.struct.runs, self.struct.n_runs = self.runs.array, self.runs.n_runs
        self.begin_rows(self.runs.n_tokens)
        at = 0
        for n_tokens, first, _ in runs:
            self._positions[at : at + n_tokens] = (
                first if n_tokens == 1 else np.arange(first, first + n_tokens, dtype=np.int32)
            )
            at += n_tokens
        check(
            lib.pmx_rope_table(ctx.pointer, *self._rotation, *self._angles, self.n_tokens, self.n_pairs, self._factor)
        )

    def begin_rows(self, n_tokens: int) -> None:
        """Begin a pass of rows that belong to no sequence, which only layer_experts() takes.

        Args:
            n_tokens: number of rows, at least 1.
        """
        self.scale(None)
        if n_tokens > self._capacity:
            self._grow(n_tokens)
        if n_tokens != self.n_tokens:
            self.show(n_tokens)

    def _grow(self, n_tokens: int) -> None:
        """Makes room for more rows.

        What fails or is interrupted on the way leaves a batch without room, which grows anew: C must
        not meet an array that is shorter than another.
        """
        hidden, n_used = self.width
        self._capacity = self.n_tokens = 0
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
        self._capacity = n_tokens

    def embed(self, ctx: Context, embedding: BoundMatrix, ids: I32) -> None:
        """Set x to the embeddings of token ids.

        Args:
            ctx: threads and instruction set.
            embedding: n_vocab x hidden.
            ids: int32 [n_tokens].

        Raises:
            InvalidArgumentError: for ids outside the embedding, and shapes that do not fit.
        """
        ids = as_input(ids, 1, np.int32)
        if len(ids) != self.n_tokens or embedding.cols != self.width[0]:
            check_shape("x", (len(ids), embedding.cols), self.x.shape)
        check(lib.pmx_embed(ctx.pointer, self.struct.x, embedding.struct, pointer(ids), self.n_tokens))

    def fill(self, x: F32) -> None:
        """Set x to given rows.

        Args:
            x: float32 [n_tokens, hidden], which are copied.

        Raises:
            InvalidArgumentError: for another shape.
        """
        check_shape("x", x.shape, self.x.shape)
        self.x[:] = x

    def scale(self, scales: F32 | None) -> None:
        """Set what the adapters of the layers count in this pass; a pass begins without any.

        Args:
            scales: float32 [n_tokens, n_adapters], which are copied; None: nothing.

        Raises:
            InvalidArgumentError: for another number of rows.
        """
        if scales is None:
            self.struct.scales, self.scales = ffi.NULL, None
            return
        check_shape("scales", scales.shape, (self.n_tokens, *scales.shape[1:]))
        copy: F32 = as_input(scales, 2).copy()
        self.struct.scales, self.struct.n_adapters, self.scales = pointer(copy), copy.shape[1], copy

    def check(self, layer: Layer, cache: CacheLayer) -> None:
        """Check that a layer and its cache fit.

        Args:
            layer: a layer.
            cache: its keys and values.

        Raises:
            InvalidArgumentError: if the batch has another shape than they.
        """
        if self.width != layer.width or self.n_pairs != cache.n_pairs or self.n_tokens != self.runs.n_tokens:
            check_shape("a batch for this layer", self.width, layer.width)
            check_shape("rope's frequencies", (self.n_pairs,), (cache.n_pairs,))
            check_shape("rows of the batch's runs", (self.n_tokens,), (self.runs.n_tokens,))

    def show(self, n_tokens: int) -> None:
        """Show the first rows alone.

        Args:
            n_tokens: how many.
        """
        self.n_tokens = self.struct.n_tokens = n_tokens
        self.x, self.normed = self._x[:n_tokens], self._normed[:n_tokens]
        self.ids, self.weights = self._ids[:n_tokens], self._weights[:n_tokens]


def layer_attention(
    ctx: Context, batch: Batch, layer: Layer, cache: CacheLayer, observer: Observer | None = None
) -> None:
    """Compute the first half of a layer: norm, attention, norm, router.

    It adds attention to batch.x, writes the runs' keys and values to the cache, and fills
    batch.normed, batch.ids and batch.weights.

    Args:
        ctx: threads and instruction set.
        batch: begun with the runs of this pass.
        layer: the layer's weights.
        cache: the layer's keys and values, in the pages that the runs name.
        observer: made for this layer, if its inputs are to be summed for calibration.

    Raises:
        InvalidArgumentError: for a batch, cache or observer of another shape, and for pages that
            the cache does not have.
        NonFiniteError: for NaN or infinity, and for a key or value beyond the range of the cache's
            type.
        CanceledError: after Context.cancel().
        NativeError: if there is no memory.
    """
    batch.check(layer, cache)
    check(lib.pmx_layer_attention(ctx.pointer, batch.struct, layer.struct, cache.struct, observed(observer, layer)))


def layer_experts(ctx: Context, batch: Batch, layer: Layer, observer: Observer | None = None) -> None:
    """Compute the second half of a layer: add the outputs of the chosen experts to batch.x.

    Args:
        ctx: threads and instruction set.
        batch: with normed, ids and weights, as layer_attention() left them.
        layer: the layer's weights.
        observer: made for this layer, if its inputs are to be summed for calibration.

    Raises:
        InvalidArgumentError: for a batch or observer of another shape, and for ids of experts that
            the layer does not have.
        NonFiniteError: for NaN or infinity.
        CanceledError: after Context.cancel().
        NativeError: if there is no memory.
    """
    if batch.width != layer.width:
        check_shape("a batch for this layer", batch.width, layer.width)
    check(lib.pmx_layer_experts(ctx.pointer, batch.struct, layer.struct, observed(observer, layer)))


def observed(observer: Observer | None, layer: Layer) -> Any:
    """Give the C struct of an observer, whose sizes are checked.

    Args:
        observer: an observer, or None.
        layer: what it was made for.

    Returns:
        The struct; NULL for None.

    Raises:
        InvalidArgumentError: if it was made for a layer of another shape.
    """
    if observer is None:
        return ffi.NULL
    check_shape("observer", observer.expert_input.shape, (layer.n_experts, layer.hidden))
    check_shape("observer", observer.down_input.shape, (layer.n_experts, layer.ffn))
    check_shape("observer", observer.output_input.shape, (layer.q_dim,))
    return observer.struct
