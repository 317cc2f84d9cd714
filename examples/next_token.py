"""Logits: what the model thinks comes next, and how likely it finds a given text."""

import sys

import numpy as np
from numpy.typing import NDArray

from pymixtral import Mixtral

PROMPT = "The princess lived in a"
ENDINGS = [" castle", " great forest", " telephone"]


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities, float64 [rows, n_vocab], of logits of the same shape."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


with Mixtral(*sys.argv[1:2]) as model:  # a GGUF file; without one, the demo model
    ids = model.tokenize(PROMPT)
    probabilities = np.exp(log_softmax(model.logits(ids, last_only=True)))
    print(f"{PROMPT} ...")
    for token in np.argsort(-probabilities)[:5].tolist():
        text = model.detokenize([*ids, token]).removeprefix(PROMPT)
        print(f"  {probabilities[token]:6.2%} {text!r}")

    print("How likely are these endings?")
    for ending in ENDINGS:
        all_ids = model.tokenize(PROMPT + ending)
        log_p = log_softmax(model.logits(all_ids))  # row i is about what follows token i
        targets = np.array(all_ids[len(ids) :])
        rows = np.arange(len(ids) - 1, len(all_ids) - 1)
        print(f"  {np.exp(log_p[rows, targets].sum()):.2e}{ending}")
