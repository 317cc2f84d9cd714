"""Servers over HTTP, measured as their clients see them: pymixtral's beside llama.cpp's and llama-cpp-python's.

    python benchmarks/synthetic.py --layers 4 --type q4_k_m /var/tmp/mixtral-q4_k_m.gguf
    python benchmarks/servers.py -m /var/tmp/mixtral-q4_k_m.gguf --llama FOLDER --llama-python PYTHON --json o.json

FOLDER has llama.cpp's llama-server, PYTHON is an interpreter whose llama_cpp has its server; without
them their rows are missing. Each of 1, 4 and 16 clients sends requests one after the other, each after
a pause of exponential length, with prompts and answers of mixed lengths: the same plan, seeded, for
every server. Prompts are random words, answers are drawn at temperature 1. The servers take turns.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
from llama_server import server as llama_server
from peers import cpu_name
from readers import RANDOM, percentiles
from server_process import running

from pymixtral import Mixtral, __version__

CLIENTS = (1, 4, 16)
PROMPTS, ANSWERS = (32, 128, 512, 1024), (16, 32, 64)
"""Tokens, drawn anew for each request."""

PAUSE = 1.0
"""Seconds between two requests of a client, in the mean."""

N_CTX = 32768
"""Positions of all texts together."""


@dataclass(frozen=True)
class Setting:
    """What all servers get: the model, and how much of the machine."""

    model: Path
    n_threads: int
    llama: Path | None
    llama_python: Path | None
    n_ctx: int
    words: Sequence[str]
    each: int
    """Tokens of a word."""

    eos: int

    def prompt(self, n_tokens: int, seed: int) -> str:
        """Random words of about so many tokens: llama-cpp-python's server takes no ids."""
        numbers = np.random.default_rng(seed).integers(0, len(self.words), max(1, n_tokens // self.each))
        return " ".join(self.words[number] for number in numbers.tolist())

    def servers(self) -> dict[str, Callable[[], Any]]:
        """What starts each server; it yields its address."""
        found: dict[str, Callable[[], Any]] = {"pymixtral": self._pymixtral}
        if self.llama is not None:
            folder = self.llama
            found["llama-server"] = lambda: llama_server(folder, self.model, self.n_threads, 16, N_CTX)
        if self.llama_python is not None:
            found["llama-cpp-python"] = self._llama_python
        return found

    def _pymixtral(self) -> Any:
        command = [sys.executable, "-m", "pymixtral", "serve", "-m", str(self.model), "-t", str(self.n_threads)]
        command += ["-c", str(self.n_ctx), "--cache-size", _cache_size(self.model), "--port"]
        return running("pymixtral", command, "/health")

    def _llama_python(self) -> Any:
        command = [str(self.llama_python), "-m", "llama_cpp.server", "--model", str(self.model)]
        command += ["--n_ctx", str(self.n_ctx), "--n_threads", str(self.n_threads), "--cache", "false"]
        command += ["--interrupt_requests", "false", "--port"]
        return running("llama-cpp-python", command, "/v1/models")


def _cache_size(model: Path) -> str:
    """Memory of N_CTX positions, which the others' slots share."""
    with Mixtral(model, n_ctx=64) as opened:
        c = opened.config
        return str(N_CTX * c.n_layers * c.n_kv_heads * c.head_dim * 2 * 2)


# --- Clients ----------------------------------------------------------------------------------------------


@dataclass
class Sent:
    """One request: seconds to its first piece, seconds a token after it, and its tokens."""

    first: float
    each: float
    n_tokens: int


async def ask(http: httpx.AsyncClient, setting: Setting, prompt: str, n_tokens: int, seed: int) -> Sent:
    body = {
        "model": "any",
        "prompt": prompt,
        "max_tokens": n_tokens,
        "stream": True,
        "temperature": 1.0,
        "seed": seed,
        "logit_bias": {str(setting.eos): -100},
    }
    begin = time.perf_counter()
    times = []
    async with http.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            raise click.ClickException(f"status {answer.status_code}: {(await answer.aread())[:300]!r}")
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                times.append(time.perf_counter())
    return Sent(times[0] - begin, (times[-1] - times[0]) / max(n_tokens - 1, 1), n_tokens)


async def clients(address: str, setting: Setting, n: int, n_requests: int) -> dict[str, float]:
    """What n clients see who send n_requests each."""
    async with httpx.AsyncClient(base_url=address, timeout=600) as http:
        await ask(http, setting, setting.prompt(40, 0), 4, 0)  # maps the file's pages

        async def client(i: int) -> list[Sent]:
            random, sent = np.random.default_rng([n, i]), []
            for k in range(n_requests):
                await asyncio.sleep(random.exponential(PAUSE))
                prompt = setting.prompt(int(random.choice(PROMPTS)), 1000 * i + k)
                sent.append(await ask(http, setting, prompt, int(random.choice(ANSWERS)), 1000 * i + k))
            return sent

        begin = time.perf_counter()
        sent = [one for some in await asyncio.gather(*map(client, range(n))) for one in some]
        seconds = time.perf_counter() - begin
    first, each = percentiles([one.first for one in sent]), percentiles([one.each for one in sent])
    return {
        "first_p50": first["p50"],
        "first_p99": first["p99"],
        "token_p50": each["p50"],
        "token_p99": each["p99"],
        "tokens_per_second": sum(one.n_tokens for one in sent) / seconds,
    }


# --- What HTTP costs, and how long a start takes ----------------------------------------------------------


def http_cost(setting: Setting, n_tokens: int = 300, turns: int = 5) -> dict[str, float]:
    """Microseconds a token of one stream: in the process, and over HTTP."""
    prompt = setting.prompt(16, 0)
    found: dict[str, list[float]] = {"process": [], "http": []}

    async def stream(address: str) -> float:
        async with httpx.AsyncClient(base_url=address, timeout=600) as http:
            return (await ask(http, setting, prompt, n_tokens, 1)).each

    with setting.servers()["pymixtral"]() as address, Mixtral(setting.model, n_threads=setting.n_threads) as model:
        for _ in range(turns):
            times = []
            for _piece in model.stream(prompt, max_tokens=n_tokens, seed=1, **RANDOM):
                times.append(time.perf_counter())
            found["process"].append((times[-1] - times[0]) / (n_tokens - 1))
            found["http"].append(asyncio.run(stream(address)))
    return {name: 1e6 * statistics.median(times) for name, times in found.items()}


def start(begin: Callable[[], Any], turns: int = 3) -> float:
    """Median seconds from the start of the process until it is ready."""
    times = []
    for _ in range(turns):
        at = time.perf_counter()
        with begin():
            times.append(time.perf_counter() - at)
    return statistics.median(times)


@click.command()
@click.option("-m", "--model", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("-t", "--threads", "n_threads", type=int, default=len(os.sched_getaffinity(0)))
@click.option("--llama", type=click.Path(exists=True, path_type=Path), help="Folder of llama-server.")
@click.option("--llama-python", type=click.Path(exists=True, path_type=Path), help="Python with llama_cpp.server.")
@click.option("--requests", "n_requests", type=int, default=4, show_default=True, help="Of each client.")
@click.option("--rounds", type=int, default=1, show_default=True)
@click.option("--json", "to", type=click.Path(path_type=Path))
def main(
    model: Path,
    n_threads: int,
    llama: Path | None,
    llama_python: Path | None,
    n_requests: int,
    rounds: int,
    to: Path | None,
) -> None:
    """Measure servers as their clients see them."""
    with Mixtral(model, n_ctx=64) as opened:
        pieces = [opened.detokenize([token]) for token in range(opened.config.n_vocab)]
        words = [piece for piece in pieces if piece.isascii() and piece.isalnum() and len(piece) > 2]
        each = max(1, len(opened.tokenize(" ".join(words[:20]))) // 20)
        n_ctx = min(opened.config.n_ctx_train, N_CTX // 4)
        setting = Setting(model, n_threads, llama, llama_python, n_ctx, words, each, min(opened.eos_ids))
    servers = setting.servers()
    report: dict[str, Any] = {"cpu": cpu_name(), "version": __version__, "model": model.name, "threads": n_threads}
    report["start"] = {name: start(begin) for name, begin in servers.items()}
    report["http_microseconds"] = http_cost(setting)
    click.echo(json.dumps(report))
    report["clients"] = {}
    for n in CLIENTS:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
        for i in range(rounds):
            for name in list(servers)[:: 1 if i % 2 == 0 else -1]:
                with servers[name]() as address:
                    found[name].append(asyncio.run(clients(address, setting, n, n_requests)))
        report["clients"][n] = {
            name: {key: statistics.median(one[key] for one in some) for key in some[0]} for name, some in found.items()
        }
        for name, row in report["clients"][n].items():
            click.echo(f"{n:3} {name:18} " + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    if to:
        to.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
