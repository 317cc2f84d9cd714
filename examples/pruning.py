"""Which experts does a model miss least? It measures what each one adds, and writes the model without
the least of them.
"""

import sys
import tempfile
from pathlib import Path

from pymixtral import Mixtral, demo_path, prune
from pymixtral.evaluation.perplexity import perplexity

PATH = Path(sys.argv[1]) if len(sys.argv) > 1 else demo_path()
TOPICS = ("a king", "a wolf", "a poor fisherman", "three sisters")

with Mixtral(PATH) as model, tempfile.TemporaryDirectory() as folder:
    told = [model.generate(f"Once there was {topic}", max_tokens=300, seed=1).text for topic in TOPICS]
    calibration, held_out = " ".join(told[:2]), " ".join(told[2:])
    base = Path(folder) / "whole.base"
    whole = perplexity(model, held_out, n_ctx=64, save_base=base)
    print(f"{model.config.n_experts} experts: perplexity {whole.perplexity:.1f}")
    for n_experts in (7, 6, 4):
        pruned = Path(folder) / "pruned.gguf"
        result = prune(PATH, pruned, n_experts=n_experts, texts=[("told", calibration)], n_ctx=64, force=True)
        with Mixtral(pruned) as fewer:
            found = perplexity(fewer, held_out, n_ctx=64, kl_against=base)
        assert found.kl
        print(f"{n_experts} experts, {pruned.stat().st_size / 1e6:.1f} MB: perplexity {found.perplexity:.1f},", end=" ")
        print(f"divergence {found.kl.mean:.3f}; layer 0 keeps {', '.join(map(str, result.kept[0]))}")
