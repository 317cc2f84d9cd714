"""Calls of the C library for aarch64/driver.c, and what the oracle makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from pymixtral.arrays import F32, I32
from pymixtral.errors import NonFiniteError
from pymixtral.files.types import Matrix, block_weights
from pymixtral.model.config import ModelConfig
from pymixtral.model.weights import LayerWeights
from pymixtral.reference import oracle
from pymixtral.reference.oracle import PAGE
from support.low_rank import low_rank, scales_for
from support.variants import (
    TYPES,
    activations,
    generator,
    key_pages,
    matrix,
    model_matrix,
    normal,
    stored_bytes,
    value_pages,
    wide,
)

OPERATIONS = [
    "matmul",
    "embed",
    "quantize",
    "rms_norm",
    "exp",
    "silu_mul",
    "rope_table",
    "rope",
    "route",
    "attention",
    "layer",
]
"""In the driver's order."""

ENONFINITE = 5


@dataclass(frozen=True, eq=False)
class Case:
    """One call. want: its outputs, the last ones that the driver returns; or the row that is not
    finite.
    """

    operation: str
    ints: list[int]
    inputs: list[NDArray[Any]]
    want: list[NDArray[Any]] | int

    def request(self) -> bytes:
        parts = [
            np.array(
                [OPERATIONS.index(self.operation), len(self.ints), *self.ints, len(self.inputs)], np.int64
            ).tobytes()
        ]
        for array in self.inputs:
            parts += [np.int64(array.nbytes).tobytes(), np.ascontiguousarray(array).tobytes()]
        return b"".join(parts)

    def __str__(self) -> str:
        return f"{self.operation} {self.ints}"


def _want(call: Callable[[], Any]) -> list[NDArray[Any]] | int:
    try:
        result = call()
    except NonFiniteError as error:
        return error.row
    return list(result) if isinstance(result, tuple) else [result]


def _float(x: float) -> F32:
    return np.array([x], np.float32)


def _ints(w: Matrix) -> list[int]:
    return [int(w.type), *w.shape]


def _matmul(x: F32, w: Matrix) -> Case:
    return Case("matmul", [*_ints(w), len(x)], [x, w.data], _want(lambda: oracle.matmul(x, w)))


def matmuls(kind: GGMLQuantizationType) -> Iterator[Case]:
    """Strips and items of rows and their tails, every number of tokens up to two tiles and one,
    more tokens than a block, rows longer than a strip, and the largest integers.
    """
    block = block_weights(kind)
    for cols in {1: [1, 7, 8, 9, 67], 32: [32, 96], 256: [256, 768]}[block]:
        x, w = activations(cols, 10, cols), matrix(kind, 13, cols, cols)
        for n in range(1, 10):
            yield _matmul(x[10 - n :], Matrix(kind, w.data[: 14 - n]))
    x, w = activations(1, 131, block), matrix(kind, 67, block, 1)
    yield _matmul(x[:33], w)
    yield _matmul(x, Matrix(kind, w.data[:9]))
    cols = {1: 67, 32: 2080, 256: 2304}[block]
    yield _matmul(activations(2, 5, cols), matrix(kind, 9, cols, 2))
    yield _matmul(activations(2, 1, cols), matrix(kind, 9, cols, 2))
    if block > 1:
        for fill in (0x00, 0x7F, 0x80, 0xFF):
            yield _matmul(activations(3, 5, 256), matrix(kind, 8, 256, 3, fill=fill))
            yield _matmul(activations(3, 1, 256), matrix(kind, 8, 256, 3, fill=fill))
    x = normal(4, 9, 256)
    x[5, 255] = np.nan
    yield _matmul(x, matrix(kind, 9, 256, 4))
    w, ids = matrix(kind, 20, 3 * max(block, 3), 5), np.array([19, 0, 7], np.int32)
    yield Case("embed", [*_ints(w), 3], [ids, w.data], [oracle.embed(w, ids)])


def adapters() -> Iterator[Case]:
    for rows, cols, n, ranks in ((1, 7, 2, [1]), (67, 96, 9, [3, 8]), (130, 67, 61, [16, 1, 33])):
        x, scales = normal(70, n, cols), scales_for(72, n, len(ranks))
        w = model_matrix(GGMLQuantizationType.F32, rows, cols, 71)
        pairs = [low_rank(73 + 2 * i, rank, rows, cols) for i, rank in enumerate(ranks)]
        want = oracle.adapted(oracle.matmul(x, w), x, [(pair, scales[:, i]) for i, pair in enumerate(pairs)])
        arrays = [array for pair in pairs for array in pair]
        yield Case("matmul", [*_ints(w), n, *ranks], [x, w.data, scales, *arrays], [want])


