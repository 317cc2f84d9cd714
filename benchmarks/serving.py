"""The engine that many callers share, measured: what they get together, and what they do to each other.

    python benchmarks/synthetic.py --layers 4 --type q4_k_m /var/tmp/mixtral-q4_k_m.gguf
    python benchmarks/serving.py -m /var/tmp/mixtral-q4_k_m.gguf --llama FOLDER --json o.json --markdown o.md

FOLDER has llama.cpp's llama-batched-bench and llama-server; without it the peer's columns are
empty. Prompts are random ids, and texts are drawn at temperature 1 from random weights, so requests
visit different experts. Programs that are compared take turns (A B, B A, ...). All of it takes some
15 minutes on two cores; --part measures a part alone.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from engines import timed_library
from llama_server import batched_bench, completion, server
from numpy.typing import NDArray
from peers import cpu_name, read_through
from readers import RANDOM, Readers, first_token, percentiles
from serving_report import markdown
from serving_setting import Bench, Sizes

from pymixtral import Mixtral, __version__
from pymixtral.engine.stream import Generation
from pymixtral.files.gguf import GGUFFile
from pymixtral.inspection.probe import ReadBandwidth, int8_rate
from pymixtral.model.config import ModelConfig

BATCHES = (1, 2, 4, 8, 16)
"""Requests that decode at once."""

PACES = (None, 0.1, 1.0)
"""Seconds of a pass."""

PEER_BATCHES = (2048, 128)
"""The server's --batch-size: its default, and one that lets the others decode in between."""


# --- Decoding together ------------------------------------------------------------------------------------


def together(bench: Bench, n: int, n_tokens: int) -> dict[str, float]:
    """Tokens per second of n streams while all of them decode, and the experts that a layer reads."""
    with bench.open() as model:
        model.generate(bench.ids(600 if not bench.short else 50), max_tokens=4)  # maps the file's pages
        prompts = [bench.ids(16) for _ in range(n)]
        readers = Readers([model.stream(p, max_tokens=n_tokens, seed=i, **RANDOM) for i, p in enumerate(prompts)])
        readers.wait_for(2)  # what passes with prompts read does not count
        before = model.core.engine.call(lambda inner: (inner._experts, inner._counted))
        readers.join()
        after = model.core.engine.call(lambda inner: (inner._experts, inner._counted))
        begin, end = max(times[1] for times in readers.times), min(times[-1] for times in readers.times)
        tokens = sum(begin < t <= end for times in readers.times for t in times)
    experts = (after[0] - before[0]) / max(after[1] - before[1], 1)
    return {"tokens_per_second": tokens / (end - begin), "experts_read": experts}


def batches(bench: Bench) -> dict[str, Any]:
    """1 to 16 requests that decode, beside the bounds and the peer."""
    n_tokens = 48
    sizes, bandwidth = Sizes.of(bench.model), ReadBandwidth(bench.n_threads)
    rounds: list[dict[str, Any]] = []

    def ours(turn: dict[str, Any]) -> None:
        turn["ours"] = {n: together(bench, n, n_tokens) for n in BATCHES}

    def peer(turn: dict[str, Any]) -> None:
        if bench.llama:
            turn["peer"] = batched_bench(bench.llama, bench.model, bench.n_threads, BATCHES, n_tokens)

    for i in range(bench.rounds):
        turn: dict[str, Any] = {"read_gbps": bandwidth.measure(), "int8_gmacs": int8_rate(bench.n_threads).gmacs}
        for run in (ours, peer) if i % 2 == 0 else (peer, ours):
            run(turn)
            time.sleep(0.2)
        rounds.append(turn)
    rows = []
    for n in BATCHES:
        speeds = [turn["ours"][n]["tokens_per_second"] for turn in rounds]
        experts = statistics.median(turn["ours"][n]["experts_read"] for turn in rounds)
        n_bytes = sizes.shared + experts * sizes.expert + n * sizes.kv * (16 + n_tokens / 2)
        limits = [(n_bytes / t["read_gbps"] / 1e9, n * sizes.macs / t["int8_gmacs"] / 1e9) for t in rounds]
        row = {
            "requests": n,
            "tokens_per_second": statistics.median(speeds),
            "least": min(speeds),
            "most": max(speeds),
            "experts_read": experts,
            "bytes": n_bytes,
            "bound": statistics.median(n / max(limit) for limit in limits),
            "bound_by": "memory" if statistics.median(a - b for a, b in limits) > 0 else "arithmetic",
            "of_bound": statistics.median(speed * max(limit) / n for speed, limit in zip(speeds, limits, strict=True)),
        }
        if bench.llama:
            theirs = [turn["peer"][n] for turn in rounds]
            row["peer"] = statistics.median(theirs)
            row["ratio"] = statistics.median(a / b for a, b in zip(speeds, theirs, strict=True))
        rows.append(row)
    return {"rows": rows, "rounds": rounds}


