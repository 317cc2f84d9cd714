"""llama.cpp's part of interoperation.py, one job a process: what breaks llama.cpp breaks this
process alone.

    python interoperation_peer.py {quantize,open,logits} < JOB

JOB is JSON with the arguments of the function of that name. A line of JSON answers; a status other
than 0, with the reason on standard error, says that llama.cpp refuses. It runs under an interpreter
that has llama-cpp-python and needs nothing of pymixtral.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import numpy as np
from engines import LlamaCpp, print_errors
from perplexity_peer import logits_of, tokenized


def quantize(source: str, dest: str, kind: int, n_threads: int, imatrix: str | None) -> dict[str, Any]:
    """Writes GGUF `source` as `dest`. kind: a number of llama_ftype. imatrix: an .npz of mean
    squares, a float32 vector for each tensor.
    """
    import llama_cpp

    log = llama_cpp.llama_log_callback(print_errors)  # C keeps the pointer
    llama_cpp.llama_log_set(log, None)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = kind, n_threads
    values: dict[str, Any] = dict(np.load(imatrix)) if imatrix else {}
    entry = llama_cpp.llama_model_imatrix_data
    entries = (entry * (len(values) + 1))()  # one without a name ends it
    for i, (name, means) in enumerate(values.items()):
        entries[i] = entry(name.encode(), means.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), means.size)
    if values:
        params.imatrix = entries
    status = llama_cpp.llama_model_quantize(source.encode(), dest.encode(), ctypes.byref(params))
    if status:
        raise SystemExit(f"llama_model_quantize: status {status}")
    return {}


def opened(model: str, n_threads: int) -> dict[str, Any]:
    """What llama.cpp is, if it opens the file."""
    return LlamaCpp(model, n_threads, 256).about


def logits(
    model: str, windows: str, first: int, out: str, n_threads: int, text: str, adapter: str | None = None
) -> dict[str, Any]:
    """The logits after windows[:, first:-1] as float32 .npy [windows, scored, n_vocab]. windows:
    int32 .npy [windows, n_ctx]; adapter: GGUF file of an adapter.
    """
    tokens = np.load(windows)
    engine = LlamaCpp(model, n_threads, tokens.shape[1], adapter=adapter)
    shape = (*tokens[:, first:-1].shape, engine.n_vocab)
    rows = np.lib.format.open_memmap(out, "w+", np.float32, shape)
    for i, window in enumerate(tokens):
        rows[i] = logits_of(engine, window[:-1], first)
    rows.flush()
    return {"ids": tokenized(engine, text.encode()), "about": engine.about}


if __name__ == "__main__":
    print(json.dumps({"quantize": quantize, "open": opened, "logits": logits}[sys.argv[1]](**json.load(sys.stdin))))
