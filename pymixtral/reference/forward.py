"""The oracle's forward pass: layers from the embedding to logits.

The model is Mixtral's (Jiang et al. 2024, arXiv:2401.04088): a decoder with RMS norms,
grouped-query attention with rotary positions, and a feed-forward network in which a router chooses
a few experts for each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pymixtral.arrays import F32, I32
from pymixtral.reference.adapters import NONE, Deltas, adapted
from pymixtral.reference.arithmetic import finite, sum8
from pymixtral.reference.attention import attention, round_to_cache
from pymixtral.reference.experts import experts, route
from pymixtral.reference.products import embed, matmul
from pymixtral.reference.rotation import rope, rope_table

if TYPE_CHECKING:
    from pymixtral.files.types import Matrix
    from pymixtral.model.adapter import Adapter
    from pymixtral.model.config import ModelConfig
    from pymixtral.model.weights import LayerWeights, ModelWeights


def rms_norm(x: F32, weight: F32, eps: float) -> F32:
    """Normalise each row to a root mean square of 1 and multiply it by weights.

    Zhang and Sennrich 2019, arXiv:1910.07467.

    Args:
        x: float32 [n_tokens, n].
        weight: float32 [n].
        eps: added to the mean of the squares.

    Returns:
        float32 [n_tokens, n].

    Raises:
        NonFiniteError: with the row.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        squares = finite(sum8(x, x), "a sum of squares")
        r = np.float32(1) / np.sqrt(squares / np.float32(x.shape[-1]) + np.float32(eps))
        return finite((x * r[:, None]) * weight, "a normalised vector")


def layer_attention(
    x: F32,
    w: LayerWeights,
    config: ModelConfig,
    cosines: F32,
    sines: F32,
    cache_dtype: Any = np.float32,
    deltas: Deltas = NONE,
) -> F32:
    """Add a layer's attention to the residual stream.

    Args:
        x: a whole sequence from position 0, float32 [n_tokens, hidden].
        w: the layer's weights.
        config: the model's numbers.
        cosines: of rope_table(), float32 [n_tokens, head_dim/2].
        sines: of rope_table(), float32 [n_tokens, head_dim/2].
        cache_dtype: np.float32, np.float16 or Q8_0, to which keys and values are rounded.
        deltas: what adapters add.

    Returns:
        float32 [n_tokens, hidden].

    Raises:
        NonFiniteError: with the row.
    """

    def project(x: F32, w: Matrix, stem: str) -> F32:
        return adapted(matmul(x, w, config.planes), x, deltas.of(stem))

    n_tokens = len(x)
    n = rms_norm(x, w.attn_norm, config.rms_eps)
    q = rope(project(n, w.q, "attn_q").reshape(n_tokens, config.n_heads, config.head_dim), cosines, sines)
    k = rope(project(n, w.k, "attn_k").reshape(n_tokens, config.n_kv_heads, config.head_dim), cosines, sines)
    v = project(n, w.v, "attn_v").reshape(n_tokens, config.n_kv_heads, config.head_dim)
    seen = attention(q, round_to_cache(k, cache_dtype), round_to_cache(v, cache_dtype), window=config.window)
    return finite(x + project(seen.reshape(n_tokens, -1), w.output, "attn_output"), "the residual stream")


def layer(
    x: F32,
    w: LayerWeights,
    config: ModelConfig,
    cosines: F32,
    sines: F32,
    cache_dtype: Any = np.float32,
    n_experts_used: int | None = None,
    deltas: Deltas = NONE,
) -> F32:
    """Compute one decoder layer.

    Args:
        x: a whole sequence from position 0, float32 [n_tokens, hidden].
        w: the layer's weights.
        config: the model's numbers.
        cosines: of rope_table(), float32 [n_tokens, head_dim/2].
        sines: of rope_table(), float32 [n_tokens, head_dim/2].
        cache_dtype: np.float32, np.float16 or Q8_0, to which keys and values are rounded.
        n_experts_used: experts that a token uses in this layer; None: config.n_experts_used.
        deltas: what adapters add.

    Returns:
        float32 [n_tokens, hidden].

    Raises:
        NonFiniteError: with the row.
    """
    x = layer_attention(x, w, config, cosines, sines, cache_dtype, deltas)
    n = rms_norm(x, w.ffn_norm, config.rms_eps)
    ids: I32 = np.zeros((len(x), 1), np.int32)
    weights: F32 = np.ones((len(x), 1), np.float32)
    if w.router is not None:
        routed = adapted(matmul(n, w.router, config.planes), n, deltas.of("ffn_gate_inp"))
        ids, weights = route(routed, n_experts_used or config.n_experts_used, min_p=config.expert_min_p)
    return experts(x, n, ids, weights, w.experts, config.planes, deltas)


def forward(
    weights: ModelWeights,
    config: ModelConfig,
    tokens: Sequence[int] | I32,
    cache_dtype: Any = np.float32,
    adapters: Sequence[tuple[Adapter, float | F32]] = (),
) -> F32:
    """Compute all layers for a sequence that begins at position 0.

    Args:
        weights: the model's weights.
        config: the model's numbers.
        tokens: token ids [n_tokens].
        cache_dtype: np.float32, np.float16 or Q8_0, to which keys and values are rounded.
        adapters: each with what it counts, in all rows or in each, float32 [n_tokens], ordered by
            their digests.

    Returns:
        The residual stream after the last layer, float32 [n_tokens, hidden].

    Raises:
        NonFiniteError: with the row.
    """
    x = embed(weights.embedding, np.asarray(tokens, np.int32))
    cosines, sines = rope_table(config.rope_frequencies(), np.arange(len(x), dtype=np.int32), config.rope_factor())
    scaled = [(adapter, np.broadcast_to(np.float32(scale), len(x))) for adapter, scale in adapters]
    for i, (w, n_used) in enumerate(zip(weights.layers, config.experts_used, strict=True)):
        deltas = Deltas(scaled, i, mixed=config.n_experts > 1)
        x = layer(x, w, config, cosines, sines, cache_dtype, n_used, deltas)
    return x


def logits(hidden: F32, weights: ModelWeights, config: ModelConfig) -> F32:
    """Compute logits.

    Args:
        hidden: rows of forward(), float32 [n_tokens, hidden].
        weights: the model's weights.
        config: the model's numbers.

    Returns:
        float32 [n_tokens, n_vocab].

    Raises:
        NonFiniteError: with the row.
    """
    return matmul(rms_norm(hidden, weights.output_norm, config.rms_eps), weights.head, config.planes)
