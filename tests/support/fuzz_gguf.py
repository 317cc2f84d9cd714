"""Fuzzes everything that reads a model file, by hand:  python tests/support/fuzz_gguf.py SECONDS [SEED]

Mutations of valid files (both layouts, every weight type, with a tokenizer) go through GGUFFile,
ModelConfig, load_weights, Tokenizer and a few tokens of the model. Allowed are pymixtral's own
exceptions, with a message of one line, within two seconds and 256 MB of memory. Anything else is
printed and its input kept as fuzz-NNN.gguf; a crash leaves its input in the file named at the
start.
"""

from __future__ import annotations

import faulthandler
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from pymixtral import ops
from pymixtral.errors import PymixtralError
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.types import block_weights
from pymixtral.model.config import ModelConfig
from pymixtral.model.forward import Model
from pymixtral.model.weights import load_weights
from pymixtral.text.bpe import ALPHABET
from pymixtral.text.tokenizer import Tokenizer
from support.ggufs import finish
from support.variants import TYPES, model_matrix

N_VOCAB, HIDDEN, FFN, N_EXPERTS, N_LAYERS = 270, 256, 256, 3, 2
SECONDS_EACH, BYTES_MORE = 2.0, 1 << 28
NUMBERS = [
    0,
    1,
    2,
    3,
    7,
    255,
    256,
    1 << 31,
    (1 << 31) - 1,
    (1 << 32) - 1,
    1 << 32,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
    0x7FC00000,
    0x7F800000,
]
KEYS = [b"llama.", b"tokenizer.", b"general.", b".weight", b"split."]


def base(path: Path, seed: int, split: bool) -> bytes:
    """A small model whose matrices have types in turn; with split experts a byte-level tokenizer too."""
    writer = GGUFWriter(path, "llama")
    for key, value in (
        ("block_count", N_LAYERS),
        ("context_length", 64),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", FFN),
    ):
        writer.add_uint32(f"llama.{key}", value)
    for key, value in (
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("rope.dimension_count", 64),
        ("vocab_size", N_VOCAB),
    ):
        writer.add_uint32(f"llama.{key}", value)
    writer.add_uint32("llama.expert_count", N_EXPERTS)
    writer.add_uint32("llama.expert_used_count", 2)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 1e4)
    if split:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("llama-bpe")
        pairs = ["t h", "th e", "r e", "s t", "re st", "e n", "e r", "a n", "i n", "o n", "\u0120 the"]
        writer.add_token_list(["<unk>", "<s>", "</s>", *ALPHABET, *(pair.replace(" ", "") for pair in pairs)])
        writer.add_token_merges(pairs)
        writer.add_token_types([2, 3, 3, *[1] * 267])
    else:
        writer.add_tokenizer_model("llama")
        words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", *"etaoinshrd"]
        writer.add_token_list(words)
        writer.add_token_scores([-float(i) for i in range(N_VOCAB)])
        writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * 11])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(True)
    made = seed

    def add(name: str, rows: int, cols: int) -> None:
        nonlocal made
        made += 1
        kind = TYPES[made % len(TYPES)]
        writer.add_tensor(name, model_matrix(kind, rows, cols, made).data, raw_dtype=kind)

    add("token_embd.weight", N_VOCAB, HIDDEN)
    add("output.weight", N_VOCAB, HIDDEN)
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for i in range(N_LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(HIDDEN, np.float32))
        for name, rows in (
            ("attn_q", HIDDEN),
            ("attn_k", 128),
            ("attn_v", 128),
            ("attn_output", HIDDEN),
            ("ffn_gate_inp", N_EXPERTS),
        ):
            add(f"blk.{i}.{name}.weight", rows, HIDDEN)
        for name in ("gate", "up", "down"):
            if split:
                for e in range(N_EXPERTS):
                    add(f"blk.{i}.ffn_{name}.{e}.weight", FFN, HIDDEN)
            else:
                made += 1
                kind = TYPES[made % len(TYPES)]
                merged = model_matrix(kind, N_EXPERTS * FFN, HIDDEN, made).data.reshape(N_EXPERTS, FFN, -1)
                writer.add_tensor(f"blk.{i}.ffn_{name}_exps.weight", merged, raw_dtype=kind)
    finish(writer)
    assert block_weights(GGMLQuantizationType.Q4_K) == HIDDEN
    return path.read_bytes()


