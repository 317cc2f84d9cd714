"""Which type of Mixtral 8x7B fits a machine that you do not have yet, and how fast can it be?"""

import sys

from pymixtral.inspection.inventory import Inventory
from pymixtral.inspection.machine import Memory
from pymixtral.inspection.plan import largest_that_fits, plans
from pymixtral.inspection.published import MODELS
from pymixtral.units import parse_bytes, show_bytes

MEMORY = parse_bytes(sys.argv[1] if len(sys.argv) > 1 else "32GiB")
GB_PER_SECOND = float(sys.argv[2]) if len(sys.argv) > 2 else 60.0  # pymixtral doctor measures it
N_CTX = 8192

config = MODELS["8x7b"]
machine = Memory(total=MEMORY, available=MEMORY - parse_bytes("2GiB"), cgroup_limit=None, huge_pages=None)
choices = plans(config, Inventory.of_model(config), N_CTX, machine, GB_PER_SECOND, kv_type="q8_0")
best = largest_that_fits(choices)

print(f"{config.name}, {N_CTX} tokens of context in q8_0, {show_bytes(MEMORY)} at {GB_PER_SECOND:g} GB/s")
for choice in choices:
    mark = "  <- the largest that fits" if choice is best else ""
    bits, size = choice.inventory.bits_per_weight, show_bytes(choice.memory.total)
    print(
        f"{choice.type:>7} {bits:5.2f} bits {size:>9} {choice.verdict:>10} "
        f"{choice.tokens_per_second:6.2f} tokens/s{mark}"
    )
