"""How far a text is, and what it took, for people and for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pymixtral.cli.text import note

if TYPE_CHECKING:
    from tqdm import tqdm

    from pymixtral.engine.completion import Stats
    from pymixtral.engine.stream import Generation
    from pymixtral.mixtral import Mixtral


@contextmanager
def bar(name: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A function that shows how much is done, of how much: a bar in a terminal, which goes when all
    is done.
    """
    from pymixtral.progress import progress_bar

    with ExitStack() as stack:
        bars: list[tqdm[Any]] = []

        def progress(done: int, total: int) -> None:
            if not bars:
                shown = progress_bar(label=name, total=total, unit=unit, unit_scale=True, leave=False, shown=True)
                bars.append(stack.enter_context(shown))
            bars[0].update(done - bars[0].n)
            if done == total:
                stack.close()

        yield progress


def plain_stats(stats: Stats) -> dict[str, float]:
    """Work, times and speeds, as JSON has them."""
    return asdict(stats) | {
        "prompt_tokens_per_second": stats.prompt_tokens_per_second,
        "tokens_per_second": stats.tokens_per_second,
        "gigabytes_per_second": stats.gigabytes_per_second,
    }


def summary(generation: Generation) -> str:
    """The closing lines. They have rates where a pass has followed the prompt."""
    stats = generation.stats
    n_prompt, n_generated = n_tokens(stats.prompt_tokens), n_tokens(stats.generated_tokens)
    if not generation.tokens:
        return f"prompt: {n_prompt}; nothing generated"
    rates = (
        f", {stats.tokens_per_second:.1f} tokens/s, {stats.gigabytes_per_second:.1f} GB/s of weights"
        if stats.passes
        else ""
    )
    return (
        f"prompt: {n_prompt}, {stats.prompt_tokens_per_second:.1f} tokens/s, first token after "
        f"{stats.prompt_seconds:.3f} s\n"
        f"generated: {n_generated}{rates}"
    )


def note_lines(text: str) -> None:
    """Notes each line of a text by itself."""
    for line in text.splitlines():
        note(line)


def full(engine: Mixtral) -> str:
    """Why a text ended before the model or -n ended it."""
    most = engine.config.n_ctx_train
    advice = f"--context makes it longer, up to {most}" if engine.n_ctx < most else "the model was trained for no more"
    return f"The context of {engine.n_ctx} tokens is full; {advice}."


def n_tokens(n: int) -> str:
    """A number of tokens in words."""
    return f"{n} token{'' if n == 1 else 's'}"
