"""Sampling parameters and seeds: the same seed gives the same text, whatever the threads."""

import sys

from pymixtral import Mixtral
from pymixtral.sampling.parameters import Sampling

PROMPT = "The wolf said:"
RUNS: dict[str, Sampling] = {
    "the most likely tokens": {"temperature": 0},
    "seed 1": {"seed": 1},
    "seed 1 again": {"seed": 1},
    "seed 2": {"seed": 2},
    "seed 2, colder": {"seed": 2, "temperature": 0.3},
    "seed 2, from the 3 most likely tokens": {"seed": 2, "top_k": 3},
    "seed 2, fewer repetitions": {"seed": 2, "repetition_penalty": 1.3, "penalty_window": 0},
}

path = sys.argv[1:2]  # a GGUF file; without one, the demo model
with Mixtral(*path, n_threads=1) as one, Mixtral(*path, n_threads=2, n_batch=3) as two:
    for title, sampling in RUNS.items():
        text = one.generate(PROMPT, max_tokens=24, **sampling).text
        same = two.generate(PROMPT, max_tokens=24, **sampling).text == text
        print(f"{title}:\n    {text!r:.90}")
        print(f"    the same with 2 threads and the prompt in pieces: {same}")
