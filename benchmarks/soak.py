"""Many mixed requests from threads and coroutines on one small model, for hours if need be.

    python benchmarks/soak.py --requests 1000 --seed 0

Texts are generated, streamed, scored and embedded, beside each other and with few pages: they are
cancelled, dropped, overdue, preempted and forked. Each result must be equal to the bit to that of
the same request alone, in a model that computes one text at a time. Resident memory must stay
within 2% over the last four fifths of the requests, and every page must come back. The first
differences are printed with the request that shows them; the exit status is then 1.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import random
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from pymixtral import AsyncMixtral, Completion, Mixtral
from pymixtral.ops import PAGE

N_CTX = 400
N_PAGES = 16
"""Of the cache. One text may take 7, so that few long texts at once preempt each other."""

N_LANES = 8
"""Threads, and coroutines."""

SETTLE = 0.2
"""The part of the requests before memory is compared, beside those of the warm-up."""

MOST_GROWTH = 0.02
"""Of resident memory after that, from the lowest reading to the highest."""

KINDS = ("generate",) * 5 + ("stream", "stream", "cancel", "cancel", "drop", "deadline", "interrupt", "score", "embed")


@dataclass(frozen=True)
class Job:
    """A request.

    Attributes:
        kind: a method, or how a text ends early.
        prompt: token ids.
        options: keywords of generate() and stream().
        n: texts of the prompt.
        pieces: what is read of a text before it is cancelled or dropped.
        seconds: until the deadline, or until the task that waits is cancelled.
        others: the further texts of score and embed.
    """

    kind: str
    prompt: list[int]
    options: dict[str, Any]
    n: int = 1
    pieces: int = 0
    seconds: float = 0.0
    others: tuple[list[int], ...] = ()


@dataclass(frozen=True)
class Early:
    """A text that ended before its own end.

    Attributes:
        job: the number of the request.
        text: which of its texts.
        n_tokens: the tokens that it has.
        digest: of all that it has.
    """

    job: int
    text: int
    n_tokens: int
    digest: str


def jobs(n: int, seed: int, n_vocab: int) -> list[Job]:
    """Draws the requests. Prompts are beginnings of a few documents, so that the prefix cache has work."""
    draw = random.Random(seed)

    def ids(most: int) -> list[int]:
        return [draw.randrange(3, n_vocab) for _ in range(draw.randrange(1, most + 1))]

    documents = [[1, *ids(300)] for _ in range(6)]
    made = []
    for i in range(n):
        document = draw.choice(documents)
        prompt = document[: draw.randrange(1, len(document) + 1)] + (ids(3) if draw.random() < 0.6 else [])
        options: dict[str, Any] = {"max_tokens": draw.randrange(1, 80), "seed": i, "priority": draw.randrange(3)}
        for _ in range(2):
            options |= draw.choice(
                [
                    {},
                    {"temperature": 0},
                    {"temperature": 1.5, "top_k": 0},
                    {"repetition_penalty": 1.3},
                    {"logprobs": 1},
                    {"prompt_logprobs": 0},
                    {"prompt_lookup": 4},
                    {"ignore_eos": True},
                    {"stop": [" the", "."]},
                ]
            )
        kind = draw.choice(KINDS)
        made.append(
            Job(
                kind,
                prompt,
                options,
                n=draw.choice([1, 1, 2, 3]) if kind in ("generate", "deadline") else 1,
                pieces=draw.randrange(4),
                seconds=draw.choice([0.0, draw.random() * 0.2, draw.random()]),
                others=tuple(ids(20) for _ in range(draw.randrange(1, 4))),
            )
        )
    return made


# --- Results ----------------------------------------------------------------------------------------------


def digest(result: Any, *, early: bool = False) -> str:
    """A result in few bytes, so that a thousand of them do not count as memory.

    Args:
        result: of a request.
        early: leave out why a text ended, and what may not have been computed by then.
    """
    if isinstance(result, Completion):
        whole = [] if early else [result.finish_reason, result.stop_reason, result.prompt_logprobs]
        result = [result.text, result.tokens, result.logprobs, *whole]
    data = result.tobytes() if isinstance(result, np.ndarray) else repr(result).encode()
    return hashlib.sha256(data).hexdigest()


def alone(model: Mixtral, job: Job) -> list[str]:
    """The digest of each result of a request with nothing beside it and nothing before it."""
    model.forget()
    if job.kind == "score":
        return [digest(model.score(job.prompt, job.others))]
    if job.kind == "embed":
        return [digest(model.embed([job.prompt, *job.others]))]
    return [digest(text) for text in model.generate(job.prompt, n=job.n, **job.options).choices]


def alone_early(model: Mixtral, job: Job, text: int, n_tokens: int) -> str:
    """The digest of the first tokens of a text of a request."""
    model.forget()
    options = {**job.options, "max_tokens": n_tokens}
    return digest(model.generate(job.prompt, n=job.n, **options).choices[text], early=True)


# --- Callers ----------------------------------------------------------------------------------------------


def ask(model: Mixtral, job: Job) -> list[Any]:
    """Sends a request from a thread; nothing comes of one that was dropped."""
    if job.kind == "score":
        return [model.score(job.prompt, job.others)]
    if job.kind == "embed":
        return [model.embed([job.prompt, *job.others])]
    if job.kind in ("generate", "interrupt"):
        return list(model.generate(job.prompt, n=job.n, **job.options).choices)
    if job.kind == "deadline":
        return list(model.generate(job.prompt, n=job.n, timeout=job.seconds, **job.options).choices)
    stream = model.stream(job.prompt, **job.options)
    pieces = list(itertools.islice(stream, None if job.kind == "stream" else job.pieces))
    if job.kind == "drop":
        return []
    if job.kind == "cancel":
        stream.cancel()
    return streamed(stream, pieces + list(stream))


async def ask_async(model: AsyncMixtral, job: Job) -> list[Any]:
    """Sends a request from a task."""
    if job.kind == "score":
        return [await model.score(job.prompt, job.others)]
    if job.kind == "embed":
        return [await model.embed([job.prompt, *job.others])]
    if job.kind == "interrupt":
        try:
            whole = await asyncio.wait_for(model.generate(job.prompt, n=job.n, **job.options), job.seconds)
        except asyncio.TimeoutError:
            return []
        return list(whole.choices)
    if job.kind in ("generate", "deadline"):
        timeout = job.seconds if job.kind == "deadline" else None
        return list((await model.generate(job.prompt, n=job.n, timeout=timeout, **job.options)).choices)
    stream = model.stream(job.prompt, **job.options)
    pieces: list[str] = []
    while (job.kind == "stream" or len(pieces) < job.pieces) and (piece := await anext(stream, None)) is not None:
        pieces.append(piece)
    if job.kind == "drop":
        return []
    if job.kind == "cancel":
        stream.cancel()
    return streamed(stream, pieces + [piece async for piece in stream])


def streamed(stream: Any, pieces: list[str]) -> list[Any]:
    """The text of a stream that was read to its end; its pieces are that text."""
    text = stream.completion
    if "".join(pieces) != text.text or stream.tokens != text.tokens:
        raise AssertionError(f"expected pieces that make {text.text!r}, found {pieces} with {stream.tokens}")
    return [text]


class Callers:
    """Threads and coroutines that send the requests in turn.

    Args:
        model: all of them use it.
        jobs: the requests.
        expected: the digests of what each gives alone.

    Attributes:
        memory: resident bytes after each request, in the order of their ends.
        early: texts that are to be compared afterwards.
        faults: numbers of requests, and what was wrong.
        reasons: how many texts ended why.
    """

    def __init__(self, model: Mixtral, jobs: list[Job], expected: list[list[str]]) -> None:
        self.memory: list[int] = []
        self.early: list[Early] = []
        self.faults: list[tuple[int, str]] = []
        self.reasons: Counter[str] = Counter()
        self._model = model
        self._jobs = jobs
        self._expected = expected
        self._next = itertools.count()

    def run(self) -> None:
        threads = [threading.Thread(target=self._work) for _ in range(N_LANES)]
        threads.append(threading.Thread(target=lambda: asyncio.run(self._tasks())))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self) -> None:
        while (i := next(self._next)) < len(self._jobs):
            try:
                self._note(i, ask(self._model, self._jobs[i]))
            except BaseException as error:
                self.faults.append((i, repr(error)))

    async def _tasks(self) -> None:
        model = AsyncMixtral(self._model)
        await asyncio.gather(*(self._task(model) for _ in range(N_LANES)))

    async def _task(self, model: AsyncMixtral) -> None:
        while (i := next(self._next)) < len(self._jobs):
            try:
                self._note(i, await ask_async(model, self._jobs[i]))
            except BaseException as error:
                self.faults.append((i, repr(error)))

    def _note(self, i: int, results: list[Any]) -> None:
        """Compares what is whole at once, so that no result is kept."""
        for k, (result, expected) in enumerate(zip(results, self._expected[i], strict=False)):
            reason = result.finish_reason if isinstance(result, Completion) else self._jobs[i].kind
            self.reasons[reason] += 1
            if reason in ("cancelled", "deadline"):
                self.early.append(Early(i, k, len(result.tokens), digest(result, early=True)))
            elif digest(result) != expected:
                self.faults.append((i, f"expected the result {k} of the request alone, found {result!r}"[:2000]))
        self.reasons["dropped"] += not results
        self.memory.append(resident_bytes())


def resident_bytes() -> int:
    """Memory of this process without files that it maps."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise click.ClickException("expected /proc/self/status with RssAnon, found none: run this on Linux")


