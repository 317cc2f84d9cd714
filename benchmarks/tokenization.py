"""Our byte-level tokenizer beside llama.cpp's and the package tokenizers, on real vocabularies.

    python benchmarks/tokenization.py GGUF ... [--texts 3000] [-f TEXT]

A file needs no tensors: llama.cpp's models/ggml-vocab-*.gguf will do. Of each file it counts the
texts whose ids differ, in three kinds of text: the book and the programs of this repository, hard
texts (tests/support/bpe.py), and any characters of Unicode. Then it takes the times of TEXT, first
with an empty cache of pieces, then again. llama.cpp needs llama-cpp-python, here or in the
environment of the interpreter that PYMIXTRAL_PEER_PYTHON names; without it, it is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import unicodedata
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Oracle

from pymixtral.files.gguf import GGUFFile
from pymixtral.text.pretokenizers import PRE_TOKENIZERS
from pymixtral.text.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.bpe import CORPUS, SPLITS, strings

PYTHON = os.environ.get("PYMIXTRAL_PEER_PYTHON") or (sys.executable if find_spec("llama_cpp") else None)


def texts(n: int) -> dict[str, list[str]]:
    g = np.random.Generator(np.random.PCG64(11))
    assigned = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    cuts = []
    for _ in range(n):
        text = CORPUS[g.integers(len(CORPUS))]
        begin = int(g.integers(len(text)))
        cuts.append(text[begin : begin + int(g.integers(1, 400))])
    any_characters = []
    for _ in range(n):
        block, width = int(g.integers(len(assigned))), int(g.choice([20, 300, len(assigned)]))
        some = [assigned[(block + int(i)) % len(assigned)] for i in g.integers(0, width, g.integers(1, 30))]
        any_characters.append("".join(c + ("", "", "", "", "", " ", "  ", "'s")[g.integers(8)] for c in some))
    return {"book and code": cuts, "hard": [*strings(n, seed=5)], "any Unicode": any_characters}


def oracle_of(metadata: dict[str, Any], pre: str) -> Oracle:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    same = next(name for name in SPLITS if PRE_TOKENIZERS[name].pattern == PRE_TOKENIZERS[pre].pattern)
    oracle = Oracle(
        models.BPE(
            {token: i for i, token in enumerate(tokens)}, merges, ignore_merges=PRE_TOKENIZERS[pre].ignore_merges
        )
    )
    oracle.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[same]),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    added = [token for token, kind in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True) if kind == 4]
    oracle.add_tokens(added)
    return oracle


def peer_of(path: Path, some: Sequence[str]) -> tuple[list[list[int]], float]:
    program = Path(__file__).resolve().parent / "tokenization_peer.py"
    done = subprocess.run(
        [str(PYTHON), str(program), str(path)], input=json.dumps(some), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"llama.cpp: {done.stderr.strip()[-300:]}")
    answer = json.loads(done.stdout)
    return answer["ids"], answer["seconds"]


def compare(path: Path, kinds: dict[str, list[str]], long: str) -> None:
    with GGUFFile(path) as file:
        metadata: dict[str, Any] = dict(file.metadata)
    pre = metadata.get("tokenizer.ggml.pre", "default")
    begin = time.perf_counter()
    ours = Tokenizer.from_metadata(metadata, path.name)
    print(f"{path.name} ({pre}, {ours.n_vocab} tokens): opened in {time.perf_counter() - begin:.2f} s")
    oracle = oracle_of(metadata, pre)
    for kind, some in kinds.items():
        found = [ours.encode(text, add_bos=False) for text in some]
        parts = [f"  {kind}: {len(some)} texts, {sum(map(len, found))} tokens"]
        others = {"tokenizers": [oracle.encode(text, add_special_tokens=False).ids for text in some]}
        if PYTHON:
            others["llama.cpp"] = peer_of(path, some)[0]
        for name, answers in others.items():
            different = [i for i, ids in enumerate(answers) if ids != found[i]]
            parts.append(f"{name} differs in {len(different)}")
            if different:
                parts[-1] += (
                    f" (such as {shortest(some[different[0]], found[different[0]], answers[different[0]], ours)})"
                )
        print(", ".join(parts))
    ours = Tokenizer.from_metadata(metadata, path.name)
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        ours.encode(long)
        times.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    oracle.encode(long)
    times.append(time.perf_counter() - begin)
    names = ["cold", "warm", "tokenizers"]
    if PYTHON:
        times.append(peer_of(path, [long])[1])
        names.append("llama.cpp")
    size = len(long.encode()) / 1e6
    print(f"  {size:.1f} MB: " + ", ".join(f"{name} {size / t:.2f} MB/s" for name, t in zip(names, times, strict=True)))


def shortest(text: str, ours: list[int], theirs: list[int], tokenizer: Tokenizer) -> str:
    """The place where ids differ first."""
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    at = len(tokenizer.decode(ours[:same]))
    return ascii(text[max(0, at - 2) : at + 6])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path, nargs="+")
    parser.add_argument("--texts", type=int, default=3000, help="of each kind")
    parser.add_argument("-f", "--file", type=Path, help="the text to take the time of (the repository's)")
    args = parser.parse_args()
    long = args.file.read_text(encoding="utf-8") if args.file else "".join(CORPUS)
    kinds = texts(args.texts)
    for path in args.gguf:
        compare(path, kinds, long)
