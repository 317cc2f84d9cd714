"""Each kernel against the machine's limits: GMAC/s of matrix products with many tokens, GB/s of
weights read with one token.

    python benchmarks/kernels.py --json kernels.json
    python benchmarks/kernels.py --plot kernels.json kernels.png      # needs matplotlib, the [plot] extra

Matrices hold random bytes with finite scales. Products of one token go through enough matrices to
come from memory; products of 512 tokens use one. Types take turns within a round, limits are
measured in each round, and the figures are medians over the rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from pymixtral import ops
from pymixtral.files.types import FLOAT_TYPES, WEIGHT_TYPES, Matrix, block_bytes, row_bytes, show_type
from pymixtral.inspection import probe

TYPES = [show_type(kind) for kind in WEIGHT_TYPES]
ROWS = COLS = 4096
TOKENS = 512
SMALL = (2, 4, 8, 16)
MEMORY_BYTES = 1 << 28


def random_matrix(kind: GGMLQuantizationType, rng: np.random.Generator) -> Matrix:
    """ROWS x COLS of random finite weights of any type."""
    if kind in FLOAT_TYPES:
        floats = rng.standard_normal((ROWS, COLS), np.float32)
        with ops.Context() as ctx:
            return Matrix(kind, ops.encode(ctx, kind, floats))
    data = rng.integers(
        0, 60, (ROWS, row_bytes(kind, COLS)), np.uint8
    )  # bytes below 60: any f16 made of two of them is finite
    if kind == GGMLQuantizationType.MXFP4:
        data[:, :: block_bytes(kind)] += 80  # products with smaller scales are subnormal, which takes longer
    return Matrix(kind, data)


def measure(threads: int, rounds: int, types: list[str]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((TOKENS, COLS), np.float32)
    matrices = {}
    for name in types:
        first = random_matrix(GGMLQuantizationType[name.upper()], rng)
        copies = max(2, MEMORY_BYTES // first.data.nbytes)
        matrices[name] = [first, *(Matrix(first.type, first.data.copy()) for _ in range(copies - 1))]
        assert np.isfinite(dequantize(first.data[:1], first.type)).all()
    isas = [isa for isa in ops.available_isas() if isa != "scalar"]
    contexts = {isa: ops.Context(threads, isa) for isa in isas}
    samples: dict[tuple[str, str, str], list[float]] = {}
    limits: dict[str, list[float]] = {"read GB/s": []} | {f"int8 GMAC/s {isa}": [] for isa in isas}
    for _ in range(rounds):
        limits["read GB/s"].append(probe.read_bandwidth([threads])[threads])
        for isa in isas:
            limits[f"int8 GMAC/s {isa}"].append(probe.int8_rate(threads, isa).gmacs)
        for name in types:
            for isa in isas:
                for what, value in run(contexts[isa], matrices[name], x).items():
                    samples.setdefault((name, isa, what), []).append(value)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for (name, isa, what), values in samples.items():
        figures.setdefault(name, {}).setdefault(isa, {})[what] = round(statistics.median(values), 1)
    return {
        "threads": threads,
        "rounds": rounds,
        "load": os.getloadavg()[0],
        "limits": {name: round(statistics.median(values), 1) for name, values in limits.items()},
        "figures": figures,
    }


def run(ctx: ops.Context, matrices: list[Matrix], x: np.ndarray) -> dict[str, float]:
    """GMAC/s of TOKENS tokens; GB/s of weights read with 1 and a few tokens, through all matrices."""
    begin = time.perf_counter()
    ops.matmul(ctx, x, matrices[0])
    result = {f"GMAC/s, {TOKENS} tokens": TOKENS * ROWS * COLS / (time.perf_counter() - begin) / 1e9}
    for n in (1, *SMALL):
        begin = time.perf_counter()
        for matrix in matrices:
            ops.matmul(ctx, x[:n], matrix)
        seconds = time.perf_counter() - begin
        result[f"GB/s, {n} token{'s' if n > 1 else ''}"] = (
            sum(matrix.data.nbytes for matrix in matrices) / seconds / 1e9
        )
    return result


def show(result: dict[str, Any]) -> None:
    click.echo(f"{result['threads']} threads, median of {result['rounds']} rounds, load {result['load']:.1f}")
    for name, value in result["limits"].items():
        click.echo(f"  limit: {value:.1f} {name}")
    columns = [f"GMAC/s, {TOKENS} tokens", "GB/s, 1 token", *(f"GB/s, {n} tokens" for n in SMALL)]
    click.echo(f"  {'type':8}{'instructions':14}" + "".join(f"{column:>20}" for column in columns))
    for name, by_isa in result["figures"].items():
        for isa, values in by_isa.items():
            click.echo(f"  {name:8}{isa:14}" + "".join(f"{values[column]:>20.1f}" for column in columns))


def plot(result: dict[str, Any], path: Path) -> None:
    """Bars of the fastest instruction set: prompt and one token, with the machine's limits as
    lines.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    isa = list(next(iter(result["figures"].values())))[-1]
    names = list(result["figures"])
    panels = [
        (
            f"GMAC/s, {TOKENS} tokens",
            result["limits"][f"int8 GMAC/s {isa}"],
            f"{TOKENS} tokens: 10⁹ multiply-adds a second",
            "int8, in cache:",
        ),
        ("GB/s, 1 token", result["limits"]["read GB/s"], "1 token: GB/s of weights read", "memory read:"),
    ]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), sharey=True)
    for axis, (what, limit, title, label) in zip(axes, panels, strict=True):
        axis.barh(names, [result["figures"][name][isa][what] for name in names], color="#3b6ea5")
        axis.axvline(limit, color="#c0392b", linestyle="--", label=f"{label} {limit:.0f}")
        axis.set_title(title, fontsize=10)
        axis.legend(loc="lower right", fontsize=8)
        axis.invert_yaxis() if axis is axes[0] else None
    figure.suptitle(f"{result['threads']} threads, {isa}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


@click.command()
@click.option("-t", "--threads", type=int, default=None, help="[default: one per core]")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--types", default=" ".join(TYPES), show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures.")
@click.option(
    "--plot", "plots", nargs=2, type=click.Path(path_type=Path), help="Draw figures written before: JSON PNG."
)
def main(threads: int | None, rounds: int, types: str, json_path: Path | None, plots: tuple[Path, Path] | None) -> None:
    """Measure every kernel, or draw what was measured."""
    if plots:
        plot(json.loads(plots[0].read_text()), plots[1])
        return
    with ops.Context(threads) as ctx:
        threads = ctx.n_threads
    result = measure(threads, rounds, types.split())
    show(result)
    if json_path:
        json_path.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
