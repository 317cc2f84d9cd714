"""Low-rank adapters that pymixtral and llama.cpp apply to the same GGUF file of a model, and that pymixtral merges.

    python benchmarks/adapter_formats.py -f heldout.txt --peer-python PEERS/bin/python
    python benchmarks/adapter_formats.py -f heldout.txt --peer-python PEERS/bin/python -m mixtral-q4_k_m.gguf

Random adapters are written as GGUF files, which both programs use at run time. Without -m the model is
a trained Mixtral in f32. Then each adapter also becomes a folder of PEFT, which pymixtral converts for
llama.cpp (convert_adapter), and merges for itself (quantize with adapters). agreement.py says what is
compared. "changed" is the divergence of the adapted model from the model itself.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from agreement import Agreement, Passage, Peer, agreement

from pymixtral import Mixtral, convert_adapter
from pymixtral.adapters import gguf_writer, peft_writer
from pymixtral.evaluation.base import log_softmax
from pymixtral.files.names import FFN_STEMS, TensorName
from pymixtral.model.adapter import Adapter, LowRank, adapted_shape
from pymixtral.model.config import ModelConfig
from pymixtral.quantize import quantize

ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
SIZE = 0.04
"""Standard deviation of an element of a change, if none is given. Those of the weights of the checkpoint are
some 0.05.
"""

CASES: dict[str, Callable[[TensorName, np.random.Generator], int]] = {
    "attention, rank 8": lambda name, _: 8 * (name.stem in ATTENTION),
    "attention, rank 16": lambda name, _: 16 * (name.stem in ATTENTION),
    "all matrices, rank 4": lambda _, __: 4,
    "all matrices, rank 16": lambda _, __: 16,
    "router, rank 2": lambda name, _: 2 * (name.stem == "ffn_gate_inp"),
    "half of the experts, ranks 1 to 16": lambda name, random: (
        int(random.integers(1, 17)) * (name.expert is not None and random.random() < 0.5)
    ),
}
"""The rank of each matrix's pair, 0 for none."""


def make(config: ModelConfig, case: str, size: float, seed: int = 1) -> Adapter:
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
            pairs[name] = LowRank(a, b * np.float32(size / rank**0.5))
    return Adapter(pairs, case)


def merged(base: Path, adapter: Adapter, config: ModelConfig, scratch: Path) -> Path:
    """The f32 file `base` with an adapter of PEFT; what llama.cpp uses of it replaces scratch/adapter.gguf."""
    peft_writer.write(adapter, config, scratch / "peft", force=True)
    convert_adapter(scratch / "peft", scratch / "adapter.gguf", base, force=True)
    dest = scratch / "merged.gguf"
    quantize(base, dest, "f32", adapters=[scratch / "peft"], force=True, verify=False, progress=False)
    return dest


def compared(
    peer: Peer, passage: Passage, base: Path, case: str, size: float, scratch: Path, *, merging: bool
) -> Iterator[tuple[str, Agreement, float]]:
    """How pymixtral has the adapter, what the two agree in on the GGUF file `base`, and the mean divergence of
    the adapted model from it.
    """
    with Mixtral(base, n_ctx=passage.n_ctx, n_threads=peer.n_threads) as model:
        config = replace(model.config, name="tiny")
        adapter, file = make(config, case, size), scratch / "adapter.gguf"
        gguf_writer.write(adapter, config, file, force=True)
        before = log_softmax(passage.logits(model).reshape(-1, config.n_vocab))
        after = log_softmax(passage.logits(model, file).reshape(-1, config.n_vocab))
    changed = float((np.exp(before) * (before - after)).sum(axis=1).mean())
    del before, after
    yield "beside it", agreement(peer, passage, base, base, scratch, our_adapter=file, their_adapter=file), changed
    if merging:
        ours = merged(base, adapter, config, scratch)
        yield "merged", agreement(peer, passage, ours, base, scratch, their_adapter=file), changed


def show(model: Path, case: str, how: str, found: Agreement, changed: float) -> None:
    here, there = (found.exact_kl[engine] for engine in ("pymixtral", "llama.cpp"))
    print(
        f"| {model.stem} | {case} | {how} | {changed:.3f} | {found.kl:.2e} | {found.top1:.2%} | {here:.2e} | "
        f"{there:.2e} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-f", "--file", type=Path, required=True, help="a text")
    parser.add_argument("--checkpoint", type=Path, default=Path("tests/data/tiny-mixtral"), help="of a Mixtral")
    parser.add_argument("-m", "--model", type=Path, action="append", help="GGUF files of Mixtrals, instead of it")
    parser.add_argument("--only", action="append", choices=CASES, help="cases")
    parser.add_argument("--size", type=float, default=SIZE, help="standard deviation of an element of a change")
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter that has llama-cpp-python")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--windows", type=int, default=8)
    given = parser.parse_args()
    peer, passage = Peer(given.peer_python, given.threads), Passage(given.file.read_text(), 256, given.windows)
    print("| model | adapter | in pymixtral | changed (KL) | KL | top-1 | KL from exact: pymixtral | llama.cpp |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        models = given.model or [scratch / "f32.gguf"]
        if not given.model:
            quantize(given.checkpoint, models[0], "f32", progress=False)
        for model in models:
            show(model, "none", "", agreement(peer, passage, model, model, scratch), 0)
            for case in given.only or CASES:
                for how, found, changed in compared(
                    peer, passage, model, case, given.size, scratch, merging=not given.model
                ):
                    show(model, case, how, found, changed)


if __name__ == "__main__":
    main()
