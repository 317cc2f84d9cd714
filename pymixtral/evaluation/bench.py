"""The speed of a model on this machine, in tokens/s and as parts of the machine's limits.

The work is that of `Mixtral.generate`: a prompt of n_prompt tokens at once, then n_generate passes
of one token each. The tokens are random, whatever the model would choose, because repeated ones
would go to the same experts. The limits, how fast the mapped model file is read and the throughput of int8
products, are measured between the repetitions. A model that has adapters for requests that say
nothing is measured with them; they are no part of the work whose rate is compared with the limits.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pymixtral.arguments import integer
from pymixtral.arrays import F32, I32
from pymixtral.errors import ContextLengthError
from pymixtral.evaluation.time_line import TimeLine, divide_time
from pymixtral.inspection import probe
from pymixtral.mixtral import Mixtral
from pymixtral.ops import PartTime
from pymixtral.progress import progress_bar


@dataclass(frozen=True)
class Bench:
    """The speed of a model. Rates are medians over the repetitions.

    Attributes:
        model: the model file.
        isa: the instruction set.
        prefetch: the prefetch hint that generation chose, such as "near" or "far:4096".
        n_threads: number of threads.
        n_prompt: tokens of the prompt.
        n_generate: tokens after it.
        repetitions: how often both were measured.
        adapters: names of the adapters that it was measured with, and their scales.
        prompt_rate: tokens/s of the prompt.
        prompt_gmacs: multiply-accumulates of the prompt, in 10^9/s.
        prompt_limit: prompt_gmacs divided by int8_gmacs.
        generation_rate: tokens/s after the prompt.
        generation_bandwidth: weights read after the prompt, in 10^9 bytes/s.
        generation_limit: generation_bandwidth divided by read_bandwidth.
        read_bandwidth: how fast the machine reads the mapped model file, in 10^9 bytes/s. That is
            the bandwidth of the memory, or of the CPU's caches where the file fits them.
        int8_gmacs: the machine's int8 throughput, in 10^9 multiply-accumulates/s.
        time_line: where the time of a generated token goes, in the repetition of median speed; None
            if that was not asked for.
    """

    model: str
    isa: str
    prefetch: str
    n_threads: int
    n_prompt: int
    n_generate: int
    repetitions: int
    adapters: dict[str, float]
    prompt_rate: float
    prompt_gmacs: float
    prompt_limit: float
    generation_rate: float
    generation_bandwidth: float
    generation_limit: float
    read_bandwidth: float
    int8_gmacs: float
    time_line: TimeLine | None = None


def bench(
    model: Mixtral,
    *,
    n_prompt: int = 512,
    n_generate: int = 128,
    repetitions: int = 5,
    seed: int = 0,
    time_line: bool = False,
    progress: bool = True,
) -> Bench:
    """Measure the speed of a model.

    Args:
        model: the model.
        n_prompt: tokens of the prompt, at least 1.
        n_generate: tokens after it, at least 1.
        repetitions: how often to measure, at least 1.
        seed: of the random tokens, at least 0.
        time_line: whether to find out where the time of a generated token goes.
        progress: show a bar on stderr if that is a terminal.

    Returns:
        The rates, and the machine's limits.

    Raises:
        InvalidArgumentError: for a number out of its range.
        ContextLengthError: if the tokens do not fit the model's context.
    """
    n_prompt, n_generate = integer("n_prompt", n_prompt, 1), integer("n_generate", n_generate, 1)
    repetitions, seed = integer("repetitions", repetitions, 1), integer("seed", seed, 0)
    if n_prompt + n_generate > model.n_ctx:
        raise ContextLengthError(
            f"expected at most {model.n_ctx} tokens (n_ctx), found {n_prompt} of prompt and {n_generate} to generate: "
            "measure fewer or ask for a longer context"
        )
    ids = np.random.default_rng(seed).integers(0, model.config.n_vocab, n_prompt + n_generate, np.int32)
    prompts, bandwidths, int8_rates = [], [], []
    generations: list[tuple[float, Sequence[PartTime]]] = []
    file = max(model.mapped(), key=len)
    _prompt(model, ids[:n_prompt])  # pages the weights in and sizes the scratch memory
    for _ in progress_bar(range(repetitions), unit=" repetitions", shown=progress):
        prompts.append(_prompt(model, ids[:n_prompt]))
        generations.append(_timed(model, ids, n_prompt) if time_line else (_generate(model, ids, n_prompt), []))
        bandwidths.append(probe.read_bandwidth([model.n_threads], mapped=file)[model.n_threads])
        int8_rates.append(probe.int8_rate(model.n_threads).gmacs)
    prompt_rate = n_prompt / statistics.median(prompts)
    generation_rate = n_generate / statistics.median(seconds for seconds, _ in generations)
    prompt_gmacs = prompt_rate * model.prompt_weights / 1e9
    generation_bandwidth = generation_rate * model.active_bytes / 1e9
    read_bandwidth, int8_gmacs = statistics.median(bandwidths), statistics.median(int8_rates)
    seconds, parts = sorted(generations, key=lambda one: one[0])[(repetitions - 1) // 2]
    return Bench(
        model=str(model.path),
        isa=model.isa,
        prefetch=model.prefetch,
        n_threads=model.n_threads,
        n_prompt=n_prompt,
        n_generate=n_generate,
        repetitions=repetitions,
        adapters=_adapters(model),
        prompt_rate=prompt_rate,
        prompt_gmacs=prompt_gmacs,
        prompt_limit=prompt_gmacs / int8_gmacs,
        generation_rate=generation_rate,
        generation_bandwidth=generation_bandwidth,
        generation_limit=generation_bandwidth / read_bandwidth,
        read_bandwidth=read_bandwidth,
        int8_gmacs=int8_gmacs,
        time_line=divide_time(parts, seconds, n_generate, read_bandwidth) if time_line else None,
    )


def _adapters(model: Mixtral) -> dict[str, float]:
    loaded = model.core.factory.adapters
    names = {adapter: name for name, adapter in loaded.named.items()}
    return {names.get(adapter, adapter.source): scale for adapter, scale in loaded.chosen(None).items()}


def _prompt(model: Mixtral, ids: I32) -> float:
    """Seconds that a prompt takes from an empty cache."""
    model.forget()
    begin = time.perf_counter()
    model.logits(ids, last_only=True)
    return time.perf_counter() - begin


def _timed(model: Mixtral, ids: I32, n_prompt: int) -> tuple[float, list[PartTime]]:
    """What _generate() returns, and where C's part of it goes."""
    with model.timed() as parts:
        seconds = _generate(model, ids, n_prompt)
    return seconds, parts


def _generate(model: Mixtral, ids: I32, n_prompt: int) -> float:
    """Seconds that the passes after the prompt take, one for each id."""

    def next_id(text: I32, logits: F32) -> None:
        if len(text) < len(ids):
            logits[ids[len(text)]] = 1e9  # above all others

    begin = time.perf_counter()
    model.generate(
        ids[: n_prompt + 1],
        max_tokens=len(ids) - n_prompt,
        temperature=0,
        ignore_eos=True,
        logits_processor=next_id,
    )
    return time.perf_counter() - begin
