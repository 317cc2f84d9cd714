"""Write texts for a file of prompts on a cluster of Ray, here one of this machine, and go on after a loss."""

import json
import sys
from pathlib import Path
from typing import Any

import ray

from pymixtral import Bulk, Mixtral
from pymixtral.cluster.batch import ClusterBulk

PROMPTS, TEXTS = Path("prompts.jsonl"), Path("texts.jsonl")
OPENING: dict[str, Any] = {"n_ctx": 256, "n_threads": 1}  # how each worker opens the model


def texts() -> list[str]:
    return [json.loads(line)["text"] for line in TEXTS.read_bytes().splitlines()]


with PROMPTS.open("w", encoding="utf-8") as file:
    for i in range(100):
        file.write(json.dumps({"id": i, "prompt": f"Once upon a time there were {i} kings", "seed": i}) + "\n")

ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)  # a real one is "auto"
with Mixtral(*sys.argv[1:2], **OPENING) as model:  # a GGUF file; without one, the demo model
    job = ClusterBulk(model, PROMPTS, TEXTS, opening=OPENING, lines=20, force=True, max_tokens=12)
    job.run()
    print(f"{job.n_done} texts by the cluster, {job.n_tokens} tokens")
    complete = texts()

    TEXTS.write_bytes(TEXTS.read_bytes()[:9000])  # as if the disk had lost the rest
    job = ClusterBulk(model, PROMPTS, TEXTS, opening=OPENING, lines=20, max_tokens=12)
    job.run()
    print(f"{job.n_resumed} texts were there, {job.n_done - job.n_resumed} were written again")
    print(f"the same texts: {texts() == complete}")

    Bulk(model, PROMPTS, TEXTS, force=True, max_tokens=12).run()
    print(f"the texts of one process: {texts() == complete}")
