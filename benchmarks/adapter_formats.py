"""Low-rank adapters that pymixtral converts, run by llama.cpp beside its base model, and merged by pymixtral.

    python benchmarks/adapter_formats.py -f heldout.txt --peer-python PEERS/bin/python

A trained Mixtral gets random adapters that change it much. Each becomes a folder of PEFT, that a
GGUF file (convert_adapter), which llama.cpp applies; and pymixtral runs the model into which the
folder was merged (quantize with adapters). agreement.py says what is compared. "changed" is the
divergence of the adapted model from the model itself.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from agreement import Agreement, Passage, Peer, agreement

from pymixtral import Mixtral, convert_adapter
from pymixtral.adapters import peft_writer
from pymixtral.evaluation.base import log_softmax
from pymixtral.files.names import FFN_STEMS, TensorName
from pymixtral.model.adapter import Adapter, LowRank, adapted_shape
from pymixtral.model.config import ModelConfig
from pymixtral.quantize import quantize

ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
SIZE = 0.04
"""Standard deviation of an element of a change. Those of the model's weights are some 0.05."""

CASES: dict[str, Callable[[TensorName, np.random.Generator], int]] = {
    "attention, rank 8": lambda name, _: 8 * (name.stem in ATTENTION),
    "all matrices, rank 4": lambda _, __: 4,
    "router, rank 2": lambda name, _: 2 * (name.stem == "ffn_gate_inp"),
    "half of the experts, ranks 1 to 16": lambda name, random: (
        int(random.integers(1, 17)) * (name.expert is not None and random.random() < 0.5)
    ),
}
"""The rank of each matrix's pair, 0 for none."""


def make(config: ModelConfig, case: str, seed: int = 1) -> Adapter:
    """A random adapter."""
    random = np.random.default_rng(seed)
    pairs = {}
    for layer in range(config.n_layers):
        names = [TensorName(stem, layer) for stem in (*ATTENTION, "ffn_gate_inp")]
        names += [TensorName(stem, layer, expert=e) for e in range(config.n_experts) for stem in FFN_STEMS]
        for name in names:
            rank = CASES[case](name, random)
            if not rank:
                continue
            rows, cols = adapted_shape(name, config) or (0, 0)
            a, b = (random.standard_normal((rank, n)).astype(np.float32) for n in (cols, rows))
            pairs[name] = LowRank(a, b * np.float32(SIZE / rank**0.5))
    return Adapter(pairs, case)


def compared(peer: Peer, passage: Passage, source: Path, case: str, scratch: Path) -> tuple[Agreement, float]:
    """What the two agree in on the f32 GGUF file `source`, and the mean divergence of the adapted model from it."""
    with Mixtral(source, n_ctx=passage.n_ctx, n_threads=peer.n_threads) as model:
        config, before = model.config, log_softmax(passage.logits(model).reshape(-1, model.config.n_vocab))
    adapter = make(replace(config, name="tiny"), case)
    peft_writer.write(adapter, config, scratch / "peft", force=True)
    convert_adapter(scratch / "peft", scratch / "adapter.gguf", source, force=True)
    merged = scratch / "merged.gguf"
    quantize(source, merged, "f32", adapters=[scratch / "peft"], force=True, verify=False, progress=False)
    with Mixtral(merged, n_ctx=passage.n_ctx, n_threads=peer.n_threads) as model:
        after = log_softmax(passage.logits(model).reshape(-1, config.n_vocab))
    changed = float((np.exp(before) * (before - after)).sum(axis=1).mean())
    return agreement(peer, passage, merged, source, scratch, adapter=scratch / "adapter.gguf"), changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-f", "--file", type=Path, required=True, help="a text")
    parser.add_argument("--checkpoint", type=Path, default=Path("tests/data/tiny-mixtral"), help="of a Mixtral")
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter that has llama-cpp-python")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--windows", type=int, default=8)
    given = parser.parse_args()
    peer, passage = Peer(given.peer_python, given.threads), Passage(given.file.read_text(), 256, given.windows)
    print("| adapter | changed (KL) | KL | top-1 | perplexity here | there | nearer to exact |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        quantize(given.checkpoint, scratch / "f32.gguf", "f32", progress=False)
        for case in CASES:
            found, changed = compared(peer, passage, scratch / "f32.gguf", case, scratch)
            here, there = (found.perplexity[engine] for engine in ("pymixtral", "llama.cpp"))
            print(
                f"| {case} | {changed:.3f} | {found.kl:.2e} | {found.top1:.2%} | {here:.3f} | {there:.3f} | "
                f"{found.nearer} |"
            )


if __name__ == "__main__":
    main()
