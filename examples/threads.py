"""A model inside a program with threads: their texts are computed together, and none depends on the
others.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from pymixtral import Mixtral

PROMPTS = ["Once upon a time", "The wolf said:", "In the middle of the forest", "The king had three sons"]


def write(prompt: str) -> str:
    """One text. The thread waits for it; the model meanwhile computes those of all threads."""
    return model.generate(prompt, max_tokens=30, seed=7).text


with Mixtral(*sys.argv[1:2]) as model:  # a GGUF file; without one, the demo model
    alone = [write(prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(max_workers=4) as pool:
        together = list(pool.map(write, PROMPTS))
    batch = model.generate(PROMPTS, max_tokens=30, seed=7)  # a list needs no threads

    for prompt, text in zip(PROMPTS, together, strict=True):
        print(f"{prompt}{text!r:.70}")
    print(f"the same texts as one after the other: {together == alone}")
    print(f"the same texts as a list: {[completion.text for completion in batch] == alone}")
