"""A logits processor: a rule of your own about the next token. Here no three tokens come twice."""

import sys

import numpy as np
from numpy.typing import NDArray

from pymixtral import Mixtral

PROMPT = "There was once a poor"


def no_repeats(ids: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
    """Bans each token that followed the last two before.

    Args:
        ids: all tokens so far, prompt included, int32 [n].
        logits: of the next token, float32 [n_vocab]; they may be changed.
    """
    first, second = ids[-2:]
    again = np.flatnonzero((ids[:-2] == first) & (ids[1:-1] == second))
    logits[ids[again + 2]] = -np.inf


with Mixtral(*sys.argv[1:2]) as model:  # a GGUF file; without one, the demo model
    for processor in (None, no_repeats):
        completion = model.generate(PROMPT, max_tokens=80, temperature=0, logits_processor=processor)
        ids = model.tokenize(PROMPT) + completion.tokens
        triples = list(zip(ids, ids[1:], ids[2:], strict=False))
        print(f"{len(triples) - len(set(triples))} times three tokens come again:\n{PROMPT}{completion.text}\n")