# --- A long prompt beside four streams --------------------------------------------------------------------


def disturbed(readers: Readers, ask: Callable[[], None], *, short: bool) -> dict[str, Any]:
    """The gaps of streams before and while ask() waits for the first token of a long prompt."""
    readers.wait_for(4 if short else 16)
    quiet = min(times[1] for times in readers.times)
    begin = time.perf_counter()
    ask()
    end = time.perf_counter()
    readers.stop()
    return {
        "first_token": end - begin,
        "gaps": percentiles(readers.gaps(begin, end)),
        "gaps_before": percentiles(readers.gaps(quiet, begin)),
    }


def pace(bench: Bench) -> dict[str, Any]:
    """Four streams decode, and a long prompt arrives."""
    n_tokens = 300 if bench.short else 4000
    rows: list[dict[str, Any]] = []
    for seconds in PACES:
        with bench.open(pace=seconds) as model:
            model.generate(bench.ids(100 if bench.short else 600), max_tokens=4)
            streams = [model.stream(bench.ids(16), max_tokens=n_tokens, seed=i, **RANDOM) for i in range(4)]
            document = bench.ids(bench.document)
            found = disturbed(Readers(streams), lambda: void(first_token(model, document)), short=bench.short)  # noqa: B023
        rows.append({"program": "pymixtral", "setting": f"pace={seconds}", **found})
    for size in PEER_BATCHES if bench.llama else ():
        assert bench.llama
        options = ("-b", str(size), "-ub", str(min(size, 512)))
        with server(bench.llama, bench.model, bench.n_threads, 5, 4 * bench.n_ctx, *options) as address:
            list(completion(address, bench.ids(100 if bench.short else 600), 4, 0))
            peers = [completion(address, bench.ids(16), n_tokens, i) for i in range(4)]
            document = bench.ids(bench.document)
            found = disturbed(
                Readers(peers),
                lambda: void(next(completion(address, document, 1, 0), None)),  # noqa: B023
                short=bench.short,
            )
        rows.append({"program": "llama-server", "setting": f"-b {size}", **found})
    return {"rows": rows}


def void(_: object) -> None:
    pass


# --- The end of a request inside its prompt ---------------------------------------------------------------


def ends(bench: Bench) -> dict[str, Any]:
    """How soon the next request begins after one that ends inside a long prompt."""
    wait = 0.02 if bench.short else 1.3
    rows = []
    with bench.open() as model:
        first_token(model, bench.ids(100 if bench.short else 600))
        alone = statistics.median(first_token(model, [3 + i])[0] for i in range(5))
        for how in ("cancel", "deadline", "reader gone"):
            began, first, inside = [], [], 0
            for i in range(1 if bench.short else 5):
                before = model.stats().prompt_tokens
                stream: Generation | None = model.stream(
                    bench.ids(bench.document), max_tokens=1, timeout=wait if how == "deadline" else None, **RANDOM
                )
                time.sleep(wait)
                assert stream
                if how == "cancel":
                    stream.cancel()
                if how != "deadline":
                    stream = None
                seconds, next_one = first_token(model, [100 + i])
                began.append(seconds - next_one.stats.prompt_seconds)
                first.append(seconds)
                inside += model.stats().prompt_tokens - before < bench.document
            rows.append(
                {
                    "how": how,
                    "next_pass": statistics.median(began),
                    "next_pass_most": max(began),
                    "first_token": statistics.median(first),
                    "first_token_most": max(first),
                    "ended_inside": inside,
                }
            )
    return {"rows": rows, "first_token_alone": alone}


# --- Prefixes, log-probabilities, prompt lookup -----------------------------------------------------------


def prefix(bench: Bench) -> dict[str, Any]:
    """Questions about long documents."""
    rows = []
    for n_documents in (1, 2):
        with bench.open() as model:
            first_token(model, bench.ids(100 if bench.short else 600))
            documents = [bench.ids(bench.document) for _ in range(n_documents)]
            before = model.stats()
            firsts = [first_token(model, document + bench.ids(16)[1:])[0] for document in documents]
            middle = model.stats()
            later = [first_token(model, d + bench.ids(16)[1:])[0] for _ in range(bench.rounds) for d in documents]
            after = model.stats()
        cached, computed = (getattr(after, k) - getattr(middle, k) for k in ("cached_tokens", "prompt_tokens"))
        rows.append(
            {
                "documents": n_documents,
                "first": statistics.median(firsts),
                "later": statistics.median(later),
                "ratio": statistics.median(firsts) / statistics.median(later),
                "hit_rate_later": cached / (cached + computed),
                "hit_rate": (after.cached_tokens - before.cached_tokens)
                / (after.cached_tokens - before.cached_tokens + after.prompt_tokens - before.prompt_tokens),
            }
        )
    return {"rows": rows}