def lost_pages(model: Mixtral) -> list[str]:
    """What is wrong with the cache of an engine that has nothing to do."""
    stats = model.stats()
    state = stats.waiting, stats.prefilling, stats.decoding, stats.used_pages
    found = [f"expected an idle engine, found {stats}"] if any(state) else []
    model.forget()
    n_free, has_references = model.core.engine.call_with_pages(
        lambda pages: (pages.cache.n_free_pages, bool(pages.cache.references.any()))
    )
    if n_free != stats.pages or has_references:
        found.append(f"expected {stats.pages} free pages after forget(), found {n_free}")
    return found


@click.command()
@click.option("--requests", type=click.IntRange(10), default=1000, show_default=True)
@click.option(
    "--warm-up",
    type=click.IntRange(0),
    default=1000,
    show_default=True,
    help="More requests before them, which are compared too: the allocator's memory grows until then.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def main(requests: int, warm_up: int, seed: int, json_file: Path | None) -> None:
    """Send many mixed requests to the demo model, and compare each result with the same one alone."""
    begin = time.perf_counter()
    n_threads = threading.active_count()
    faults: list[str] = []
    with Mixtral(n_ctx=N_CTX, n_threads=1, max_batch=1) as single:
        config = single.config
        work = jobs(warm_up + requests, seed, config.n_vocab)
        expected = [alone(single, job) for job in work]
        page = PAGE * 2 * config.n_layers * config.n_kv_heads * config.head_dim * 2
        alone_seconds = time.perf_counter() - begin
        begin = time.perf_counter()
        with Mixtral(n_ctx=N_CTX, n_threads=2, max_batch=6, n_batch=96, cache_bytes=N_PAGES * page) as model:
            callers = Callers(model, work, expected)
            callers.run()
            seconds = time.perf_counter() - begin
            stats = model.stats()
            faults += lost_pages(model)
        for early in callers.early:
            if early.digest != alone_early(single, work[early.job], early.text, early.n_tokens):
                what = f"expected the first {early.n_tokens} tokens of text {early.text}, found others"
                callers.faults.append((early.job, what))
    for i, text in callers.faults:
        faults.append(f"request {i}: {text}\n  {json.dumps(asdict(work[i]))}")
    late = callers.memory[warm_up + round(SETTLE * requests) :]
    growth = max(late) / min(late) - 1
    if growth > MOST_GROWTH:
        faults.append(f"expected memory within {MOST_GROWTH:.0%}, found {min(late)} to {max(late)} bytes")
    if threading.active_count() != n_threads:
        faults.append(f"expected {n_threads} threads at the end, found {threading.active_count()}")
    if not stats.preempted:
        faults.append("expected texts that were preempted, found none: the pool is too large for these requests")
    report = {
        "requests": requests,
        "warm_up": warm_up,
        "seed": seed,
        "faults": len(faults),
        "alone_seconds": round(alone_seconds, 1),
        "seconds": round(seconds, 1),
        "ends": dict(sorted(callers.reasons.items())),
        "preempted": stats.preempted,
        "passes": stats.passes,
        "batch_size": round(stats.batch_size, 2),
        "prefix_hit_rate": round(stats.prefix_hit_rate, 3),
        "memory_mb": [round(value / 1e6, 1) for value in (callers.memory[0], min(late), max(late), late[-1])],
        "memory_growth": round(growth, 4),
    }
    for fault in faults[:10]:
        click.echo(fault, err=True)
    click.echo(json.dumps(report, indent=2))
    if json_file:
        json_file.write_text(json.dumps(report, indent=2) + "\n")
    if faults:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
