"""Writes the goldens beside it: logits and greedy continuations of Hugging Face's Mixtral and
Mistral in float32.

Run by hand, from the root of the repository, with the [peers] extra (torch, transformers) installed
beside sentencepiece:

    python tests/goldens/make_hf_goldens.py

The files here were made with torch 2.13.0 (CPU), transformers 5.24.0, NumPy 2.4.6 and Python
3.11.7.

Each NAME.npz holds
    tokens        int32 [n_tokens]       the input, from position 0
    rows          int32 [n_rows]         every 16th position and the last
    logits        float32 [n_rows, n_vocab] at `rows`
    argmax        int32 [n_tokens]       the likeliest next token at every position
    margins       float32 [n_tokens]     how far it leads the second, so that a test can leave out near ties
    prompt        int32 [n_prompt]       the start of `tokens`
    greedy        int32 [32]             its greedy continuation
    greedy_margin float32                the smallest lead in that continuation
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from support.checkpoints import GOLDEN_MODELS, TINY_MIXTRAL, make_checkpoint  # noqa: E402

TEXT = """Once upon a time there was a miller who had a daughter, and she was so clever that the whole village came to her for counsel.
One evening in the winter a stranger knocked at the door of the mill. His coat was wet with snow, and he carried nothing but a little
wooden box under his arm. "Let me sleep beside your fire," he said, "and in the morning I will give you what is in this box." The miller
was afraid of him, but the girl said: "Come in, and eat with us, for nobody should be out of doors on such a night." So the stranger sat
down at the table, and ate the bread and the soup, and did not speak another word. When the sun rose he was gone, and the box stood upon
the hearth. The girl opened it, and there lay a golden key. "Now I must find the door to which it belongs," said she, and she put on her
red shoes, kissed her father, and went out into the great forest. She walked the whole day, until she came to an old tower that had
neither window nor stair. At the foot of it sat a grey bird, which looked at her and sang of a house beyond the sea."""  # noqa: E501

N_TEXT_TOKENS = 256
N_GREEDY = 32


def golden(directory: Path, tokens: NDArray[np.int32], n_prompt: int) -> dict[str, NDArray[np.generic]]:
    """Runs the checkpoint in `directory` over `tokens`, and greedily from the first n_prompt of
    them.
    """
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    unused = {kind: names for kind, names in info.items() if names}
    if unused:
        raise SystemExit(f"{directory}: expected every weight to be loaded, found {unused}")
    model.eval()

    def run(ids: NDArray[np.int32]) -> NDArray[np.float32]:
        with torch.no_grad():
            output: NDArray[np.float32] = (
                model(torch.tensor(ids[None], dtype=torch.long), use_cache=False).logits[0].numpy()
            )
        return output

    def lead(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        best = np.sort(logits, axis=-1)[..., -2:]
        return best[..., 1] - best[..., 0]

    logits = run(tokens)
    rows = np.unique(np.append(np.arange(0, len(tokens), 16), len(tokens) - 1)).astype(np.int32)
    text, leads = tokens[:n_prompt], []
    for _ in range(N_GREEDY):
        last = run(text)[-1]
        leads.append(lead(last))
        text = np.append(text, np.int32(last.argmax()))
    return {
        "tokens": tokens,
        "rows": rows,
        "logits": logits[rows],
        "argmax": logits.argmax(axis=1).astype(np.int32),
        "margins": lead(logits),
        "prompt": tokens[:n_prompt],
        "greedy": text[n_prompt:],
        "greedy_margin": np.min(leads),
    }


def main() -> None:
    torch.manual_seed(0)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(TINY_MIXTRAL / "tokenizer.model"))
    ids = np.array([processor.bos_id(), *processor.encode(TEXT.replace("\n", " "))], np.int32)
    if len(ids) < N_TEXT_TOKENS:
        raise SystemExit(f"the text has {len(ids)} tokens, {N_TEXT_TOKENS} are needed")
    goldens = {"tiny-mixtral": golden(TINY_MIXTRAL, ids[:N_TEXT_TOKENS], 8)}
    print(
        "tiny-mixtral continues:",
        processor.decode([*goldens["tiny-mixtral"]["prompt"].tolist(), *goldens["tiny-mixtral"]["greedy"].tolist()]),
    )
    for name, (shape, seed, n_tokens) in GOLDEN_MODELS.items():
        with tempfile.TemporaryDirectory() as directory:
            make_checkpoint(Path(directory), shape, seed=seed)
            tokens = np.random.PCG64(seed + 1).random_raw(n_tokens) % np.uint64(shape.n_vocab)
            goldens[name] = golden(Path(directory), np.asarray(tokens).astype(np.int32), 8)
    for name, arrays in goldens.items():
        path = HERE / f"{name}.npz"
        np.savez_compressed(path, **arrays)
        print(
            f"{path.name}: {path.stat().st_size} bytes, largest logit {np.abs(arrays['logits']).max():.3g}, "
            f"smallest lead {arrays['margins'].min():.3g}, in the continuation {arrays['greedy_margin']:.3g}"
        )


if __name__ == "__main__":
    main()