def quantizations() -> Iterator[Case]:
    for block in (32, 256):
        x = activations(6, 60, 3 * block)
        yield Case("quantize", [60, 3 * block, block], [x], list(oracle.quantize_activations(x, block)))
        for at in (0, block - 1, 2 * block):
            bad = x.copy()
            bad[41, at], bad[50, 0] = np.inf, np.nan
            yield Case("quantize", [60, 3 * block, block], [bad], 41)


def elementwise() -> Iterator[Case]:
    for n in (1, 3, 4, 5, 8, 15, 64, 1001):
        x, weight = normal(n, 5, n), normal(n + 1, n)
        x[3] *= np.float32(1e-30)
        yield Case("rms_norm", [5, n], [x, weight, _float(1e-5)], [oracle.rms_norm(x, weight, 1e-5)])
    edges = np.array([88, -87.3, 0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 3e38, -3e38], np.float32)
    halves = (np.arange(-120, 127, dtype=np.float32) + np.float32(0.5)) / np.float32(
        np.log2(np.e)
    )  # of the rounding to n
    around = np.concatenate([np.nextafter(edges[:2], np.float32(s)) for s in (1e9, -1e9)])
    for n in (1, 2, 3, 4, 7, 40001):
        x = (normal(n, n) * np.float32(30)).astype(np.float32)
        hard = np.concatenate([edges, around, halves])[:n]
        x[: len(hard)] = hard
        yield Case("exp", [n], [x], [oracle.exp(x)])
        gate, up = normal(7, n) * np.float32(20), wide(8, n)
        yield Case("silu_mul", [n], [gate, up], _want(lambda gate=gate, up=up: oracle.silu_mul(gate[None], up[None])))  # type: ignore[misc]


def ropes() -> Iterator[Case]:
    for n_pairs in (1, 3, 4, 13, 64):
        frequencies = generator(9).random(n_pairs) ** 8
        positions = np.array([0, 1, 77, 4095, 1 << 20], np.int32)
        for factor in (1.0, 0.25):
            cosines, sines = oracle.rope_table(frequencies, positions, factor)
            yield Case("rope_table", [5, n_pairs], [frequencies, positions, _float(factor)], [cosines, sines])
        x = normal(10, 5, 3, 2 * n_pairs)
        yield Case("rope", [5, 3, 2 * n_pairs], [x, cosines, sines], [oracle.rope(x, cosines, sines)])


def routes() -> Iterator[Case]:
    for n_experts, used in ((1, 1), (5, 3), (8, 2)):
        logits = np.round(normal(11, 50, n_experts) * np.float32(2))  # with ties
        for dropped, min_p in ((0, 0.0), (used - 1, 0.0), (0, 0.25)):
            expected = oracle.route(logits, used, dropped, min_p)
            yield Case("route", [50, n_experts, used, dropped], [logits, _float(min_p)], list(expected))


Text = tuple[int, int]
"""Positions of a text, and the first of them that is queried."""

TEXTS: list[tuple[list[Text], int, int, int, int]] = [  # texts, key/value heads, query heads of each, head_dim, window
    ([(1, 0)], 1, 1, 8, 0),
    ([(70, 50)], 2, 4, 32, 0),
    ([(130, 121)], 1, 3, 40, 7),
    ([(200, 199)], 2, 4, 16, 70),
    ([(66, 63)], 1, 6, 136, 0),
    ([(300, 299), (20, 0), (65, 63), (1, 0), (140, 100)], 2, 2, 16, 0),
]


