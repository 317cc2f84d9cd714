"""Which experts does each token go to? Of a text that is there, and of one that is written."""

import sys

from pymixtral import Mixtral

with Mixtral(sys.argv[1] if len(sys.argv) > 1 else None) as model:
    routing = model.routing("The king had a daughter.")
    pieces = [model.detokenize([token]) for token in routing.ids.tolist()]
    print(f"layer  {'  '.join(f'{piece:>8}' for piece in pieces)}")
    for layer in range(routing.n_layers):
        chosen = ["+".join(map(str, experts)) for experts in routing.experts[:, layer].tolist()]
        print(f"{layer:5}  {'  '.join(f'{experts:>8}' for experts in chosen)}")

    print("\nWhile it writes, in the last layer:")
    written = model.generate("The king had", max_tokens=6, temperature=0, routing=True).routing
    assert written is not None  # as it was asked for
    for token, experts, weights in zip(
        written.ids[written.n_prompt :].tolist(),
        written.experts[written.n_prompt :, -1].tolist(),
        written.weights[written.n_prompt :, -1].tolist(),
        strict=True,
    ):
        print(f"{model.token_bytes(token).decode()!r:>12}: expert {experts[0]} ({weights[0]:.2f}) before {experts[1]}")
