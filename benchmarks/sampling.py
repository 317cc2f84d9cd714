"""The time to draw a token for each row of a step: the C call against the same steps in NumPy.

    python benchmarks/sampling.py --threads 2

NumPy's side is the oracle with the exp of the C library, one row after the other. Logits are
random: normal ones, of which 200 are raised by up to 14 in each row, as a model's best are. Both
sides take turns, and draw the same tokens; figures are the fastest of the rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import numpy as np

from pymixtral import ops
from pymixtral.arrays import F32
from pymixtral.reference.sampling import Sampler as Oracle
from pymixtral.sampling.parameters import SamplingParameters
from pymixtral.sampling.sampler import Sampler, draw

N_VOCAB = 32000
TEXT = np.arange(500, dtype=np.int32)
SETTINGS: dict[str, dict[str, Any]] = {
    "temperature 0": {"temperature": 0},
    "defaults": {},
    "temperature 1, no filter": {"temperature": 1, "top_k": 0, "top_p": 1},
    "top_p 0.95 alone": {"top_k": 0},
    "typical_p 0.95 alone": {"top_k": 0, "top_p": 1, "typical_p": 0.95},
    "defaults and penalties": {"repetition_penalty": 1.1, "presence_penalty": 0.5},
}


def model_like_logits(n_rows: int, seed: int) -> F32:
    numbers = np.random.default_rng(seed)
    logits = (numbers.standard_normal((n_rows, N_VOCAB)) * 2.2).astype(np.float32)
    for row in logits:
        row[numbers.choice(N_VOCAB, 200, replace=False)] += np.linspace(14, 0, 200, dtype=np.float32)
    return logits


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


@click.command()
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=20, show_default=True)
def main(threads: int, rounds: int) -> None:
    print(f"{'':26}{'rows':>5}{'C, us':>10}{'NumPy, us':>12}{'ratio':>8}")
    with ops.Context(threads) as ctx:
        for name, options in SETTINGS.items():
            for n_rows in (1, 16, 32):
                logits = model_like_logits(n_rows, n_rows)
                parameters = [SamplingParameters(seed=i, **options) for i in range(n_rows)]
                samplers = [Sampler(p, n_vocab=N_VOCAB) for p in parameters]
                oracles = [Oracle(p, exp=partial(ops.exp, ctx)) for p in parameters]
                times: list[tuple[float, float]] = []
                for _ in range(rounds):
                    fast, found = timed(lambda: draw(ctx, samplers, logits, [TEXT] * n_rows))  # noqa: B023
                    slow, expected = timed(
                        lambda: [oracle.sample(row, TEXT) for oracle, row in zip(oracles, logits, strict=True)]  # noqa: B023
                    )
                    assert found == expected
                    times.append((fast, slow))
                fast, slow = (min(side) * 1e6 for side in zip(*times, strict=True))
                print(f"{name:26}{n_rows:>5}{fast:>10.0f}{slow:>12.0f}{slow / fast:>8.1f}")


if __name__ == "__main__":
    main()
