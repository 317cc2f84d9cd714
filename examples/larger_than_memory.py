"""Of several files of a model, the best first, open the first that fits into memory, or else the last one.

python examples/larger_than_memory.py mixtral-q8_0.gguf mixtral-q4_k_m.gguf mixtral-iq2_m.gguf
"""

import sys
import warnings
from pathlib import Path

from pymixtral import MemoryWarning, Mixtral, demo_path
from pymixtral.inspection.probe import disk_rate
from pymixtral.units import show_bytes

N_CTX = 512


def open_best(paths: list[Path]) -> Mixtral:
    """The first model that fits, or the last one, which then reads its weights again and again."""
    warnings.simplefilter("error", MemoryWarning)
    for path in paths[:-1]:
        try:
            return Mixtral(path, n_ctx=N_CTX)
        except MemoryWarning as warning:
            print(f"{path.name} does not fit: {str(warning).rpartition(': ')[2]}")
    warnings.simplefilter("default", MemoryWarning)
    return Mixtral(paths[-1], n_ctx=N_CTX)


paths = [Path(path) for path in sys.argv[1:]] or [demo_path()]
with open_best(paths) as model:
    print(f"{model.path.name}: a token reads {show_bytes(model.active_bytes)} of weights")
    if disk := disk_rate(model.path):  # None on a system that does not tell
        print(f"what is not in memory comes at {disk.sequential:.2f} GB/s, in pieces of 1 MB at {disk.random:.2f}")
    print(model.generate("Once upon a time", max_tokens=20, temperature=0).text)
