"""Quantize a model to two and three bits, with and without knowing which inputs matter."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from pymixtral import Mixtral
from pymixtral.demo import demo_path
from pymixtral.evaluation.calibration import calibrate
from pymixtral.evaluation.perplexity import perplexity
from pymixtral.files.imatrix import write
from pymixtral.quantize import quantize

SOURCE = Path(sys.argv[1]) if len(sys.argv) > 1 else demo_path()  # a GGUF file, f16 at best; the demo's is q8_0

with TemporaryDirectory() as folder:
    base, matrix = Path(folder) / "base", Path(folder) / "imatrix.gguf"
    with Mixtral(SOURCE) as model:
        # Texts of the model's own show which inputs are large; another one judges the files.
        starts = ["Once upon a time", "There was once a king", "The wolf said:", "In the forest"]
        judge, *seen = (one.text for one in model.generate(starts, max_tokens=1100, ignore_eos=True, seed=1))
        write(calibrate(model, [("tale", text) for text in seen], progress=False), matrix, force=False)
        perplexity(model, judge, n_ctx=256, save_base=base, progress=False)

    for kind, importance in (("iq3_m", matrix), ("iq2_m", matrix), ("iq2_xxs", None), ("iq2_xxs", matrix)):
        dest = Path(folder) / "few.gguf"
        report = quantize(SOURCE, dest, kind, imatrix=importance, progress=False, force=True)
        with Mixtral(dest) as model:
            result = perplexity(model, judge, n_ctx=256, kl_against=base, progress=False)
        assert result.kl is not None  # there was a base
        how = "with" if importance else "without"
        print(f"{kind} {how} importance: {report.bits_per_weight:.2f} bits, KL divergence {result.kl.mean:.4f} nats")
