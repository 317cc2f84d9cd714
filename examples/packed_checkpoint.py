"""Turn a checkpoint of GPTQ or AWQ, which most programs run on GPUs alone, into a file for CPUs."""

import sys
from pathlib import Path

from pymixtral import Mixtral
from pymixtral.quantize import quantize

SOURCE, DEST = Path(sys.argv[1]), Path(sys.argv[2])  # the checkpoint's folder, and the file to write

report = quantize(SOURCE, DEST, progress=False)
print(f"{SOURCE.name} as a file of {report.file_bytes / 1e6:.3f} MB")
for entry in report.classes:
    print(f"{entry.name}: {', '.join(entry.types)}, error {entry.relative_error:.3%}")
for note in report.notes:
    print(f"note: {note}")

with Mixtral(DEST) as model:
    best = model.logits([1, 2, 3], last_only=True).argmax()
    print(f"after the tokens 1, 2 and 3 the best one is {best}")
