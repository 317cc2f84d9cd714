"""Embeddings: which of some sentences are alike?"""

import sys

import numpy as np

from pymixtral import Mixtral

SENTENCES = [
    "The wolf ran into the forest.",
    "A fox crept through the wood.",
    "The king and the queen sat on their thrones.",
    "The prince married the princess.",
]

with Mixtral(*sys.argv[1:2]) as model:  # a GGUF file; without one, the demo model
    vectors = model.embed(SENTENCES, normalize=True)  # float32 [sentences, hidden], each of length 1

similarities = vectors @ vectors.T
for i, sentence in enumerate(SENTENCES):
    others = np.where(np.arange(len(SENTENCES)) == i, -1, similarities[i])
    nearest = int(others.argmax())
    print(f"{sentence}\n  {others[nearest]:.3f} {SENTENCES[nearest]}")
