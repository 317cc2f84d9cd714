"""Perplexity by pymixtral beside llama.cpp's (llama-cpp-python) on the same files, tokens and
windows.

    python benchmarks/perplexity_peer.py -f book.txt -c 256 mixtral-q8_0.gguf mixtral-q4_0.gguf

llama.cpp, in a process of its own, computes the logits of every window that
pymixtral.evaluation.perplexity describes, from pymixtral's token ids, and its predictions become a
base (pymixtral.evaluation.base) that pymixtral is compared with: both perplexities, their ratio
with its standard error from the differences token by token, the divergence of pymixtral's
predictions from llama.cpp's, and how often both find the same token most likely. Both cache keys
and values in f16. Bases are temporary files, of 2 bytes for each token scored and of the
vocabulary.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from engines import BATCH, LlamaCpp
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]


# --- The peer's process -------------------------------------------------------------------------------------------


def logits_of(engine: LlamaCpp, tokens: NDArray[np.int32], first: int) -> NDArray[np.float32]:
    """float32 [n - first, n_vocab]: the logits after tokens[first:], int32 [n]."""
    api = engine.api
    engine.clear()
    rows = []
    batch = api.llama_batch_init(BATCH, 0, 1)
    try:
        for begin in range(0, len(tokens), BATCH):
            piece = tokens[begin : begin + BATCH]
            batch.n_tokens = len(piece)
            for i, token in enumerate(piece):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = int(token), begin + i, 1, 0
                batch.logits[i] = begin + i >= first
            status = api.llama_decode(engine.context, batch)
            if status:
                raise SystemExit(f"llama_decode: status {status}")
            n = min(len(piece), begin + len(piece) - first)
            if n > 0:
                rows.append(np.ctypeslib.as_array(api.llama_get_logits(engine.context), (n, engine.n_vocab)).copy())
    finally:
        api.llama_batch_free(batch)
    return np.concatenate(rows)


def tokenized(engine: LlamaCpp, text: bytes) -> list[int]:
    """The text's ids as llama.cpp finds them."""
    ids = (engine.api.llama_token * (len(text) + 8))()
    vocab = engine.api.llama_model_get_vocab(engine.api.llama_get_model(engine.context))
    n = engine.api.llama_tokenize(vocab, text, len(text), ids, len(ids), True, False)
    return list(ids[:n])


def work(model: str, n_threads: int, job: Path, base: Path) -> None:
    """Writes the peer's base for the windows in `job`, and a line of JSON about the peer."""
    from pymixtral.evaluation.base import log_softmax, writing_base
    from pymixtral.evaluation.windows import Windows

    with np.load(job) as saved:
        numbers = {name: int(saved[name]) for name in ("n_ctx", "step", "n_scored", "n_windows", "bos")}
        bos = numbers.pop("bos")
        windows = Windows(tokens=saved["tokens"], bos=None if bos < 0 else bos, **numbers)
        text, ids = saved["text"].tobytes(), saved["ids"].tolist()
    engine = LlamaCpp(model, n_threads, windows.n_ctx)
    with writing_base(base, windows, engine.n_vocab) as writer:
        for window in windows:
            targets = window[-windows.n_scored :]
            log_p = log_softmax(logits_of(engine, window[:-1], windows.n_ctx - 1 - windows.n_scored))
            writer.write(log_p, -log_p[np.arange(len(targets)), targets])
    print(json.dumps({**engine.about, "same_tokens": tokenized(engine, text) == ids}))


# --- This process -------------------------------------------------------------------------------------------------


def compare(model: Path, text: str, given: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Both engines' figures for one file."""
    import pymixtral
    from pymixtral.evaluation.perplexity import perplexity
    from pymixtral.evaluation.windows import Windows

    job, base = directory / "job.npz", directory / "peer.base"
    with pymixtral.Mixtral(model, n_ctx=given.context, n_threads=given.threads) as engine:
        ids, start = engine.tokenize(text), engine.tokenize("")
        bos = start[0] if start else None
        windows = Windows.cut(
            np.array(ids, np.int32), given.context, given.stride, given.windows, bos, longest=given.context
        )
        fields = {name: getattr(windows, name) for name in ("tokens", "n_ctx", "step", "n_scored", "n_windows")}
        np.savez(job, **fields, bos=-1 if bos is None else bos, text=np.frombuffer(text.encode(), np.uint8), ids=ids)
        command = [
            given.peer_python,
            __file__,
            "--work",
            str(job),
            "--base",
            str(base),
            "-t",
            str(given.threads),
            str(model),
        ]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
        )
        if done.returncode:
            raise SystemExit(f"llama-cpp-python ended with status {done.returncode} under {given.peer_python}")
        result = perplexity(
            engine, ids, n_ctx=given.context, stride=given.stride, n_windows=given.windows, kl_against=base
        )
    base.unlink()
    assert result.kl
    kl = result.kl
    return {
        "model": model.name,
        "pymixtral": result.perplexity,
        "standard_error": result.standard_error,
        "peer": kl.base_perplexity,
        "ratio": kl.ratio,
        "ratio_error": kl.ratio_error,
        "kl_mean": kl.mean,
        "kl_error": kl.standard_error,
        "kl_p99": kl.p99,
        "kl_maximum": kl.maximum,
        "top1_agreement": kl.top1_agreement,
        "n_tokens": result.n_tokens,
        "n_windows": result.n_windows,
        "about_peer": json.loads(done.stdout.splitlines()[-1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Perplexity by pymixtral beside llama.cpp.")
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="GGUF files that both engines run")
    parser.add_argument("-f", "--file", type=Path, help="the text, UTF-8")
    parser.add_argument("-c", "--context", type=int, default=512, help="tokens of a window (512)")
    parser.add_argument("--stride", type=int, help="move the window by so many tokens and score its last ones")
    parser.add_argument("-n", "--windows", type=int, help="only the first so many windows")
    parser.add_argument(
        "-t", "--threads", type=int, default=os.cpu_count() or 1, help="threads of each engine (one per CPU)"
    )
    parser.add_argument(
        "--peer-python",
        default=sys.executable,
        metavar="PATH",
        help="Python interpreter of an environment with the [peers] extra (this one)",
    )
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(str(given.models[0]), given.threads, given.work, given.base)
        return
    if not given.file:
        parser.error("expected -f FILE")
    text = given.file.read_text("utf-8").removesuffix("\n")
    print(f"{'':24} {'pymixtral':>10} {'llama.cpp':>10}  {'ratio':19}  {'KL, mean':8}  same most likely")
    rows = []
    for model in given.models:
        with tempfile.TemporaryDirectory() as directory:
            row = compare(model, text, given, Path(directory))
        rows.append(row)
        ratio = f"{row['ratio']:.5f} ± {row['ratio_error']:.5f}"
        figures = f"{row['pymixtral']:10.4f} {row['peer']:10.4f}  {ratio}  {row['kl_mean']:.6f}"
        print(f"{row['model']:24} {figures}  {row['top1_agreement']:.2%}", flush=True)
    stride = f", {given.stride} apart" if given.stride else ""
    peer = rows[0]["about_peer"]["name"]
    print(f"\n{rows[0]['n_tokens']} tokens scored in {rows[0]['n_windows']} windows of {given.context}{stride}; {peer}")
    if not all(row["about_peer"]["same_tokens"] for row in rows):
        print("llama.cpp's own tokens of the text are others.")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