def status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise click.ClickException(f"expected /proc/self/status with {name}, found none: run this on Linux")


def logprobs_once(bench: Bench, top: int | None) -> dict[str, float]:
    """A prompt in this process: its seconds, and how far memory rises above that of an open model."""
    prompt = bench.ids(200 if bench.short else 1500)
    with bench.open(prefault=True) as model:  # so that pages of the file do not count
        first_token(model, bench.ids(100 if bench.short else 600))
        model.forget()
        begin_bytes, begin = status_bytes("VmRSS"), time.perf_counter()
        model.generate(prompt, max_tokens=1, prompt_logprobs=top)
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "bytes": status_bytes("VmHWM") - begin_bytes, "peak": status_bytes("VmHWM")}


def logprobs(bench: Bench) -> dict[str, Any]:
    """A prompt with and without log-probabilities, each in a process of its own."""
    pairs = []
    for i in range(bench.rounds):
        found = {}
        for top in (None, 5) if i % 2 == 0 else (5, None):
            command = [sys.executable, __file__, "-m", str(bench.model), "-t", str(bench.n_threads)]
            command += ["--logprobs-once", "none" if top is None else str(top), *(["--short"] if bench.short else [])]
            found[top] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        pairs.append((found[None], found[5]))
    return {
        "seconds": statistics.median(plain["seconds"] for plain, _ in pairs),
        "seconds_with": statistics.median(given["seconds"] for _, given in pairs),
        "ratio": statistics.median(given["seconds"] / plain["seconds"] for plain, given in pairs),
        "more_peak_bytes": statistics.median(given["peak"] - plain["peak"] for plain, given in pairs),
        "pairs": pairs,
    }


PARAGRAPH = (
    "Once upon a time there was a king who had three sons. The eldest was strong, the second was clever, and the "
    "youngest was kind. One day the king fell ill, and called his sons to him. "
)


