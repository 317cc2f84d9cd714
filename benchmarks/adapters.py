"""What low-rank adapters cost: passes in which no adapter counts, and in which each row uses one.

    python benchmarks/adapters.py
    python benchmarks/adapters.py -m mixtral-q4_k_m.gguf --rank 16 --rounds 5

The adapters are random, of all matrices of attention, the routers and all experts. Passes are those
of a prompt, of one text that is written, and of several texts that are written together. The kinds
are

    unbound   no adapter was ever used: another model of the same weights
    none      no text uses one
    one       all texts use the same
    1 of N    one text does, and the others none
    N         each its own

Their order changes from round to round. Figures are the fastest of the rounds, and the median over the
rounds of the ratio to the pass without adapters ("none") of the same round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
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


Using = Sequence[Adapter | None]


class Texts:
    """Texts that are written together, each of some tokens already."""

    def __init__(self, model: Model, n: int, n_tokens: int, n_more: int) -> None:
        self.model, self.n = model, n
        self.cache = model.new_cache(n * (n_tokens + n_more + 64))
        self.sequences = [self.cache.new_sequence() for _ in range(n)]
        self.ids = np.random.default_rng(1).integers(3, model.config.n_vocab, (n, n_tokens)).astype(np.int32)

    def prompt(self, adapters: Using) -> float:
        """Seconds of a pass over all tokens; `adapters`: of the texts by turns."""
        for sequence in self.sequences:
            sequence.truncate(0)
        return self._pass(self.ids, adapters)

    def write(self, adapters: Using, n: int) -> float:
        """Seconds of a pass that writes a token of each text, the mean of n."""
        seconds = [self._pass(self.ids[:, i : i + 1], adapters) for i in range(n)]
        for sequence in self.sequences:
            sequence.truncate(sequence.length - n)
        return float(np.mean(seconds))

    def _pass(self, ids: np.ndarray, adapters: Using) -> float:
        runs = [(sequence, ids.shape[1]) for sequence in self.sequences]
        used = [adapters[i % len(adapters)] for i in range(self.n)]
        scales = [None if adapter is None else {adapter: 1.0} for adapter in used]
        begin = time.perf_counter()
        hidden = self.model.forward(ids.ravel(), runs, self.cache, rows=slice(-1, None), adapters=scales)
        self.model.logits(hidden)
        return time.perf_counter() - begin


def kinds(adapters: list[Adapter]) -> dict[str, Using]:
    """Of passes: which adapters the texts use."""
    found: dict[str, Using] = {"none": [None], "one": adapters[:1]}
    if (n := len(adapters)) > 1:
        found |= {f"1 of {n}": [adapters[0], *[None] * (n - 1)], str(n): adapters}
    return found


def compare(what: str, ways: dict[str, Callable[[], float]], rounds: int) -> None:
    """Measure passes of some kinds in turns, and print them."""
    names = list(ways)
    seconds = np.empty((rounds, len(names)))
    for i in range(rounds):
        for j in np.roll(range(len(names)), i):
            seconds[i, j] = ways[names[j]]()
    none = seconds[:, names.index("none")]
    for name, some in zip(names, seconds.T, strict=True):
        print(
            f"{what:>18}, {name:>7}: {1e3 * some.min():9.2f} ms, {some.min() / none.min() - 1:+7.2%}; "
            f"median {np.median(some / none - 1):+7.2%}",
            flush=True,
        )


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
        weights = load_weights(file, config)
        model, bare = (Model(weights, config, n_threads=threads) for _ in range(2))
        some = tuple(stems.split(","))
        adapters = [random_adapter(config, rank, some, seed) for seed in range(n_adapters)]
        print(f"{config.name}, {model.context.isa}, rank {rank}, {adapters[0].nbytes / 2**20:.0f} MiB each")
        for n, some_adapters in ((1, adapters[:1]), (n_adapters, adapters)):
            texts, free = (Texts(one, n, prompt_tokens // n, max_tokens) for one in (model, bare))
            free.prompt([None])
            texts.prompt(some_adapters)  # reads the weights, and binds the adapters
            what = "one text" if n == 1 else f"{n} texts"
            ways = kinds(some_adapters)
            compare(
                f"prompt of {what}",
                {
                    "unbound": partial(free.prompt, [None]),
                    **{name: partial(texts.prompt, using) for name, using in ways.items()},
                },
                rounds,
            )
            compare(
                f"token of {what}",
                {
                    "unbound": partial(free.write, [None], max_tokens),
                    **{name: partial(texts.write, using, max_tokens) for name, using in ways.items()},
                },
                rounds,
            )
        bare.close()
        model.close()


if __name__ == "__main__":
    main()
