"""Write texts for a file of prompts, which are computed together, and go on after an interruption."""

import json
import sys
from pathlib import Path

from pymixtral import Bulk, Mixtral

WHO = ["king", "queen", "wolf", "little girl", "giant", "soldier"]
PROMPTS, TEXTS = Path("prompts.jsonl"), Path("texts.jsonl")

with PROMPTS.open("w", encoding="utf-8") as file:
    for who in WHO:
        line = {"id": who, "prompt": f"Once upon a time there was a {who}", "seed": 1}
        file.write(json.dumps(line) + "\n")

with Mixtral(*sys.argv[1:2]) as model:  # a GGUF file; without one, the demo model
    Bulk(model, PROMPTS, TEXTS, force=True, max_tokens=12).run()
    complete = TEXTS.read_bytes()
    records = [json.loads(line) for line in complete.splitlines()]
    for record in records:
        print(f"{record['id']}:{record['text']!r:.80}")
    alone = model.generate("Once upon a time there was a wolf", seed=1, max_tokens=12)
    print(f"the wolf's text is what it is alone: {records[2]['text'] == alone.text}")

    TEXTS.write_bytes(complete[: len(complete) // 2])  # as if the program had been killed there
    bulk = Bulk(model, PROMPTS, TEXTS, max_tokens=12)
    bulk.run()
    again = [json.loads(line)["text"] for line in TEXTS.read_bytes().splitlines()]
    print(f"{bulk.n_resumed} texts were there, {bulk.n_done - bulk.n_resumed} were written again")
    print(f"the same texts: {again == [record['text'] for record in records]}")
