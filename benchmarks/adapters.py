"""What low-rank adapters cost: passes in which no adapter counts, and in which each row uses one.

    python benchmarks/adapters.py
    python benchmarks/adapters.py -m mixtral-q4_k_m.gguf --rank 16 --rounds 5

The adapters are random, of all matrices of attention, the routers and all experts. Passes are those
of a prompt, of one text that is written, and of several texts that are written together; in these all
use the same adapter, or each its own. The order of the kinds changes from round to round. Figures are
the fastest of the rounds, and the median over the rounds of the ratio to the pass without adapters of
the same round.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from pymixtral import ModelConfig
from pymixtral.demo import demo_path
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.names import FFN_STEMS, TensorName
from pymixtral.model.adapter import Adapter, LowRank, adapted_shape
from pymixtral.model.forward import Model
from pymixtral.model.weights import load_weights

STEMS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_inp", *FFN_STEMS)


def random_adapter(config: ModelConfig, rank: int, stems: tuple[str, ...], seed: int) -> Adapter:
    """An adapter of all matrices of some stems. Numbers are small, so that texts stay sound."""
    g = np.random.default_rng(seed)
    pairs = {}
    for layer in range(config.n_layers):
        for stem in stems:
            for expert in (None, *range(config.n_experts)):
                name = TensorName(stem, layer, expert=expert)
                if shape := adapted_shape(name, config):
                    a, b = (g.standard_normal((rank, n), np.float32) / np.float32(40 * n**0.5) for n in shape[::-1])
                    pairs[name] = LowRank(a, b)
    return Adapter(pairs, f"random {seed}")


class Texts:
    """Texts that are written together, each of some tokens already."""

    def __init__(self, model: Model, n: int, n_tokens: int, n_more: int) -> None:
        self.model, self.n = model, n
        self.cache = model.new_cache(n * (n_tokens + n_more + 64))
        self.sequences = [self.cache.new_sequence() for _ in range(n)]
        self.ids = np.random.default_rng(1).integers(3, model.config.n_vocab, (n, n_tokens)).astype(np.int32)

    def prompt(self, adapters: list[Adapter]) -> float:
        """Seconds of a pass over all tokens; `adapters`: of the texts by turns, or none."""
        for sequence in self.sequences:
            sequence.truncate(0)
        return self._pass(self.ids, adapters)

    def write(self, adapters: list[Adapter], n: int) -> float:
        """Seconds of a pass that writes a token of each text, the mean of n."""
        seconds = [self._pass(self.ids[:, i : i + 1], adapters) for i in range(n)]
        for sequence in self.sequences:
            sequence.truncate(sequence.length - n)
        return float(np.mean(seconds))

    def _pass(self, ids: np.ndarray, adapters: list[Adapter]) -> float:
        runs = [(sequence, ids.shape[1]) for sequence in self.sequences]
        scales = [{adapters[i % len(adapters)]: 1.0} for i in range(self.n)] if adapters else None
        begin = time.perf_counter()
        hidden = self.model.forward(ids.ravel(), runs, self.cache, rows=slice(-1, None), adapters=scales)
        self.model.logits(hidden)
        return time.perf_counter() - begin


def kinds(adapters: list[Adapter]) -> Iterator[tuple[str, list[Adapter]]]:
    """Of passes: which adapters the texts use."""
    yield "none", []
    yield "one", adapters[:1]
    if len(adapters) > 1:
        yield f"{len(adapters)}", adapters


@click.command()
@click.option("-m", "--model", "path", type=click.Path(exists=True, path_type=Path), help="[default: the demo model]")
@click.option("--rank", default=16, show_default=True)
@click.option("--stems", default=",".join(STEMS), show_default=True, help="Matrices that the adapters have.")
@click.option("--adapters", "n_adapters", default=4, show_default=True)
@click.option("--prompt-tokens", default=512, show_default=True)
@click.option("-n", "--max-tokens", default=8, show_default=True, help="Passes of a round that write.")
@click.option("--rounds", default=5, show_default=True)
@click.option("-t", "--threads", type=int)
def main(
    path: Path | None,
    rank: int,
    stems: str,
    n_adapters: int,
    prompt_tokens: int,
    max_tokens: int,
    rounds: int,
    threads: int | None,
) -> None:
    """Measure the cost of adapters."""
    with GGUFFile(path or demo_path()) as file:
        config = ModelConfig.from_gguf(file)
        model = Model(load_weights(file, config), config, n_threads=threads)
        some = tuple(stems.split(","))
        adapters = [random_adapter(config, rank, some, seed) for seed in range(n_adapters)]
        print(f"{config.name}, {model.context.isa}, rank {rank}, {adapters[0].nbytes / 2**20:.0f} MiB each")
        one = Texts(model, 1, prompt_tokens, max_tokens)
        together = Texts(model, n_adapters, prompt_tokens // n_adapters, max_tokens)
        measured = {
            f"a prompt of {prompt_tokens}": (one.prompt, list(kinds(adapters[:1]))),
            "a token of one text": (lambda a: one.write(a, max_tokens), list(kinds(adapters[:1]))),
            f"{n_adapters} prompts of {prompt_tokens // n_adapters}": (together.prompt, list(kinds(adapters))),
            f"a token of {n_adapters} texts": (lambda a: together.write(a, max_tokens), list(kinds(adapters))),
        }
        for texts in (one, together):
            texts.prompt(adapters)  # reads the weights, and binds the adapters
        for what, (measure, ways) in measured.items():
            seconds = np.empty((rounds, len(ways)))
            for i in range(rounds):
                for j in np.roll(range(len(ways)), i):
                    seconds[i, j] = measure(ways[j][1])
            for j, (name, _) in enumerate(ways):
                ratios = seconds[:, j] / seconds[:, 0] - 1
                fastest, least = seconds[:, j].min(), seconds[:, 0].min()
                print(
                    f"{what:>22}, adapters {name:>4}: {1e3 * fastest:9.2f} ms, {fastest / least - 1:+7.2%}; "
                    f"median {np.median(ratios):+7.2%}"
                )
        model.close()


if __name__ == "__main__":
    main()
