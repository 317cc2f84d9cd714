"""Answers that a program can read: JSON of a schema, one of several words, and a form of one's own."""

import json
import sys

from pymixtral import Mixtral

ANIMAL = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 20},
        "kind": {"enum": ["wolf", "fox", "cat"]},
        "legs": {"type": "integer", "minimum": 2, "maximum": 4},
        "friends": {"type": "array", "items": {"enum": ["king", "girl", "ogre"]}, "maxItems": 2},
    },
    "required": ["name", "kind", "legs", "friends"],
    "additionalProperties": False,
}

with Mixtral(*sys.argv[1:2]) as model:  # a GGUF file; without one, the demo model
    answer = model.generate("The animal in the wood: ", json_schema=ANIMAL, seed=1)
    print(json.loads(answer.text))
    stats = answer.stats
    print(f"{len(answer.tokens)} tokens in {stats.passes + 1} passes: {stats.accepted_tokens} were forced")

    for prompt in ("The king was very", "The wolf was very"):
        print(prompt + model.generate(prompt, choice=[" good", " angry", " hungry"], temperature=0).text)

    print(model.generate("Chapter", regex=" [IVX]{1,4}\\. The [A-Z][a-z]{2,9}", seed=2).text)
    print(
        model.generate("The names:", lark='start: (" " name ","){2} " and " name\nname: /[A-Z][a-z]{2,6}/', seed=3).text
    )
