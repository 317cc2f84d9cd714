"""Requests that come together, each with an adapter or none: pymixtral's server beside llama.cpp's.

    python benchmarks/synthetic.py --layers 4 --type q4_k_m /var/tmp/mixtral-q4_k_m.gguf
    python benchmarks/adapter_serving.py -m /var/tmp/mixtral-q4_k_m.gguf --llama FOLDER

FOLDER has llama.cpp's llama-server. Both servers load the same GGUF files of random adapters, and take
turns. The requests of a turn come at once, and the next turn begins when all are answered. Prompts are
random ids, another one for each request, so that no server has seen it. A turn with one token of each
text gives the seconds of the prompts, and one with more tokens, less these, those of the tokens after the
first. Figures are medians over the rounds.

On a machine that is not idle, `--cpu -t 1` counts the seconds that the server's process had a processor, in
place of those that passed.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
from adapters import STEMS, random_adapter
from llama_server import server as llama_server
from peers import cpu_name
from server_process import running

from pymixtral import ModelConfig
from pymixtral.adapters import gguf_writer
from pymixtral.files.gguf import GGUFFile

OURS, THEIRS = "pymixtral", "llama-server"


def kinds(n: int) -> dict[str, list[int | None]]:
    """The adapter of each request."""
    return {
        "none": [None] * n,
        "all use one": [0] * n,
        "one of them uses one": [0, *[None] * (n - 1)],
        "each its own": list(range(n)),
    }


def body(name: str, prompt: list[int], n_tokens: int, adapter: int | None) -> dict[str, Any]:
    """Of a request for exactly n_tokens."""
    found = {"prompt": prompt, "max_tokens": n_tokens, "temperature": 1.0, "seed": 1, "ignore_eos": True}
    if name == OURS:
        return found | {"model": "base" if adapter is None else f"a{adapter}"}
    used = [{"id": adapter or 0, "scale": float(adapter is not None)}]  # an empty list means all of them
    return found | {"lora": used, "cache_prompt": False, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def processor_seconds(address: str) -> float:
    """Of the process that serves an address: its command ends with the port."""
    port = address.rpartition(":")[2].encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        if path.read_bytes().split(b"\0")[-2:-1] == [port]:
            fields = (path.parent / "stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    raise click.ClickException(f"no process of this machine has the port {port.decode()}")


async def together(address: str, bodies: list[dict[str, Any]]) -> float:
    """Seconds until all requests are answered."""
    async with httpx.AsyncClient(base_url=address, timeout=600) as http:
        begin = time.perf_counter()
        answers = await asyncio.gather(*(http.post("/v1/completions", json=one) for one in bodies))
        seconds = time.perf_counter() - begin
    for one, answer in zip(bodies, answers, strict=True):
        if answer.status_code != 200:
            raise click.ClickException(f"status {answer.status_code}: {answer.text[:300]}")
        usage = answer.json()["usage"]
        if (usage["prompt_tokens"], usage["completion_tokens"]) != (len(one["prompt"]), one["max_tokens"]):
            raise click.ClickException(f"expected {len(one['prompt'])} and {one['max_tokens']} tokens, found {usage}")
    return seconds


@click.command()
@click.option("-m", "--model", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--llama", type=click.Path(exists=True, path_type=Path), help="Folder of llama-server.")
@click.option("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
@click.option("--rank", default=16, show_default=True)
@click.option("--stems", default=",".join(STEMS), show_default=True, help="Matrices that the adapters have.")
@click.option("--requests", "n", default=4, show_default=True, help="At once, and adapters.")
@click.option("--prompt-tokens", default=128, show_default=True)
@click.option("-n", "--max-tokens", default=32, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--only", multiple=True, help="Kinds: which requests have adapters.")
@click.option("--cpu", is_flag=True, help="Seconds of the processor.")
def main(
    model: Path,
    llama: Path | None,
    threads: int,
    rank: int,
    stems: str,
    n: int,
    prompt_tokens: int,
    max_tokens: int,
    rounds: int,
    only: tuple[str, ...],
    cpu: bool,
) -> None:
    """Measure servers with several adapters."""
    with GGUFFile(model) as file:
        config = ModelConfig.from_gguf(file)
    random = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        files = [Path(folder) / f"a{i}.gguf" for i in range(n)]
        for i, path in enumerate(files):
            gguf_writer.write(random_adapter(config, rank, tuple(stems.split(",")), i), config, path, force=False)
        ours = [sys.executable, "-m", "pymixtral", "serve", "-m", str(model), "-t", str(threads), "-c", "1024"]
        ours += ["--name", "base", *(word for path in files for word in ("--adapter", f"{path.stem}={path}"))]
        addresses = {OURS: stack.enter_context(running(OURS, [*ours, "--port"], "/health"))}
        if llama is not None:
            options = ("--lora", ",".join(map(str, files)), "--lora-init-without-apply")
            addresses[THEIRS] = stack.enter_context(llama_server(llama, model, threads, n, 1024 * n, *options))

        def turn(name: str, n_tokens: int, adapters: list[int | None]) -> float:
            prompts = [random.integers(3, config.n_vocab, prompt_tokens).tolist() for _ in adapters]
            bodies = [body(name, prompt, n_tokens, one) for prompt, one in zip(prompts, adapters, strict=True)]
            before = processor_seconds(addresses[name])
            passed = asyncio.run(together(addresses[name], bodies))
            return processor_seconds(addresses[name]) - before if cpu else passed

        found: dict[tuple[str, str, int], list[float]] = defaultdict(list)
        for name in addresses:
            turn(name, 4, list(range(n)))  # reads weights and adapters
        ways = {kind: adapters for kind, adapters in kinds(n).items() if not only or kind in only}
        for i in range(rounds):
            for kind, adapters in ways.items():
                for name in list(addresses)[:: 1 if i % 2 == 0 else -1]:
                    for n_tokens in (1, max_tokens):
                        found[name, kind, n_tokens].append(seconds := turn(name, n_tokens, adapters))
                        click.echo(f"{name}, {kind}, {n_tokens} tokens: {seconds:.3f} s", err=True)
        print(f"{cpu_name()}, {threads} threads; rank {rank}, {files[0].stat().st_size / 2**20:.0f} MiB each")
        for name in addresses:
            for kind in ways:
                first, whole = (np.array(found[name, kind, k]) for k in (1, max_tokens))
                prompt = n * prompt_tokens / statistics.median(first)
                tokens = n * (max_tokens - 1) / statistics.median(whole - first)
                print(
                    f"{name:>12}, {kind:>20}: prompts {prompt:7.1f} tokens/s, decoding {tokens:6.1f} tokens/s, "
                    f"all {statistics.median(whole):6.2f} s"
                )


if __name__ == "__main__":
    main()
