"""llama.cpp's own programs, run beside pymixtral: its batched bench, and its server over HTTP."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import click
from server_process import running


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


def server(
    folder: Path, model: Path, n_threads: int, n_slots: int, n_ctx: int, *options: str
) -> AbstractContextManager[str]:
    """Runs llama-server.

    Args:
        folder: has the program.
        model: a GGUF file.
        n_threads: threads.
        n_slots: texts at once. They share one cache.
        n_ctx: positions of that cache.
        *options: more of the server's own.

    Returns:
        A context with its address.
    """
    command = [str(folder / "llama-server"), "-m", str(model), "-t", str(n_threads), "-c", str(n_ctx), "-kvu"]
    command += ["-np", str(n_slots), "--no-webui", "-cram", "0", *options, "--port"]
    return running("llama-server", command, "/health")


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