def quote(ids: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
    logits[ids[-50]] = 1e6


def lookup(bench: Bench) -> dict[str, Any]:
    """Texts that quote and texts that do not, with and without prompt lookup.

    Random weights quote nothing, so a logits_processor makes them repeat what stood 50 tokens before:
    all guesses are right then. A text of eight tokens at temperature 1 has every pair of tokens
    before, and goes on otherwise: the worst case.
    """
    rows = []
    n_tokens = 40 if bench.short else 96
    few = list(range(1000, 1008))
    full = bench.ids(200)
    cases: list[tuple[str, Path | None, Any, dict[str, Any]]] = [
        ("demo, quotes", None, PARAGRAPH * 6, {"temperature": 0, "max_tokens": 200}),
        ("demo, does not quote", None, PARAGRAPH, {"temperature": 1.0, "max_tokens": 200}),
        (
            "full width, quotes",
            bench.model,
            full,
            {"temperature": 0, "logits_processor": quote, "max_tokens": n_tokens},
        ),
        ("full width, no match", bench.model, full, {**RANDOM, "max_tokens": n_tokens}),
        (
            "full width, wrong matches",
            bench.model,
            full,
            {"temperature": 1.0, "allowed_token_ids": few, "max_tokens": n_tokens},
        ),
    ]
    for name, path, prompt, options in cases:
        with Mixtral(path, n_ctx=bench.n_ctx if path else 1024, n_threads=bench.n_threads) as model:
            model.generate(prompt, max_tokens=8)
            speeds: dict[int, list[float]] = {0: [], 8: []}
            for i in range(bench.rounds):
                for n in (0, 8) if i % 2 == 0 else (8, 0):
                    stats = model.generate(prompt, seed=i, prompt_lookup=n, **{"ignore_eos": True, **options}).stats
                    speeds[n].append((stats.generated_tokens - 1) / stats.generation_seconds)
                    if n:
                        drafted, accepted = stats.drafted_tokens, stats.accepted_tokens
        rows.append(
            {
                "text": name,
                "plain": statistics.median(speeds[0]),
                "lookup": statistics.median(speeds[8]),
                "ratio": statistics.median(b / a for a, b in zip(speeds[0], speeds[8], strict=True)),
                "drafted": drafted,
                "accepted": accepted,
            }
        )
    return {"rows": rows}


def soak(bench: Bench) -> dict[str, Any]:
    """soak.py on the demo model; `status` is 1 if it found a fault."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("soak.py")),
        *(["--requests", "100", "--warm-up", "50"] if bench.short else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    click.echo(done.stderr, err=True, nl=False)
    return {"status": done.returncode, "report": json.loads(done.stdout), "faults": done.stderr}


# --- Python's share ---------------------------------------------------------------------------------------


def python_share(bench: Bench) -> dict[str, Any]:
    """The part of a decoding step outside C, of the engine's thread; each stream has a reader thread.

    A call that waits for the interpreter at its end counts as C, so the time of a step is given
    for streams without readers, too: one call of generate() waits for all texts.
    """
    n_tokens = 12 if bench.short else 48
    rows = []
    for n in (1, 16):
        shares, steps, quiet = [], [], []
        for _ in range(bench.rounds):
            with timed_library() as library, bench.open() as model:
                model.generate(bench.ids(100), max_tokens=4)
                readers = Readers(
                    [model.stream(bench.ids(16), max_tokens=n_tokens, seed=i, **RANDOM) for i in range(n)]
                )
                readers.join()
                begin, end = max(times[1] for times in readers.times), min(times[-1] for times in readers.times)
                shares.append(1 - library.seconds(begin, end) / (end - begin))
                steps.append((end - begin) / (sum(begin < t <= end for t in readers.times[0]) or 1))
            with bench.open() as model:
                model.generate(bench.ids(100), max_tokens=4)
                texts = model.generate([bench.ids(16) for _ in range(n)], max_tokens=n_tokens, seed=1, **RANDOM)
                stats = max((text.stats for text in texts), key=lambda stats: stats.generation_seconds)
                quiet.append(stats.generation_seconds / stats.passes)
        rows.append(
            {
                "requests": n,
                "python_share": statistics.median(shares),
                "step": statistics.median(steps),
                "step_without_readers": statistics.median(quiet),
            }
        )
    return {"rows": rows}


# --- The command -------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "batches": batches,
    "pace": pace,
    "ends": ends,
    "prefix": prefix,
    "logprobs": logprobs,
    "lookup": lookup,
    "python": python_share,
    "soak": soak,
}


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True)
@click.option("-t", "--threads", type=click.IntRange(1, 256), default=os.cpu_count() or 1, show_default="one per CPU")
@click.option("--llama", type=click.Path(path_type=Path, exists=True, file_okay=False), help="llama.cpp's programs.")
@click.option("--part", "names", multiple=True, type=click.Choice(list(PARTS)), help="Measure this; repeatable.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the prompts.")
@click.option("--short", is_flag=True, help="Try the script on a small model: one round of little work.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write every figure here.")
@click.option("--markdown", "text_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the tables here.")
@click.option("--logprobs-once", hidden=True)
def main(
    model: Path,
    threads: int,
    llama: Path | None,
    names: tuple[str, ...],
    seed: int,
    short: bool,
    json_file: Path | None,
    text_file: Path | None,
    logprobs_once: str | None,
) -> None:
    """Measure what many callers get of MODEL."""
    with GGUFFile(model) as file:
        n_vocab = ModelConfig.from_gguf(file).n_vocab
    bench = Bench(model, threads, llama, np.random.default_rng(seed), n_vocab, short)
    if logprobs_once:
        found = globals()["logprobs_once"](bench, None if logprobs_once == "none" else int(logprobs_once))
        click.echo(json.dumps(found))
        return
    read_through(model)
    report: dict[str, Any] = {
        "setting": {
            "model": model.name,
            "file_bytes": model.stat().st_size,
            "version": __version__,
            "cpu": cpu_name(),
            "load_before": os.getloadavg()[0],
            "threads": threads,
            "seed": seed,
        },
        "parts": {},
        "seconds": {},
    }
    for name in names or PARTS:
        begin = time.perf_counter()
        report["parts"][name] = PARTS[name](bench)
        report["seconds"][name] = time.perf_counter() - begin
        click.echo(f"{name}: {report['seconds'][name]:.0f} s", err=True)
        if json_file:  # after each part, so that an interrupt loses one
            json_file.write_text(json.dumps(report, indent=2) + "\n")
    text = markdown(report)
    click.echo(text)
    if text_file:
        text_file.write_text(text)


if __name__ == "__main__":
    main()