class Mutator:
    def __init__(self, bases: list[bytes], seed: int) -> None:
        self.bases = bases
        self.g = np.random.Generator(np.random.PCG64(seed))
        self.header = max(data.find(b"blk.1.ffn_norm.weight") for data in bases) + 4000
        self.near = [[at for key in KEYS for at in self._all(data, key)] for data in bases]

    def _all(self, data: bytes, key: bytes) -> list[int]:
        found, at = [], data.find(key, 0, self.header)
        while at >= 0:
            found.append(at)
            at = data.find(key, at + 1, self.header)
        return found

    def next(self) -> bytes:
        g = self.g
        which = int(g.integers(len(self.bases)))
        data = bytearray(self.bases[which])
        for _ in range(int(g.choice([1, 1, 1, 2, 3, 8]))):
            where = int(g.integers(10))
            if where < 5:  # beside something that has a name
                at = self.near[which][g.integers(len(self.near[which]))] + int(g.integers(-24, 60))
            elif where < 7:
                at = int(g.integers(0, 64))
            elif where < 9:
                at = int(g.integers(0, self.header))
            else:
                at = int(g.integers(0, len(data) + 1))
            at = min(max(at, 0), max(len(data) - 1, 0))
            how = int(g.choice([0, 0, 0, 2, 2, 3, 3, 3, 3, 3, 5, 6, 7, 8]))  # few that move what follows
            if how == 0:
                data[at : at + 1] = bytes([int(g.integers(256))])
            elif how == 2 and len(data):
                data[at : at + 1] = bytes([data[min(at, len(data) - 1)] ^ 1 << int(g.integers(8))])
            elif how == 3:
                size = int(g.choice([1, 2, 4, 8]))
                data[at : at + size] = (int(g.choice(np.array(NUMBERS, object))) & (1 << 8 * size) - 1).to_bytes(
                    size, "little"
                )
            elif how == 5:
                del data[at : at + int(g.integers(1, 40))]
            elif how == 6:
                data[at:at] = g.bytes(int(g.integers(1, 40)))
            elif how == 7:
                begin = int(g.integers(0, self.header))
                data[at : at + 30] = self.bases[g.integers(len(self.bases))][begin : begin + int(g.integers(1, 60))]
            elif g.integers(4) == 0:
                del data[at:]
        return bytes(data)


def run(path: Path) -> str:
    """How far a file gets: the name of an allowed error, or "ran"."""
    with GGUFFile(path) as file:
        config = ModelConfig.from_gguf(file)
        weights = load_weights(file, config)
        tokenizer = Tokenizer.from_metadata(file.metadata, file.path)
        ids = tokenizer.encode("the\u00e9 </s> rest", parse_special=True)[:4]
        tokenizer.decode(ids)
        model = Model(weights, config, n_threads=1)
        try:
            cache = model.new_cache(8, "f16")
            tokens = np.minimum(np.array(ids or [0], np.int32), config.n_vocab - 1)
            model.logits(model.forward(tokens, [(cache.new_sequence(), len(tokens))], cache)[-1:])
        finally:
            model.close()
    return "ran"


def main(seconds: float, seed: int) -> int:
    directory = Path(tempfile.mkdtemp(prefix="fuzz-"))
    path = directory / "input.gguf"
    print(f"{ops.available_isas()[-1]}, seed {seed}, inputs in {path}", flush=True)
    bases = [base(directory / "base.gguf", 7 * i, split=bool(i % 2)) for i in range(6)]
    for data in bases:
        path.write_bytes(data)
        assert run(path) == "ran"
    mutator, results, findings = Mutator(bases, seed), Counter[str](), 0
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        path.write_bytes(mutator.next())
        began = time.monotonic()
        problem = ""
        try:
            results[run(path)] += 1
        except PymixtralError as error:
            results[type(error).__name__] += 1
            if "\n" in str(error) or len(str(error)) > 1000:
                problem = f"a message of {len(str(error))} characters: {error}"
        except BaseException:
            problem = traceback.format_exc()
        if time.monotonic() - began > SECONDS_EACH:
            problem = f"took {time.monotonic() - began:.1f} s"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if (peak - resident) * 1024 > BYTES_MORE:
            problem, resident = f"{(peak - resident) / 1024:.0f} MB of memory", peak
        if problem:
            findings += 1
            saved = Path(f"fuzz-{findings:03}.gguf").resolve()
            saved.write_bytes(path.read_bytes())
            print(f"{saved}: {problem}", flush=True)
    print(f"{sum(results.values()) + findings} inputs, {findings} findings; {dict(results.most_common())}")
    return 1 if findings else 0


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
