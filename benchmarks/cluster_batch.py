"""Prompts a second of a cluster of two workers with a CPU each, beside one process with two threads; and
the time that the loss of a node costs.

    python benchmarks/cluster_batch.py
    python benchmarks/cluster_batch.py -m mixtral-q4_k_m.gguf --prompts 200

It needs the extra [ray], and starts a cluster of its own on this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click

from pymixtral import Bulk, Mixtral
from pymixtral.cluster.batch import ClusterBulk

NODE = {"num_cpus": 1, "object_store_memory": 200_000_000, "include_dashboard": False}


def timed(job: Bulk) -> float:
    begin = time.perf_counter()
    job.run(progress=False)
    return time.perf_counter() - begin


def kill_when(node: Any, output: Path, n: int) -> None:
    """Kills a node and its processes when so many prompts are in the output."""
    while not output.exists() or output.read_bytes().count(b"\n") < n:
        time.sleep(0.02)
    raylet = node.all_processes["raylet"][0].process
    workers = [path for path in Path("/proc").glob("[0-9]*") if parent(path) == raylet.pid]
    raylet.kill()
    for path in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.name), 9)


def parent(path: Path) -> int:
    try:
        return int((path / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@click.command()
@click.option("-m", "--model", "path", type=click.Path(exists=True, path_type=Path), help="[default: the demo model]")
@click.option("--prompts", "n_prompts", default=2000, show_default=True)
@click.option("-n", "--max-tokens", default=64, show_default=True)
def main(path: Path | None, n_prompts: int, max_tokens: int) -> None:
    """Measure batches on a cluster."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as name:
        os.environ |= {"RAY_TMPDIR": name, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0"}
        from ray.cluster_utils import Cluster

        folder = Path(name)
        prompts = folder / "prompts.jsonl"
        with prompts.open("w", encoding="utf-8") as file:
            for i in range(n_prompts):
                line = {"prompt": f"Once upon a time there were {i} kings", "seed": i, "ignore_eos": True}
                file.write(json.dumps(line | {"max_tokens": max_tokens}) + "\n")
        begin = time.perf_counter()
        cluster = Cluster()
        cluster.add_node(**{**NODE, "num_cpus": 0})  # the head computes nothing
        nodes = [cluster.add_node(**NODE) for _ in range(2)]
        print(f"a cluster of two nodes: {time.perf_counter() - begin:.1f} s")
        try:
            opening: dict[str, Any] = {"n_ctx": 256, "n_threads": 2}
            with Mixtral(path, **opening) as model:
                alone = timed(Bulk(model, prompts, folder / "alone.jsonl"))
                print(f"one process, two threads: {alone:.1f} s, {n_prompts / alone:.1f} prompts/s", flush=True)
                opening["n_threads"] = 1
                together = [
                    timed(ClusterBulk(model, prompts, folder / f"{i}.jsonl", opening=opening, address=cluster.address))
                    for i in range(2)
                ]
                seconds = min(together)
                rate = n_prompts / seconds
                print(f"two workers with a CPU each: {together[0]:.1f} and {together[1]:.1f} s, {rate:.1f} prompts/s")
                output = folder / "lost.jsonl"
                killer = threading.Thread(target=kill_when, args=(nodes[1], output, n_prompts // 2))
                killer.start()
                lost = timed(ClusterBulk(model, prompts, output, opening=opening, address=cluster.address))
                killer.join()
                print(f"a node killed at the half: {lost:.1f} s, where the half on one node is {seconds * 1.5:.1f} s")
        finally:
            cluster.shutdown()


if __name__ == "__main__":
    main()
