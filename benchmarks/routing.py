"""What a trace of the experts costs: texts with and without one, in turns.

    python benchmarks/routing.py
    python benchmarks/routing.py -m mixtral-q4_k_m.gguf --rounds 5

Each round computes a prompt and writes a text without a trace, with one, and with the routers'
probabilities, in an order that changes from round to round. Figures are the fastest of the rounds,
and the median over the rounds of the ratio to the text without a trace of the same round. The time
of the CPUs, of prompt and text together, says more than the clock where other programs run.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from pymixtral import Mixtral

MODES: dict[str, Any] = {"none": False, "routing": True, "full": "full"}


@click.command()
@click.option("-m", "--model", type=click.Path(exists=True, path_type=Path), help="[default: the demo model]")
@click.option("--prompt-tokens", default=512, show_default=True)
@click.option("-n", "--max-tokens", default=256, show_default=True)
@click.option("--rounds", default=20, show_default=True)
@click.option("-t", "--threads", type=int)
def main(model: Path | None, prompt_tokens: int, max_tokens: int, rounds: int, threads: int | None) -> None:
    """Measure the cost of traces."""
    names = list(MODES)
    seconds = {name: np.empty((rounds, 3)) for name in names}
    with Mixtral(model, n_ctx=prompt_tokens + max_tokens, n_threads=threads) as mixtral:
        ids = np.random.default_rng(1).integers(3, mixtral.config.n_vocab, prompt_tokens).tolist()
        mixtral.generate(ids, max_tokens=max_tokens, ignore_eos=True)  # reads the weights
        for i in range(rounds):
            for name in np.roll(names, i).tolist():
                mixtral.forget()
                begin = time.process_time()
                completion = mixtral.generate(
                    ids, max_tokens=max_tokens, temperature=0, ignore_eos=True, routing=MODES[name]
                )
                cpu, stats = time.process_time() - begin, completion.stats
                seconds[name][i] = (
                    stats.prompt_seconds / prompt_tokens,
                    stats.generation_seconds / stats.passes,
                    cpu / (prompt_tokens + max_tokens),
                )
        print(f"{mixtral!r}, {rounds} rounds")
    for part, of in enumerate(("a token of the prompt", "a token written", "CPU time of a token")):
        plain = seconds["none"][:, part]
        for name in names:
            times = seconds[name][:, part]
            ratio = np.median(times / plain)
            print(
                f"{of:>22}, {name:>8}: {1e6 * times.min():10.1f} us, {times.min() / plain.min() - 1:+7.2%}; "
                f"median {ratio - 1:+7.2%}"
            )


if __name__ == "__main__":
    main()
