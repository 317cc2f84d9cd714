"""A model inside a program that awaits: tasks at the same time, one cancelled, one with a deadline."""

import asyncio
import sys

from pymixtral import AsyncMixtral

PROMPTS = ["Once upon a time", "The wolf said:", "The king had three sons"]


async def first_sentence(model: AsyncMixtral, prompt: str) -> str:
    """Whoever stops reading a stream ends the text."""
    text = prompt
    async for piece in model.stream(prompt, seed=7):
        text += piece
        if "." in piece:
            break
    return text.partition(".")[0] + "."


async def main(*path: str) -> None:
    """Three tasks together, then two ways to end a text early."""
    async with AsyncMixtral(*path) as model:  # a GGUF file; without one, the demo model
        for text in await asyncio.gather(*(first_sentence(model, prompt) for prompt in PROMPTS)):
            print(repr(text))

        # A cancelled task cancels what it awaits, and there is no text.
        try:
            await asyncio.wait_for(model.generate("The queen", ignore_eos=True), timeout=0.1)
        except asyncio.TimeoutError:
            print("cancelled after 0.1 s")

        # A deadline keeps what was written by then.
        long = await model.generate("There was once a poor", ignore_eos=True, timeout=0.1)
        print(f"ended by: {long.finish_reason}, with {len(long.tokens)} tokens")


asyncio.run(main(*sys.argv[1:2]))
