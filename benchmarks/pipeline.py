"""A pipeline of two stages beside one process: tokens a second with 1 to 4 micro-batches.

    python benchmarks/synthetic.py --layers 4 --type q4_k_m /var/tmp/mixtral-q4_k_m.gguf
    python benchmarks/pipeline.py -m /var/tmp/mixtral-q4_k_m.gguf

Both stages run on this machine, on nodes of a cluster of Ray that is made for this, with one thread
each: beside them stand one process with one thread, which has half of their cores, and one with two,
with all texts and with half of them, as each of two micro-batches has. Prompts are random ids, another
one for each text. Figures are of one turn each, prompts first, then the tokens after them.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

from pymixtral import Mixtral


@contextmanager
def cluster() -> Iterator[None]:
    """Two nodes on this machine, to which this process is connected."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_USAGE_STATS_ENABLED": "0"}
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster()
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=2, object_store_memory=200_000_000, include_dashboard=False)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        yield
    finally:
        ray.shutdown()
        nodes.shutdown()


def measure(model: Mixtral, prompts: list[list[int]], n_tokens: int) -> tuple[float, float]:
    """Tokens a second of the prompts, and of the texts after them."""
    model.generate([prompt[:8] for prompt in prompts], max_tokens=4, ignore_eos=True)  # everything is in memory
    begin = time.perf_counter()
    model.embed(prompts)
    middle = time.perf_counter()
    model.generate([prompt[:8] for prompt in prompts], max_tokens=n_tokens, ignore_eos=True)
    end = time.perf_counter()
    return sum(map(len, prompts)) / (middle - begin), len(prompts) * n_tokens / (end - middle)


@click.command(help=__doc__)
@click.option("-m", "--model", "path", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--texts", default=16, show_default=True)
@click.option("--tokens", "n_tokens", default=32, show_default=True, help="Of each text.")
@click.option("--prompt", "n_prompt", default=64, show_default=True, help="Tokens of each prompt.")
def main(path: Path, texts: int, n_tokens: int, n_prompt: int) -> None:
    from pymixtral.cluster.pipeline import open_pipeline

    random = np.random.default_rng(1)
    options: dict[str, Any] = {"n_ctx": 512, "n_batch": 128, "max_batch": texts, "prefault": True}
    print("| | prompts, tok/s | texts, tok/s |\n| --- | --- | --- |", flush=True)

    def row(name: str, model: Mixtral, n_texts: int = texts) -> None:
        prompts = random.integers(3, model.config.n_vocab, (n_texts, n_prompt)).tolist()
        first, second = measure(model, prompts, n_tokens)
        print(f"| {name} | {first:.1f} | {second:.1f} |", flush=True)

    for n in (1, 2):
        with Mixtral(path, n_threads=n, **options) as model:
            row(f"one process, {n} thread{'s' * (n > 1)}", model)
            row(f"the same, {texts // 2} texts", model, texts // 2)
    with ExitStack() as stack:
        stack.enter_context(cluster())
        for n in range(1, 5):
            with open_pipeline(path, 2, n_threads=1, micro_batches=n, **options) as model:
                row(f"two stages of 1 thread, {n} micro-batch{'es' * (n > 1)}", model)


if __name__ == "__main__":
    main()
