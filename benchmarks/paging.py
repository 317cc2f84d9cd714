"""A model file that is larger than memory: prompts and generation in a control group with too little
of it, pymixtral beside llama.cpp on the same file and limit.

    python benchmarks/synthetic.py --layers 4 --type q4_k_m /var/tmp/mixtral-q4_k_m.gguf
    sudo python benchmarks/paging.py -m /var/tmp/mixtral-q4_k_m.gguf
    sudo python benchmarks/paging.py -m /var/tmp/mixtral-q4_k_m.gguf --llama-bench build/bin/llama-bench

Each run is a process of its own in a memory control group of its own (version 1 or 2), whose limit
counts its page cache too. The file leaves the cache of the whole machine before each run, as pages
that another group has read count there. Reading a file from a disk costs no arithmetic, so a run
says what it read: the bytes from the disk and the major faults.

The disk is measured first, past the page cache.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

from pymixtral.inspection.probe import disk_rate

CGROUPS = Path("/sys/fs/cgroup")
SHORT_PROMPT = 8  # tokens before those that are generated


@contextmanager
def memory_group(n_bytes: int) -> Iterator[Path]:
    """A control group with a limit of memory; the folder is gone afterwards."""
    first = (CGROUPS / "memory").is_dir()
    folder = CGROUPS / "memory" / f"paging-{os.getpid()}" if first else CGROUPS / f"paging-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(n_bytes))
        yield folder
    finally:
        folder.rmdir()


def drop(path: Path) -> None:
    """Lets a file's pages leave the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(command: list[str], model: Path, n_bytes: int) -> str:
    """What a program prints that runs in a group of n_bytes, with nothing of the file in memory."""
    drop(model)
    with memory_group(n_bytes) as folder:
        script = f'echo $$ > "{folder}/cgroup.procs"; exec "$@"'
        done = subprocess.run(["sh", "-c", script, "sh", *command], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{command[0]} ended with code {done.returncode} in a group of {n_bytes} bytes")
    return done.stdout


def read_bytes() -> int:
    """Bytes that this process has caused to be read from disks."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def worker(settings: dict[str, Any]) -> None:
    """Measures pymixtral in this process, and prints the figures."""
    from pymixtral import Mixtral

    warnings.simplefilter("ignore")  # of too little memory, which is meant

    def measured(ids: list[int], n: int) -> dict[str, float]:
        before, faults = read_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        begin = time.perf_counter()
        stats = model.generate(ids, max_tokens=n, ignore_eos=True, temperature=1.0, top_k=0, seed=1).stats
        return {
            "seconds": time.perf_counter() - begin,
            "prompt_seconds": stats.prompt_seconds,
            "generation_seconds": stats.generation_seconds,
            "passes": stats.passes,
            "read_gb": (read_bytes() - before) / 1e9,
            "major_faults": resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults,
        }

    n_prompt, n = settings["prompt"], settings["generate"]
    begin = time.perf_counter()
    with Mixtral(settings["model"], n_ctx=max(n_prompt, n + SHORT_PROMPT) + 1, **settings["options"]) as model:
        opening = time.perf_counter() - begin
        rng = np.random.default_rng(1)
        ids = rng.integers(3, model.config.n_vocab, max(n_prompt, SHORT_PROMPT)).tolist()
        found: dict[str, Any] = {"opening_seconds": opening}
        if n:
            measured(ids[-SHORT_PROMPT:], 8)  # what was read at first is not what is read again and again
            found["generation"] = measured(ids[-SHORT_PROMPT:], n)
        if n_prompt:
            found["prompt"] = measured(ids, 1)
    found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps(found))


def ours(model: Path, n_bytes: int, n_prompt: int, n_generate: int, options: dict[str, Any]) -> dict[str, Any]:
    """The figures of pymixtral in a group."""
    settings = {"model": str(model), "prompt": n_prompt, "generate": n_generate, "options": options}
    found: dict[str, Any] = json.loads(
        run([sys.executable, __file__, "--worker", json.dumps(settings)], model, n_bytes)
    )
    return found


def theirs(program: Path, model: Path, n_bytes: int, n_prompt: int, n_generate: int) -> float:
    """Seconds of llama-bench for a prompt, or for a token that is generated.

    Without --repack 0 it would copy weights into memory of its own, which the limit has no room for.
    """
    options = f"-p {n_prompt} -n {n_generate} -r 1 --no-warmup --repack 0 -o json".split()
    (found,) = json.loads(run([str(program), "-m", str(model), *options], model, n_bytes))
    return float(found["avg_ns"]) / 1e9 / max(n_generate, 1)


@click.command()
@click.option("-m", "--model", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--memory", type=float, default=0.65, show_default=True, help="The limit, as a part of the file.")
@click.option("--prompt", type=int, default=4096, show_default=True, help="Tokens; 0: none.")
@click.option("--generate", type=int, default=64, show_default=True, help="Tokens; 0: none.")
@click.option("--llama-bench", type=click.Path(exists=True, path_type=Path))
def main(model: Path, memory: float, prompt: int, generate: int, llama_bench: Path | None) -> None:
    """Print the times of a prompt and of generation in a group with too little memory."""
    n_bytes = int(model.stat().st_size * memory)
    click.echo(f"disk: {disk_rate(model)}; limit: {n_bytes / 1e9:.2f} GB; load: {os.getloadavg()[0]:.1f}")
    for name, options in {
        "n_batch 512": {"n_batch": 512},
        "n_batch 512, locked": {"n_batch": 512, "lock": True},
        "as it is": {},
        "locked": {"lock": True},
    }.items():
        if prompt:
            found = ours(model, n_bytes, prompt, 0, options)["prompt"]
            click.echo(f"prompt of {prompt}, {name}: {found['seconds']:.1f} s, {found['read_gb']:.1f} GB read")
        if generate and "n_batch" not in options:
            found = ours(model, n_bytes, 0, generate, options)["generation"]
            click.echo(
                f"generation, {name}: {found['generation_seconds'] / found['passes']:.3f} s a token, "
                f"{found['read_gb'] / (found['passes'] + 1):.3f} GB read for each"
            )
    if llama_bench and prompt:
        click.echo(f"prompt of {prompt}, llama.cpp: {theirs(llama_bench, model, n_bytes, prompt, 0):.1f} s")
    if llama_bench and generate:
        click.echo(f"generation, llama.cpp: {theirs(llama_bench, model, n_bytes, 0, generate):.3f} s a token")
    click.echo(f"load: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(json.loads(sys.argv[2]))
    else:
        main()
