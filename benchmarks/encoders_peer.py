"""The weight encoders beside llama.cpp's on the same weights: root mean square errors as a ratio,
and times.

    python benchmarks/encoders_peer.py LIBGGML_BASE [CHECKPOINT ...] [--rows 256] [--threads 2] [--isa ISA]

LIBGGML_BASE is llama.cpp's libggml-base.so (llama-cpp-python ships it), whose ggml_quantize_chunk
is called. Types that it refuses without an importance matrix get one of ones. Data: Gaussian and Laplacian
weights, and every CHECKPOINT's matrices (safetensors), each
without and with an importance matrix (gamma-distributed), with which errors are the
importance-weighted ones. A ratio below 1 means that ours is smaller. Times are per weight, on the
Gaussian data, the peer's rows divided evenly among the threads.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from pymixtral import ops
from pymixtral.arrays import F32, U8
from pymixtral.files.types import ENCODED_TYPES, FLOAT_TYPES, Matrix, show_type
from pymixtral.ops.native import lib
from pymixtral.quantize.sources.safetensors import read_safetensors

NAMES = [show_type(kind) for kind in ENCODED_TYPES if kind not in FLOAT_TYPES]
COLS = 2048


class Peer:
    def __init__(self, path: Path, n_threads: int) -> None:
        library = ctypes.CDLL(str(path))
        self._init, self._wants_importance = library.ggml_quantize_init, library.ggml_quantize_requires_imatrix
        self._wants_importance.restype = ctypes.c_bool
        self._quantize = library.ggml_quantize_chunk
        self._quantize.restype = ctypes.c_size_t
        self._quantize.argtypes = [
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            *[ctypes.c_int64] * 3,
            ctypes.c_void_p,
        ]
        self._pool = ThreadPoolExecutor(n_threads)
        self._n_threads = n_threads

    def encode(self, kind: GGMLQuantizationType, x: F32, importance: F32 | None) -> U8:
        row_bytes = lib.pmx_row_bytes(kind, x.shape[1])
        y = np.empty((len(x), row_bytes), np.uint8)
        self._init(int(kind))  # tables of some types, made once
        if importance is None and self._wants_importance(int(kind)):
            importance = np.ones(x.shape[1], np.float32)
        bounds = np.linspace(0, len(x), self._n_threads + 1, dtype=int)

        def part(first: int, last: int) -> None:
            weights = None if importance is None else importance.ctypes.data
            self._quantize(kind, x.ctypes.data, y.ctypes.data, first * x.shape[1], last - first, x.shape[1], weights)

        list(self._pool.map(part, bounds[:-1].tolist(), bounds[1:].tolist()))
        return y


def samples(checkpoints: list[Path], rows: int) -> Iterator[tuple[str, F32]]:
    rng = np.random.Generator(np.random.PCG64(1))
    yield "gaussian", rng.standard_normal((rows, COLS), np.float32)
    yield "laplacian", rng.laplace(size=(rows, COLS)).astype(np.float32)
    for path in checkpoints:
        for name, tensor in read_safetensors(path).items():
            if (
                len(tensor.shape) == 2
                and tensor.shape[1] % 256 == 0
                and "gate.weight" not in name.replace("gate_proj", "")
            ):
                yield path.parent.name, tensor.floats(slice(0, rows))


def best_time(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="*")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isa")
    parser.add_argument("--types", nargs="+", default=NAMES)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    peer = Peer(arguments.library, arguments.threads)
    data: dict[str, list[F32]] = {}
    for group, x in samples(arguments.checkpoints, arguments.rows):
        data.setdefault(group, []).append(x)
    heads = [f"{group}{suffix}" for group in data for suffix in ("", " imatrix")]
    with ops.Context(arguments.threads, arguments.isa) as context:
        print(
            f"{context.isa}, {context.n_threads} threads; errors: ours / peer's (the worst matrix); "
            "times: ns per weight, peer / ours"
        )
        print("| type | " + " | ".join(heads) + " | peer | ours | times faster | with imatrix |")
        print("| --- |" + " --- |" * (len(heads) + 4))
        for name in arguments.types:
            kind = GGMLQuantizationType[name.upper()]
            print(f"| {name} | " + " | ".join(row(context, peer, kind, data, arguments.repeats)) + " |", flush=True)


def row(
    context: ops.Context, peer: Peer, kind: GGMLQuantizationType, data: dict[str, list[F32]], repeats: int
) -> list[str]:
    cells = []
    for matrices in data.values():
        for seed in (None, 2):
            ratios = []
            squares = np.zeros(2)
            for x in matrices:
                importance = None if seed is None else importance_of(x, seed)
                errors = [
                    error(context, kind, x, encoded, importance) for encoded in both(context, peer, kind, x, importance)
                ]
                squares += np.square(errors) * x.size
                ratios.append(errors[0] / errors[1])
            cells.append(
                f"{np.sqrt(squares[0] / squares[1]):.4f}" + (f" ({max(ratios):.4f})" if len(ratios) > 1 else "")
            )
    x = next(iter(data.values()))[0]
    times = []
    for importance in (None, importance_of(x, 2)):
        ours = best_time(lambda i=importance: ops.encode(context, kind, x, i), repeats)  # type: ignore[misc]
        theirs = best_time(lambda i=importance: peer.encode(kind, x, i), repeats)  # type: ignore[misc]
        times.append((theirs / x.size * 1e9, ours / x.size * 1e9))
    (theirs, ours), weighted = times
    return [*cells, f"{theirs:.2f}", f"{ours:.2f}", f"{theirs / ours:.1f}", f"{weighted[0] / weighted[1]:.1f}"]


def importance_of(x: F32, seed: int) -> F32:
    return np.random.Generator(np.random.PCG64(seed)).gamma(0.7, size=x.shape[1]).astype(np.float32) + np.float32(1e-3)


def both(
    context: ops.Context, peer: Peer, kind: GGMLQuantizationType, x: F32, importance: F32 | None
) -> tuple[U8, ...]:
    return ops.encode(context, kind, x, importance), peer.encode(kind, x, importance)


def error(context: ops.Context, kind: GGMLQuantizationType, x: F32, encoded: U8, importance: F32 | None) -> float:
    decoded = ops.embed(context, Matrix(kind, encoded), np.arange(len(x), dtype=np.int32))
    weights = 1.0 if importance is None else importance.astype(np.float64)
    return float(np.sqrt((weights * np.square(decoded.astype(np.float64) - x)).mean()))


if __name__ == "__main__":
    main()
