"""What rounding activations to int8 costs, beside 16 bits, which generation can afford."""

import sys
from pathlib import Path

import numpy as np

from pymixtral import Mixtral
from pymixtral.demo import demo_path

FILE = Path(sys.argv[1]) if len(sys.argv) > 1 else demo_path()
TEXT = "Once upon a time there was a king who had three daughters, and the youngest was the most beautiful."

with Mixtral(FILE) as coarse, Mixtral(FILE, activations="int16") as fine:
    ids = fine.tokenize(TEXT)
    rows = {"int8": coarse.logits(ids).astype(np.float64), "int16": fine.logits(ids).astype(np.float64)}
    logprobs = {name: x - np.logaddexp.reduce(x, axis=1, keepdims=True) for name, x in rows.items()}
    p = np.exp(logprobs["int16"])
    divergence = (p * (logprobs["int16"] - logprobs["int8"])).sum(axis=1)
    same = rows["int8"].argmax(axis=1) == rows["int16"].argmax(axis=1)
    print(
        f"{len(ids)} tokens: int8 is {divergence.mean():.5f} nats from int16, the same best token at {same.mean():.0%}"
    )

    # Both keep the promise: a text has the same bits alone and among others.
    prompts = ["The wolf said:", "The king had three sons", "In the forest"]
    together = [one.tokens for one in fine.generate(prompts, max_tokens=20, seed=1)]
    alone = [fine.generate(prompt, max_tokens=20, seed=1).tokens for prompt in prompts]
    print(f"int16, alone and together: the same texts: {alone == together}")
