"""What a cache of experts would find in memory: policies replayed on the routing of a real model.

    python benchmarks/expert_cache.py -m frankenmoe-q8_0.gguf tests/data/texts/*

Every token passes the layers in order, and asks for the experts that their routers chose. The cache
holds a part of all experts of all layers, whole. The table shows how often an expert is found:

    LRU          the expert goes that was used longest ago
    LFU          the one used least often so far, of equals that used longest ago
    least stale  one that this token's pass has not used goes before one that it has; first those of
                 layers that the pass has left, then those of the layers farthest ahead
    pinned       those used most often in the first half of the text stay, the others are never kept
    best         the expert goes that is used again last: what no cache can exceed
    lookahead    LRU, where each layer's experts are asked for one layer before, as the next router
                 would choose by the present hidden state
    reads        of lookahead, the wrong ones too, for each read of LRU

The last table is of a routing that is drawn anew for each token, all experts alike. That of Mixtral 8x7B
is near it.

Hits are counted in the second half of the text; the first fills the caches.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from pymixtral import Mixtral, ModelConfig, ops
from pymixtral.files.gguf import GGUFFile
from pymixtral.model.forward import Model
from pymixtral.model.weights import load_weights

SIZES = (0.25, 0.5, 0.65, 0.75, 0.9)

Item = tuple[int, int]
"""A layer and an expert."""

Routing = NDArray[np.int32]
"""[n_tokens, n_layers, n_used]"""


def trace(path: Path, ids: NDArray[np.int32]) -> tuple[Routing, Routing, int]:
    """The experts of each token and layer; those that the router of the layer would choose by the
    hidden state at the layer before; and the experts of a layer.
    """
    with GGUFFile(path) as file:
        config = ModelConfig.from_gguf(file)
        model = Model(load_weights(file, config), config)
        context, cache, layers = model.context, model.new_cache(len(ids)), model.weights.layers
        sequence = cache.new_sequence()
        sequence.reserve(len(ids))
        batch = ops.Batch(model.layers[0], config.rope_frequencies(), config.rope_factor())
        batch.begin(context, [(len(ids), 0, sequence.pages)])
        batch.embed(context, ops.BoundMatrix(model.weights.embedding), ids)
        chosen, expected = [], []
        for i, layer in enumerate(model.layers):
            ops.layer_attention(context, batch, layer, cache.layers[i])
            chosen.append(batch.ids.copy())
            if i == 0:
                expected.append(chosen[0])
            if i + 1 < len(layers):
                router = layers[i + 1].router
                assert router
                normed = ops.rms_norm(context, batch.x, layers[i + 1].ffn_norm, config.rms_eps)
                expected.append(ops.route(context, ops.matmul(context, normed, router), config.n_experts_used)[0])
            ops.layer_experts(context, batch, layer)
        model.close()
    return np.stack(chosen, axis=1), np.stack(expected, axis=1), config.n_experts


class State:
    """What policies look at: `now` and `next_use` by the number of a use, the rest by item."""

    def __init__(self, routing: Routing) -> None:
        self.n_layers = routing.shape[1]
        self.uses = [
            (token, (layer, expert))
            for token, layers in enumerate(routing.tolist())
            for layer, experts in enumerate(layers)
            for expert in experts
        ]
        self.places: dict[Item, list[int]] = {}
        for at, (_, item) in enumerate(self.uses):
            self.places.setdefault(item, []).append(at)
        self.now = 0
        self.last: dict[Item, int] = {}
        self.count: Counter[Item] = Counter()

    def next_use(self, item: Item) -> int:
        """When an item is used again."""
        places = self.places.get(item, [])
        at = bisect_right(places, self.now)
        return places[at] if at < len(places) else len(self.uses)

    def ahead(self, item: Item) -> int:
        """How many layers ahead an item is, 1 to n_layers."""
        return (item[0] - self.uses[self.now][1][0] - 1) % self.n_layers + 1

    def is_fresh(self, item: Item) -> bool:
        """Whether this token's pass has used an item."""
        return self.uses[self.last[item]][0] == self.uses[self.now][0]


