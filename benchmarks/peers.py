"""pymixtral beside llama.cpp (llama-cpp-python) on the same file, tokens and number of threads.

    python benchmarks/synthetic.py --type q4_0 /var/tmp/mixtral-q4_0.gguf
    python benchmarks/peers.py -m /var/tmp/mixtral-q4_0.gguf

The engines take turns (A B A B ...), so that whatever else the machine does meets both; a
comparison is the median of the ratios pair by pair. The tokens are random and prescribed, for
decoding too: a model's own choice soon repeats itself, and visits few experts. Decoding reads each
active weight once a token, so it is given in GB/s as well, and in percent of the read bandwidth
that was measured between the two decodings of the same pair.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from pymixtral.inspection.probe import ReadBandwidth

SHORT_PROMPT = 8  # tokens before those that are decoded
SETTLE_SECONDS = (
    0.1  # before a measurement: the other engine's threads may spin a moment after their work, waiting for more
)

Tokens = NDArray[np.int32]


class Worker:
    """An engine in its own process (engines.py). about: what it tells of itself. Raises
    ClickException if the process ends early.
    """

    def __init__(self, python: str, engine: str, model: Path, n_threads: int, n_ctx: int, kv_type: str) -> None:
        self._what = f"{engine}, run by {python},"
        command = [
            python,
            str(Path(__file__).with_name("engines.py")),
            engine,
            str(model),
            str(n_threads),
            str(n_ctx),
            kv_type,
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._answer()

    def ask(self, command: str, *tokens: Tokens) -> dict[str, Any]:
        time.sleep(SETTLE_SECONDS)
        assert self._process.stdin
        self._process.stdin.write(json.dumps([command, [part.tolist() for part in tokens]]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise click.ClickException(f"{self._what} ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass(frozen=True)
class Workload:
    """Turns of each engine; tokens of the prompt whose prefill is timed; tokens decoded one at a
    time; tokens before all of these.
    """

    pairs: int
    prompt: int
    decode: int
    position: int


def measure(
    workers: tuple[Worker, Worker], work: Workload, draw: Callable[[int], Tokens], bandwidth: ReadBandwidth
) -> dict[str, Any]:
    """Seconds of each turn, in order, of (pymixtral, peer). draw(n): n random token ids."""
    ours, peer = workers
    turns: dict[str, Any] = {"prefill": [], "correlation": [], "decode": [], "read_gbps": []}
    beginning = draw(work.position)
    for worker in workers:
        worker.ask("keep", beginning)
    tokens = draw(work.prompt)
    turns["first_prefill"] = [worker.ask("prefill", tokens)["seconds"] for worker in workers]
    for _ in range(work.pairs):
        tokens = draw(work.prompt)
        answers = [worker.ask("prefill", tokens) for worker in workers]
        turns["prefill"].append([answer["seconds"] for answer in answers])
        logits = np.array([np.frombuffer(base64.b64decode(answer["logits"]), np.float32) for answer in answers])
        turns["correlation"].append(correlation(*logits))
    for worker in workers:
        worker.ask("decode", draw(SHORT_PROMPT), draw(work.decode))  # the first one finds cold caches
    for _ in range(work.pairs):
        texts = draw(SHORT_PROMPT), draw(work.decode)
        first = ours.ask("decode", *texts)["seconds"]
        time.sleep(SETTLE_SECONDS)
        turns["read_gbps"].append(bandwidth.measure())
        turns["decode"].append([first, peer.ask("decode", *texts)["seconds"]])
    turns["python_share"] = [ours.ask("python_share", draw(SHORT_PROMPT), draw(work.decode)) for _ in range(work.pairs)]
    return turns


def correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Pearson's; 1 if the engines computed the same."""
    return float(np.mean((a - a.mean()) * (b - b.mean())) / (a.std() * b.std()))


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    turns, setting = report["turns"], report["setting"]
    ours, peer = report["engines"]
    rows = [("", ours["name"], peer["name"], "ratio: median (least to most)")]

    def add(what: str, pairs: list[list[float]], digits: int, note: str = "") -> None:
        """A row of medians; without a note the last column has the ratios."""
        ratios = [a / b for a, b in pairs]
        a, b = (f"{statistics.median(column):.{digits}f}" for column in zip(*pairs, strict=True))
        rows.append((what, a, b, note or f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"))

    def rates(name: str, amount: float) -> list[list[float]]:
        return [[amount / seconds for seconds in pair] for pair in turns[name]]

    gbps = rates("decode", setting["decode"] * ours["active_bytes"] / 1e9)
    percents = [[100 * value / limit for value in pair] for pair, limit in zip(gbps, turns["read_gbps"], strict=True)]
    add(f"prefill of {setting['prompt']}, tokens/s", rates("prefill", setting["prompt"]), 1)
    add(f"decode of {setting['decode']}, tokens/s", rates("decode", setting["decode"]), 1)
    add("decode, GB/s", gbps, 1, f"of active weights, {ours['active_bytes'] / 1e9:.2f} GB a token")
    add("decode, % of read bandwidth", percents, 0, f"which was {statistics.median(turns['read_gbps']):.1f} GB/s")
    add(
        "open to ready, s",
        [[engine["open_seconds"] for engine in (ours, peer)]],
        2,
        "once; vocabulary and cache included",
    )
    add("first prefill, s", [turns["first_prefill"]], 2, "once; pages of the file are mapped as they are met")
    share = statistics.median(run["python_seconds"] / run["seconds"] for run in turns["python_share"])
    rows.append(("Python's share of decode", f"{share:.2%}", "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        [
            f"{setting['model']}, {setting['file_bytes'] / 1e9:.2f} GB; {setting['threads']} threads, "
            f"{setting['pairs']} pairs; "
            f"{setting['cpu']}, load {setting['load_before']:.2f} before; "
            f"at position {setting['position']}, {setting['kv_type']} cache",
            *(f"{engine['name']}: {engine['variant']}" for engine in (ours, peer)),
            "",
            *(f"{a:{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows),
            "",
            f"The two engines' logits after a prompt correlate by at least {min(turns['correlation']):.5f}.",
        ]
    )


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def read_through(path: Path) -> None:
    """Brings the file into the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 26):
            pass


@click.command()
@click.option(
    "-m",
    "--model",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="A GGUF file that both engines run.",
)
@click.option("-t", "--threads", type=click.IntRange(1, 256), default=os.cpu_count() or 1, show_default="one per CPU")
@click.option(
    "--pairs",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Turns of each engine; at least five for a result to quote.",
)
@click.option(
    "--prompt",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    help="Tokens of the prompt whose prefill is timed.",
)
@click.option("--decode", type=click.IntRange(1), default=32, show_default=True, help="Tokens decoded one at a time.")
@click.option(
    "--position",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Tokens of context before what is timed.",
)
@click.option("--kv-type", type=click.Choice(["f16", "q8_0"]), default="f16", show_default=True, help="Of both caches.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the random tokens.")
@click.option(
    "--peer-python",
    type=click.Path(exists=True, dir_okay=False),
    default=sys.executable,
    show_default="this one",
    metavar="PATH",
    help="Python interpreter of an environment with the [peers] extra.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write every figure to this file."
)
def main(
    model: Path,
    threads: int,
    pairs: int,
    prompt: int,
    decode: int,
    position: int,
    kv_type: str,
    seed: int,
    peer_python: str,
    json_file: Path | None,
) -> None:
    """Compare pymixtral with llama-cpp-python on MODEL."""
    work = Workload(pairs, prompt, decode, position)
    setting = {
        "model": model.name,
        "file_bytes": model.stat().st_size,
        "cpu": cpu_name(),
        "load_before": os.getloadavg()[0],
        "threads": threads,
        "seed": seed,
        "kv_type": kv_type,
        **asdict(work),
    }
    read_through(model)
    n_ctx = position + max(prompt, SHORT_PROMPT + decode)
    ours = Worker(sys.executable, "pymixtral", model, threads, n_ctx, kv_type)
    peer = Worker(peer_python, "llama-cpp-python", model, threads, n_ctx, kv_type)
    rng = np.random.default_rng(seed)

    def draw(n: int) -> Tokens:
        return rng.integers(0, ours.about["n_vocab"], n, np.int32)

    turns = measure((ours, peer), work, draw, ReadBandwidth(threads))
    for worker in (ours, peer):
        worker.close()
    report = {"setting": setting, "engines": [ours.about, peer.about], "turns": turns}
    click.echo(table(report))
    if json_file:
        json_file.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
