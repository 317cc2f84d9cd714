"""The forward pass, written out: a layer is two C calls, and between them Python sees which experts
the router chose.
"""

import sys
from pathlib import Path

import numpy as np

from pymixtral import Mixtral, ModelConfig, ops
from pymixtral.demo import demo_path
from pymixtral.files.gguf import GGUFFile
from pymixtral.model.forward import Model
from pymixtral.model.weights import load_weights

PATH = Path(sys.argv[1]) if len(sys.argv) > 1 else demo_path()
TEXT = "The king had a daughter."

with Mixtral(PATH) as mixtral:
    ids = np.array(mixtral.tokenize(TEXT), np.int32)
    expected = mixtral.logits(ids)
    pieces = [mixtral.detokenize([token]) for token in ids.tolist()]

with GGUFFile(PATH) as file:
    config = ModelConfig.from_gguf(file)
    model = Model(load_weights(file, config), config)
    context, cache = model.context, model.new_cache(len(ids))
    sequence = cache.new_sequence()
    sequence.reserve(len(ids))
    batch = ops.Batch(model.layers[0], config.rope_frequencies(), config.rope_factor())
    batch.begin(context, [(len(ids), 0, sequence.pages)])
    batch.embed(context, ops.BoundMatrix(model.weights.embedding), ids)

    used = np.zeros((config.n_layers, config.n_experts), np.int64)
    print(f"layer  {'  '.join(f'{piece:>8}' for piece in pieces)}")
    for i, layer in enumerate(model.layers):
        ops.layer_attention(context, batch, layer, cache.layers[i])
        chosen = ["+".join(map(str, experts)) for experts in batch.ids.tolist()]  # weights: batch.weights
        print(f"{i:5}  {'  '.join(f'{experts:>8}' for experts in chosen)}")
        np.add.at(used[i], batch.ids, 1)
        ops.layer_experts(context, batch, layer)

    print("tokens for each expert, all layers:", used.sum(axis=0).tolist())
    print("logits equal Mixtral's, bit for bit:", np.array_equal(model.logits(batch.x), expected))
    model.close()
