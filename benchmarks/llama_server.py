"""llama.cpp's own programs, run beside pymixtral: its batched bench, and its server over HTTP."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

START_SECONDS = 120
"""How long the server may take to read and repack a model."""


def batched_bench(folder: Path, model: Path, n_threads: int, batches: Sequence[int], n_tokens: int) -> dict[int, float]:
    """Decodes texts side by side with llama-batched-bench. It feeds random tokens and samples none.

    Args:
        folder: has the program.
        model: a GGUF file.
        n_threads: threads.
        batches: numbers of texts.
        n_tokens: tokens of each text, after a prompt of 16.

    Returns:
        Tokens per second of all texts together, for each number of texts.
    """
    numbers = ",".join(map(str, batches))
    command = [str(folder / "llama-batched-bench"), "-m", str(model), "-t", str(n_threads), "-c", "4096"]
    command += ["-npp", "16", "-ntg", str(n_tokens), "-npl", numbers, "--output-format", "jsonl"]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(lines) != len(batches):
        raise click.ClickException(f"llama-batched-bench ended with {done.returncode}: {done.stderr[-500:]}")
    return {line["pl"]: line["speed_tg"] for line in lines}


@contextmanager
def server(folder: Path, model: Path, n_threads: int, n_slots: int, n_ctx: int, *options: str) -> Iterator[str]:
    """Runs llama-server.

    Args:
        folder: has the program.
        model: a GGUF file.
        n_threads: threads.
        n_slots: texts at once. They share one cache.
        n_ctx: positions of that cache.
        *options: more of the server's own.

    Yields:
        Its address.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(folder / "llama-server"), "-m", str(model), "-t", str(n_threads), "-c", str(n_ctx), "-kvu"]
    command += ["-np", str(n_slots), "--port", str(port), "--no-webui", "-cram", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + START_SECONDS
        while not _is_ready(address):
            if process.poll() is not None or time.monotonic() > end:
                raise click.ClickException(f"llama-server does not answer, status {process.poll()}")
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def completion(address: str, prompt: Sequence[int], n_tokens: int, seed: int) -> Iterator[None]:
    """Streams a text from the server.

    Args:
        address: of the server.
        prompt: token ids.
        n_tokens: tokens of the text, which nothing else ends.
        seed: of the text.

    Yields:
        None as each piece comes. Closing the iterator closes the connection, which ends the text.
    """
    body = {
        "prompt": list(prompt),
        "n_predict": n_tokens,
        "stream": True,
        "ignore_eos": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "seed": seed,
        "cache_prompt": False,
    }
    request = urllib.request.Request(
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        for line in answer:
            if line.startswith(b"data: ") and not json.loads(line[6:]).get("stop"):
                yield None
