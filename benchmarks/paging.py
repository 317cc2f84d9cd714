"""A model file that is larger than memory: prompts and generation in a control group with too little
of it, pymixtral beside llama.cpp on the same file and limit.

    python benchmarks/synthetic.py --layers 4 --type q4_k_m /var/tmp/mixtral-q4_k_m.gguf
    sudo python benchmarks/paging.py -m /var/tmp/mixtral-q4_k_m.gguf --memory 0.65
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

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


if __name__ == "__main__":
    worker(json.loads(sys.argv[1]))
