"""What a cluster costs and brings: `pymixtral serve --ray` beside `pymixtral serve`, and texts that
begin alike on one replica beside replicas that are drawn.

    python benchmarks/replicas.py
    python benchmarks/replicas.py --model mixtral.gguf --rounds 3 --json

Both servers have one engine of one thread, and take turns: requests for one token, one after the
other; then streams, one and several at once. Figures are medians over the rounds. For prefixes there
are three replicas and conversations of several turns, each with its own beginning, which are asked in
an order that is drawn; the figure is the part of the tokens of their prompts that a cache had. The
cluster is one node of this machine.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import httpx
from server_process import running

from pymixtral.server.service import Service
from pymixtral.server.settings import Settings

if TYPE_CHECKING:
    from pymixtral.cluster.replicas import Replicas

N_REQUESTS = 50
N_TOKENS = 200
N_STREAMS = 8
N_REPLICAS = 3
N_TALKS = 24
N_TURNS = 4


async def requests(client: httpx.AsyncClient) -> float:
    """Milliseconds of a request for one token of a short prompt."""
    times = []
    for i in range(N_REQUESTS):
        begin = time.perf_counter()
        answer = await client.post("/v1/completions", json={"prompt": f"Tale {i}", "max_tokens": 1})
        answer.raise_for_status()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


async def stream(client: httpx.AsyncClient, i: int) -> float:
    """Milliseconds of a token of a stream after its first."""
    body = {"prompt": f"Tale {i}", "max_tokens": N_TOKENS, "ignore_eos": True, "temperature": 0, "stream": True}
    times = []
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                times.append(time.perf_counter())
    return 1e3 * (times[-1] - times[0]) / (N_TOKENS - 1)


async def measured(address: str) -> dict[str, float]:
    """The figures of a server."""
    async with httpx.AsyncClient(base_url=address, timeout=None, trust_env=False) as client:
        await requests(client)
        return {
            "request_ms": await requests(client),
            "token_ms": await stream(client, 0),
            f"token_ms_of_{N_STREAMS}": statistics.mean(
                await asyncio.gather(*(stream(client, i) for i in range(N_STREAMS)))
            ),
        }


def overhead(model: list[str], cluster: str, rounds: int) -> dict[str, dict[str, float]]:
    """The figures of a server without and with Ray."""
    serve = [sys.executable, "-m", "pymixtral", "serve", *model, "-t", "1"]
    commands = {"serve": [*serve, "--port"], "serve --ray": [*serve, "--ray", cluster, "--replicas", "1", "--port"]}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    with ExitStack() as stack:
        addresses = {name: stack.enter_context(running(name, words, "/health")) for name, words in commands.items()}
        for _ in range(rounds):
            for name, address in addresses.items():
                found[name].append(asyncio.run(measured(address)))
    return {name: {what: statistics.median(one[what] for one in all) for what in all[0]} for name, all in found.items()}


async def hits(replicas: Replicas, settings: Settings, seed: int) -> float:
    """The part of the tokens of prompts that a cache had, of turns after the first."""
    service = Service(settings)
    app = replicas.app(service)
    replicas.begin(service)
    draw = random.Random(seed)
    talks: list[list[dict[str, Any]]] = [
        [{"role": "user", "content": f"Tell me tale {i} of {seed}, of the fox, the king and the old mill. " * 3}]
        for i in range(N_TALKS)
    ]
    given = cached = 0
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=None) as client:

        async def turn(talk: list[dict[str, Any]]) -> None:
            nonlocal given, cached
            answer = (await client.post("/v1/chat/completions", json={"messages": talk, "max_tokens": 12})).json()
            if len(talk) > 1:
                given += answer["usage"]["prompt_tokens"]
                cached += answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            talk += [answer["choices"][0]["message"], {"role": "user", "content": "And what happened then?"}]

        for _ in range(N_TURNS):
            draw.shuffle(talks)
            for i in range(0, N_TALKS, 4):  # four at once
                await asyncio.gather(*map(turn, talks[i : i + 4]))
    return cached / given


def prefixes(model: Path | None, cluster: str) -> dict[str, float]:
    """The hits with and without prefixes."""
    from pymixtral.cluster.replica import open_model
    from pymixtral.cluster.replicas import Replicas

    settings = Settings()
    found = {}
    for name, by_prefix in (("drawn", False), ("by prefix", True)):
        opening = partial(open_model, model)
        replicas = Replicas(
            opening, settings, address=cluster, n=(N_REPLICAS, N_REPLICAS), n_threads=1, by_prefix=by_prefix
        )
        try:
            replicas.open()
            found[name] = asyncio.run(hits(replicas, settings, len(found)))
        finally:
            replicas.close()
    return found


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), help="A GGUF file.  [default: the demo model]")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(model: Path | None, rounds: int, as_json: bool) -> None:
    """Measure what a cluster costs and brings."""
    import ray

    with ray.init(num_cpus=N_REPLICAS + 1, include_dashboard=False, log_to_driver=False) as context:
        cluster = context.address_info["gcs_address"]
        costs = overhead(["-m", str(model)] if model else [], cluster, rounds)
        shares = prefixes(model, cluster)
    if as_json:
        click.echo(json.dumps({"overhead": costs, "hits": shares}))
        return
    for name, figures in costs.items():
        click.echo(f"{name:12} " + ", ".join(f"{what} {value:.2f}" for what, value in figures.items()))
    for name, share in shares.items():
        click.echo(f"{name:12} {share:.1%} of the tokens of prompts were cached")


if __name__ == "__main__":
    main()
