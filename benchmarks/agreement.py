"""How far pymixtral and llama.cpp agree on one GGUF file: both engines' logits, and the exact ones.

Both compute the same windows of a text, caches in f16; the second half of each window is compared.
The exact logits are those of the file's weights dequantized to f32, activations and cache f32 too,
computed by pymixtral. Neither engine computes them: each rounds activations in its own way. The one
nearer to them is the more exact one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pymixtral import Mixtral
from pymixtral.arrays import F32, F64, I32
from pymixtral.evaluation.base import log_softmax
from pymixtral.evaluation.windows import Windows
from pymixtral.files.gguf import GGUFFile
from pymixtral.model.config import ModelConfig
from pymixtral.model.weights import load_weights
from pymixtral.quantize import quantize

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.ggufs import is_mapped

TOP1, KL, MARGIN = 0.99, 2e-3, 0.1
"""Bounds: the least part of positions with the same best token, the largest mean divergence in
nats, and how near llama.cpp's two best logits lie where the best tokens differ.
"""

_PEER = Path(__file__).resolve().parent / "interoperation_peer.py"
_ROWS = 64  # at a time in float64


class RefusedError(Exception):
    """What llama.cpp says to a file that it does not open or write."""


@dataclass(frozen=True)
class Peer:
    """llama.cpp under `python`, an interpreter that has llama-cpp-python."""

    python: str
    n_threads: int

    def __call__(self, job: str, **arguments: Any) -> dict[str, Any]:
        """Does a job of interoperation_peer.py. Raises RefusedError."""
        asked = json.dumps({**arguments, "n_threads": self.n_threads}, default=str)
        done = subprocess.run([self.python, str(_PEER), job], input=asked, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [text for text in done.stderr.splitlines() if text.strip(" =")] or [f"status {done.returncode}"]
            raise RefusedError(re.sub(r"^\w+: ", "", lines[0]))  # llama.cpp says the name of the function first
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer


@dataclass(frozen=True)
class Passage:
    """The text, cut into n_windows of n_ctx tokens, of which those from `first` on are scored."""

    text: str
    n_ctx: int
    n_windows: int

    @property
    def first(self) -> int:
        return self.n_ctx // 2

    def windows(self, model: Mixtral) -> I32:
        """int32 [n_windows, n_ctx], each beginning with the begin-of-text token."""
        bos = next(iter(model.tokenize("")), None)  # if the model wants one
        tokens = np.array(model.tokenize(self.text), np.int32)
        return np.array(list(Windows.cut(tokens, self.n_ctx, None, self.n_windows, bos, longest=self.n_ctx)))

    def logits(self, model: Mixtral, adapter: Path | None = None) -> F32:
        """[n_windows, scored, n_vocab]; adapter: is used beside the model."""
        used = {}
        if adapter:
            model.load_adapter("used", adapter)
            used = {"adapter": "used"}
        return np.array([model.logits(window[:-1], first=self.first, **used) for window in self.windows(model)])


@dataclass(frozen=True)
class Agreement:
    """Of the passage's predictions.

    mapped: every matrix is the file's own memory. same_tokens: of the text. top1, margin, kl: as
    their bounds; n_beyond: of n_positions, those beyond MARGIN. For each engine, under "pymixtral"
    and "llama.cpp": perplexity (also "exact"), exact_kl: divergence of its predictions from the
    exact ones, exact_top1: the part with their best token.
    """

    mapped: bool
    same_tokens: bool
    top1: float
    margin: float
    n_beyond: int
    kl: float
    perplexity: dict[str, float]
    exact_kl: dict[str, float]
    exact_top1: dict[str, float]
    n_positions: int

    @property
    def beyond(self) -> tuple[str, ...]:
        """The bounds that do not hold."""
        holds = {"top-1": self.top1 >= TOP1, "margin": self.margin <= MARGIN, "KL": self.kl < KL}
        return tuple(name for name, held in holds.items() if not held)

    @property
    def nearer(self) -> str:
        """The engine nearer to the exact logits."""
        return min(self.exact_kl, key=self.exact_kl.__getitem__)


def agreement(
    peer: Peer,
    passage: Passage,
    ours: Path,
    theirs: Path,
    scratch: Path,
    *,
    our_adapter: Path | None = None,
    their_adapter: Path | None = None,
) -> Agreement:
    """Of pymixtral on the file `ours` and llama.cpp on `theirs`, which may be the same. scratch: a
    directory for large files. our_adapter, their_adapter: used beside the file. Raises RefusedError if llama.cpp
    does not open its file, what Mixtral() raises for the other.
    """
    with Mixtral(ours, n_ctx=passage.n_ctx, n_threads=peer.n_threads) as model:
        windows, ids = passage.windows(model), model.tokenize(passage.text)
        np.save(scratch / "windows.npy", windows)
        out = scratch / "logits.npy"
        files = {"model": theirs, "windows": scratch / "windows.npy", "out": out, "adapter": their_adapter}
        answer = peer("logits", **files, first=passage.first, text=passage.text)
        logits = {"pymixtral": passage.logits(model, our_adapter), "llama.cpp": np.load(out, mmap_mode="r")}
    exact = scratch / "exact.gguf"
    quantize(ours, exact, "f32", verify=False, progress=False)
    with Mixtral(exact, n_ctx=passage.n_ctx, n_threads=peer.n_threads, kv_type="f32") as model:
        logits["exact"] = passage.logits(model, our_adapter)
    exact.unlink()
    return _measured(windows[:, passage.first + 1 :], logits, mapped=_mapped(ours), same_tokens=answer["ids"] == ids)


def _mapped(path: Path) -> bool:
    with GGUFFile(path) as file:
        return is_mapped(file, load_weights(file, ModelConfig.from_gguf(file)))


def _measured(targets: I32, logits: dict[str, F32], *, mapped: bool, same_tokens: bool) -> Agreement:
    """targets: [n_windows, scored]; logits: [n_windows, scored, n_vocab]."""
    columns: dict[str, list[F64]] = {}
    flat = {name: values.reshape(-1, values.shape[-1]) for name, values in logits.items()}
    for begin in range(0, targets.size, _ROWS):
        for name, values in _compared(
            targets.reshape(-1)[begin : begin + _ROWS],
            {name: rows[begin : begin + _ROWS] for name, rows in flat.items()},
        ).items():
            columns.setdefault(name, []).append(values)
    mean = {name: float(np.concatenate(parts).mean()) for name, parts in columns.items()}
    margins = np.concatenate(columns["margin"])
    engines = ("pymixtral", "llama.cpp")
    return Agreement(
        mapped=mapped,
        same_tokens=same_tokens,
        top1=mean["top1"],
        margin=float(margins.max()),
        n_beyond=int((margins > MARGIN).sum()),
        kl=mean["kl"],
        perplexity={name: float(np.exp(mean[f"score {name}"])) for name in logits},
        exact_kl={name: mean[f"kl {name}"] for name in engines},
        exact_top1={name: mean[f"top1 {name}"] for name in engines},
        n_positions=targets.size,
    )


def _compared(targets: I32, logits: dict[str, F32]) -> dict[str, F64]:
    """Each column for each row of logits [rows, n_vocab]."""
    log_p = {name: log_softmax(values) for name, values in logits.items()}
    best = {name: values.argmax(axis=1) for name, values in logits.items()}
    same = best["pymixtral"] == best["llama.cpp"]
    second, first = np.partition(logits["llama.cpp"], -2, axis=1)[:, -2:].T
    found = {
        "top1": same,
        "margin": np.where(same, 0, first - second),
        "kl": _kl(log_p["llama.cpp"], log_p["pymixtral"]),
        **{f"kl {name}": _kl(log_p["exact"], log_p[name]) for name in log_p},
        **{f"top1 {name}": best[name] == best["exact"] for name in best},
        **{f"score {name}": -values[np.arange(len(targets)), targets] for name, values in log_p.items()},
    }
    return {name: values.astype(np.float64) for name, values in found.items()}


def _kl(log_p: F64, log_q: F64) -> F64:
    """Divergence in nats of q from p, both [rows, n_vocab]; [rows]."""
    total: F64 = np.einsum("ij,ij->i", np.exp(log_p), log_p - log_q)
    return total