POLICIES: dict[str, Callable[[State, Item], tuple[float, ...]]] = {
    "LRU": lambda state, item: (state.last[item],),
    "LFU": lambda state, item: (state.count[item], state.last[item]),
    "least stale": lambda state, item: (state.is_fresh(item), -state.ahead(item), state.last[item]),
    "best": lambda state, item: (-state.next_use(item),),
}
"""Of the items in a cache the one goes that has the least of these."""


def replay(routing: Routing, size: int, policy: str, expected: Routing | None = None) -> tuple[float, float]:
    """The hit rate of a cache of so many items, and the items read for each use.

    With `expected` each layer's expected experts are read when the layer before it begins.
    """
    state, key = State(routing), POLICIES[policy]
    cache: set[Item] = set()
    half = next(at for at, (token, _) in enumerate(state.uses) if token >= len(routing) // 2)
    hits = reads = 0

    def take(item: Item) -> bool:
        found = item in cache
        if not found and len(cache) >= size:
            others = cache | {item} if policy == "best" else cache
            victim = min(others, key=lambda one: key(state, one))
            cache.discard(victim)
            if victim == item:  # is not kept
                return found
        cache.add(item)
        state.last[item] = state.now
        return found

    before = (-1, -1)
    for at, (token, item) in enumerate(state.uses):
        state.now = at
        layer = item[0]
        if expected is not None and (token, layer) != before and layer + 1 < state.n_layers:
            before = token, layer
            for expert in expected[token, layer + 1].tolist():
                reads += not take((layer + 1, expert)) and at >= half
        found = take(item)
        state.count[item] += 1
        hits += found and at >= half
        reads += not found and at >= half
    n = len(state.uses) - half
    return hits / n, reads / n


def pinned(routing: Routing, size: int) -> float:
    """The hit rate of the items that the first half used most often."""
    uses = State(routing).uses
    half = len(routing) // 2
    kept = {item for item, _ in Counter(item for token, item in uses if token < half).most_common(size)}
    late = [item in kept for token, item in uses if token >= half]
    return sum(late) / len(late)


@click.command()
@click.option("-m", "--model", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("-n", "--tokens", type=int, default=512, show_default=True, help="Of each text, at most.")
@click.argument("texts", type=click.Path(exists=True, path_type=Path), nargs=-1, required=True)
def main(model: Path, tokens: int, texts: tuple[Path, ...]) -> None:
    """Print the hit rates of each policy by the size of the cache."""
    for text in texts:
        with Mixtral(model) as opened:
            ids = np.array(opened.tokenize(text.read_text(encoding="utf-8"))[:tokens], np.int32)
        show(text.name, *trace(model, ids))
    rng = np.random.default_rng(1)
    uniform = np.array([[rng.choice(8, 2, replace=False) for _ in range(32)] for _ in range(tokens)], np.int32)
    show("uniform routing, 32 layers of 8 experts", uniform, None, 8)


def show(name: str, routing: Routing, expected: Routing | None, n_experts: int) -> None:
    """Print the table of one text."""
    n_items = routing.shape[1] * n_experts
    click.echo(f"{name}: {len(routing)} tokens, {n_items} experts")
    if expected is not None:
        right = np.mean([len({*a} & {*b}) / len(a) for a, b in zip(_flat(routing), _flat(expected), strict=True)])
        click.echo(f"expected one layer before: {right:.0%} right")
    click.echo("in memory " + "".join(f"{name:>13}" for name in (*POLICIES, "pinned", "lookahead", "reads")))
    for part in SIZES:
        size = round(part * n_items)
        rates = [replay(routing, size, policy)[0] for policy in POLICIES]
        cells = "".join(f"{rate:13.1%}" for rate in (*rates, pinned(routing, size)))
        if expected is not None:
            ahead, reads = replay(routing, size, "LRU", expected)
            cells += f"{ahead:13.1%}{reads / max(1 - rates[0], 1e-9):12.2f}x"
        click.echo(f"{part:9.0%} {cells}")


def _flat(routing: Routing) -> list[list[int]]:
    """The experts of each token in each layer but the first, where nothing can be expected."""
    rows: list[list[int]] = routing[:, 1:].reshape(-1, routing.shape[2]).tolist()
    return rows


if __name__ == "__main__":
    main()
