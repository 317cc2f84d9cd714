"""Quantize a model to two types, and compare sizes, errors of the weights and predictions."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from pymixtral import Mixtral
from pymixtral.demo import demo_path
from pymixtral.evaluation.perplexity import perplexity
from pymixtral.quantize import quantize

SOURCE = Path(sys.argv[1]) if len(sys.argv) > 1 else demo_path()  # a GGUF file, f16 at best; the demo's is q8_0

with TemporaryDirectory() as folder:
    base = Path(folder) / "base"
    with Mixtral(SOURCE) as model:
        text = model.generate("Once upon a time", max_tokens=1100, ignore_eos=True, seed=1).text
        before = perplexity(model, text, n_ctx=256, save_base=base, progress=False)
        print(f"the model on a text of its own: perplexity {before.perplexity:.2f}")

    for kind in ("q4_k_m", "q2_k"):
        report = quantize(SOURCE, Path(folder) / f"{kind}.gguf", kind, progress=False)
        with Mixtral(report.dest) as model:
            after = perplexity(model, text, n_ctx=256, kl_against=base, progress=False)
        assert after.kl is not None  # there was a base
        print(f"{kind}: {report.bits_per_weight:.2f} bits per weight")
        for entry in report.classes:
            if entry.name.startswith("experts"):
                print(f"  {entry.name}: {', '.join(entry.types)}, error {entry.relative_error:.2%}")
        print(f"  perplexity {after.perplexity:.2f}, {after.kl.ratio:.4f} times as high")
        print(f"  KL divergence {after.kl.mean:.4f} nats, the same best token at {after.kl.top1_agreement:.1%}")
