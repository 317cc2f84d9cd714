"""Sessions: a long text is computed once, saved, and continued in two ways by another program."""

import sys
import tempfile
from pathlib import Path

from pymixtral import Mixtral

path = sys.argv[1:2]  # a GGUF file; without one, the demo model
story = "Once upon a time there was a king who had three daughters, and the youngest was the fairest of all. " * 3

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "king.session")
    with Mixtral(*path) as model:
        model.save_session(file, story)
        before = model.generate(story, max_tokens=24, seed=1).text
    with Mixtral(*path) as model:
        ids = model.load_session(file)
        print(f"{len(ids)} tokens, {model.stats().cached_pages} pages, {file.stat().st_size / 1e6:.1f} MB")
        again = model.generate(ids, max_tokens=24, seed=1)
        print(f"the same text as before: {again.text == before}")
        print(f"tokens of the prompt that were computed: {len(ids) - again.stats.cached_tokens}")
        for turn in ("One day the king", "But the youngest"):
            text = [*ids, *model.tokenize(turn, add_bos=False)]
            completion = model.generate(text, max_tokens=16, temperature=0)
            print(f"after {len(text) - completion.stats.cached_tokens} more tokens: ... {turn}{completion}")
