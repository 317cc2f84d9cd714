"""A model in two stages: half of its layers here, the others in another process of a cluster.

The cluster is this machine alone, hence spread="PACK"; with other hosts each stage takes one of its own.
It needs the extra [ray].
"""

import os
import signal

import ray

from pymixtral import HostLostError, Mixtral, demo_path
from pymixtral.cluster.pipeline import open_pipeline

PROMPTS = ["Once upon a time there was", "The king said to his three sons", "The wolf was", "In the forest"]

with Mixtral(n_threads=1) as whole:
    expected = [text.tokens for text in whole.generate(PROMPTS, max_tokens=20, seed=1)]

with (
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False),
    open_pipeline(demo_path(), 2, n_threads=1, spread="PACK", prefault=True) as model,
):
    for state in model.stages():
        layers = f"layers {state.layers.start} to {state.layers.stop - 1}"
        print(f"{layers}: {state.weight_bytes / 1e6:.1f} MB, in memory {state.resident_bytes / 1e6:.1f} MB of the file")
    texts = model.generate(PROMPTS, max_tokens=20, seed=1)
    print("the same as in one process:", [text.tokens for text in texts] == expected)

    endless = model.stream("Once upon a time", max_tokens=100_000, context_shift=0, ignore_eos=True)
    next(endless)
    os.kill(model.stages()[1].pid, signal.SIGKILL)
    try:
        list(endless)
    except HostLostError as error:
        print("lost:", error)
    while True:
        try:
            again = model.generate(PROMPTS, max_tokens=20, seed=1)
            break
        except HostLostError:  # the loss is just being noticed
            pass
    print("afterwards:", [text.tokens for text in again] == expected)
