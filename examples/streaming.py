"""Print a text while it is written, up to a stop string, and say what it took."""

import sys

from pymixtral import Mixtral

PROMPT = "Once upon a time there was"

with Mixtral(*sys.argv[1:2]) as model:  # a GGUF file; without one, the demo model
    generation = model.stream(PROMPT, max_tokens=200, seed=4, stop=["\n", "The End"])
    print(PROMPT, end="", flush=True)
    for piece in generation:  # the model goes on meanwhile; generation.close() would end the text
        print(piece, end="", flush=True)
    stats = generation.stats
    print(f"\n\nended by: {generation.finish_reason}, after {stats.generated_tokens} tokens")
    print(f"prompt: {stats.prompt_tokens} tokens, first token after {1000 * stats.prompt_seconds:.1f} ms")
    print(f"generation: {stats.tokens_per_second:.0f} tokens/s, {stats.gigabytes_per_second:.1f} GB/s of weights")
