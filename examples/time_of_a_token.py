"""Where the time of a generated token goes, part by part, beside what reading the weights must take."""

import sys
from pathlib import Path

from pymixtral import Mixtral
from pymixtral.demo import demo_path
from pymixtral.evaluation.bench import bench

FILE = Path(sys.argv[1]) if len(sys.argv) > 1 else demo_path()  # a large file is more interesting

with Mixtral(FILE) as model:
    line = bench(model, n_prompt=32, n_generate=64, repetitions=3, time_line=True, progress=False).time_line

assert line is not None  # it was asked for
print(f"a token takes {line.microseconds:.0f} microseconds, and reads {line.n_bytes / 1e6:.1f} MB of weights")
print(f"{line.limit:.1%} reading them at {line.read_bandwidth:.1f} GB/s, the machine's limit")
for cause, part in vars(line.loss).items():
    print(f"{part:.1%} {cause}")
print(f"{max(line.parts, key=lambda part: part.part).name} is the longest part")