def _stored(arrays: Sequence[NDArray[Any]], pages: Sequence[I32], n_pages: int, head_dim: int) -> NDArray[Any]:
    """Pages [n_pages, 64, heads, ...], every other byte 0xff, that hold what each text [n, heads,
    ...] stores.
    """
    cache = stored_bytes((n_pages, PAGE, arrays[0].shape[1], head_dim), arrays[0].dtype)
    for array, own in zip(arrays, pages, strict=True):
        for position, values in enumerate(array):
            cache[own[position // PAGE], position % PAGE] = values
    return cache


def attentions() -> Iterator[Case]:
    kinds = GGMLQuantizationType
    for kind, dtype in (
        (kinds.F32, np.dtype(np.float32)),
        (kinds.F16, np.dtype(np.float16)),
        (kinds.Q8_0, oracle.Q8_0),
    ):
        for texts, n_kv_heads, group, dim, window in TEXTS:
            head_dim = -(-dim // 32) * 32 if kind == kinds.Q8_0 else dim
            n_heads = n_kv_heads * group
            counts = [-(-n // PAGE) for n, _ in texts]
            n_pages = sum(counts) + 1
            pages = np.split(generator(12).permutation(n_pages)[:-1].astype(np.int32), np.cumsum(counts)[:-1])
            k = [normal(13 + i, n, n_kv_heads, head_dim) for i, (n, _) in enumerate(texts)]
            v = [normal(20 + i, n, n_kv_heads, head_dim) for i, (n, _) in enumerate(texts)]
            q = [normal(30 + i, n - first, n_heads, head_dim) for i, (n, first) in enumerate(texts)]
            stored_k, stored_v = ([oracle.round_to_cache(a, dtype) for a in arrays] for arrays in (k, v))
            pages_k, pages_v = (_stored(stored, pages, n_pages, head_dim) for stored in (stored_k, stored_v))
            y = [oracle.attention(q[i], stored_k[i], stored_v[i], first, window) for i, (_, first) in enumerate(texts)]
            written = [x for (n, _), count in zip(texts, counts, strict=True) for x in (n, 0, count)]
            queried = [x for (n, first), count in zip(texts, counts, strict=True) for x in (n - first, first, count)]
            yield Case(
                "attention",
                [
                    int(kind),
                    n_kv_heads,
                    head_dim,
                    n_pages,
                    n_heads,
                    window,
                    sum(map(len, q)),
                    len(texts),
                    *written,
                    *queried,
                ],
                [np.concatenate(k), np.concatenate(v), np.concatenate(q), np.concatenate(pages)],
                [key_pages(pages_k), value_pages(pages_v), np.concatenate(y)],
            )


def layers() -> Iterator[Case]:
    shapes = [(1, 0, np.float16), (7, 0, np.float32), (19, 5, np.float16)]
    for i, (n, window, dtype) in enumerate(shapes):
        config = ModelConfig("", 1, 64, 256, 1, 256, 8, 2, 32, 4, 2, 1e-5, 1e4, window)
        made = [0]

        def some(rows: int, cols: int, i: int = i, made: list[int] = made) -> Matrix:
            made[0] += 1
            return model_matrix(TYPES[(5 * i + made[0]) % len(TYPES)], rows, cols, made[0])

        router = some(4, 256)
        experts = [(some(256, 256), some(256, 256), some(256, 256)) for _ in range(4)]
        projections = some(256, 256), some(64, 256), some(64, 256), some(256, 256)
        w = LayerWeights(normal(40, 256), normal(41, 256), *projections, router, experts)
        x = normal(50, n, 256)
        cosines, sines = oracle.rope_table(config.rope_frequencies(), np.arange(n, dtype=np.int32))
        matrices = [w.q, w.k, w.v, w.output, router, *(m for expert in w.experts for m in expert)]
        kind = GGMLQuantizationType.F16 if dtype == np.float16 else GGMLQuantizationType.F32
        yield Case(
            "layer",
            [int(kind), 2, 32, 1, 8, window, 4, 2, n, 1, n, 0, 1, *(value for m in matrices for value in _ints(m))],
            [
                x,
                w.attn_norm,
                w.ffn_norm,
                _float(1e-5),
                cosines,
                sines,
                np.zeros(1, np.int32),
                *(m.data for m in matrices),
            ],
            [oracle.layer(x, w, config, cosines, sines, dtype)],
        )


GROUPS: dict[str, Callable[[], Iterator[Case]]] = {
    **{kind.name.lower(): lambda kind=kind: matmuls(kind) for kind in TYPES},  # type: ignore[misc]
    **{
        "quantization": quantizations,
        "elementwise": elementwise,
        "rope": ropes,
        "route": routes,
        "attention": attentions,
        "layer": layers,
        "adapters": adapters,
    },
}
