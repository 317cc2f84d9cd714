"""The engines that peers.py compares, each in a process of its own: what one leaves behind, threads
or memory, does not touch the other.

    python engines.py {pymixtral,llama-cpp-python} MODEL THREADS CONTEXT {f16,q8_0}

The process opens the model, writes a line of JSON that describes it, then answers each line of JSON
on standard input with one. Only the engine that is asked for is imported, and nothing else but
NumPy. Seconds are taken here, around the calls into the engine, so the pipes do not count.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol
from unittest import mock

import numpy as np
from numpy.typing import NDArray

BATCH = 512  # tokens of a prompt that are computed at once: the default of both engines

Tokens = NDArray[np.int32]


class Engine(Protocol):
    """A model opened, and one text in its cache. about: name, variant (the instruction sets in use)
    and what else the engine can tell. kept: how many tokens clear() leaves in the cache.
    """

    about: dict[str, Any]
    kept: int

    def clear(self) -> None:
        """Forgets the text but for its first `kept` tokens."""

    def feed(self, tokens: Tokens) -> NDArray[np.float32]:
        """Appends tokens, at most BATCH; the logits after the last one, float32 [n_vocab], valid
        until the next call.
        """


class PyMixtral:
    kept = 0

    def __init__(self, path: str, n_threads: int, n_ctx: int, kv_type: str = "f16") -> None:
        import pymixtral
        from pymixtral.files.gguf import GGUFFile
        from pymixtral.model.config import ModelConfig
        from pymixtral.model.forward import Model
        from pymixtral.model.weights import load_weights
        from pymixtral.text.tokenizer import Tokenizer

        begin = time.perf_counter()
        with GGUFFile(path) as file:
            config = ModelConfig.from_gguf(file)
            weights = load_weights(file, config)
            Tokenizer.from_metadata(
                file.metadata, path
            )  # not used, but llama.cpp's time to open has the vocabulary in it too
        self.model = Model(weights, config, n_threads=n_threads)
        self.cache = self.model.new_cache(n_ctx, kv_type)
        self.sequence = self.cache.new_sequence()
        self.about = {
            "open_seconds": time.perf_counter() - begin,
            "name": f"pymixtral {pymixtral.__version__}",
            "variant": self.model.context.isa,
            "n_vocab": config.n_vocab,
            "active_bytes": weights.active_bytes(config.n_experts_used),
        }

    def clear(self) -> None:
        self.sequence.truncate(self.kept)

    def feed(self, tokens: Tokens) -> NDArray[np.float32]:
        last = self.model.forward(
            tokens, [(self.sequence, len(tokens))], self.cache, rows=slice(len(tokens) - 1 or None, None)
        )
        logits: NDArray[np.float32] = self.model.logits(last)[0]
        return logits


class LlamaCpp:
    """Through llama-cpp-python's plain bindings of llama.h, so that only llama.cpp is timed.

    Its defaults (memory map, weights repacked where it has a faster layout, flash attention where
    it thinks it best), except for threads, the sizes of context and batch, and the cache's type.
    `adapter` is a GGUF file of a low-rank adapter.
    """

    kept = 0

    def __init__(
        self, path: str, n_threads: int, n_ctx: int, kv_type: str = "f16", *, adapter: str | None = None
    ) -> None:
        import llama_cpp

        self.api = llama_cpp
        self.log = llama_cpp.llama_log_callback(print_errors)  # C keeps the pointer
        llama_cpp.llama_log_set(self.log, None)
        llama_cpp.llama_backend_init()
        begin = time.perf_counter()
        model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if model is None:
            raise SystemExit(f"llama.cpp cannot open {path}")
        loaded = llama_cpp.llama_adapter_lora_init(model, adapter.encode()) if adapter else None
        if adapter and loaded is None:
            raise SystemExit(f"llama.cpp cannot open {adapter}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = n_threads
        params.type_k = params.type_v = {"f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0}[kv_type]
        self.context = llama_cpp.llama_init_from_model(model, params)
        if self.context is None:
            raise SystemExit(f"llama.cpp cannot make a context of {n_ctx} tokens for {path}")
        if loaded is not None:
            adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(loaded)
            if llama_cpp.llama_set_adapters_lora(self.context, adapters, 1, (ctypes.c_float * 1)(1.0)):
                raise SystemExit(f"llama.cpp cannot apply {adapter}")
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        seconds = time.perf_counter() - begin
        info = llama_cpp.llama_print_system_info().decode()
        self.about = {
            "open_seconds": seconds,
            "name": f"llama-cpp-python {llama_cpp.__version__}",
            "variant": ", ".join(
                part.split(" = ")[0].removeprefix("CPU : ") for part in info.split(" | ") if part.endswith(" = 1")
            ),
        }

    def clear(self) -> None:
        self.api.llama_memory_seq_rm(self.api.llama_get_memory(self.context), 0, self.kept, -1)

    def feed(self, tokens: Tokens) -> NDArray[np.float32]:
        ids = tokens.ctypes.data_as(ctypes.POINTER(self.api.llama_token))
        status = self.api.llama_decode(
            self.context, self.api.llama_batch_get_one(ids, len(tokens))
        )  # logits of the last token only
        if status:
            raise SystemExit(f"llama_decode: status {status}")
        return np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, -1), (self.n_vocab,))


def print_errors(level: int, text: bytes, _: object) -> None:
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        print(text.decode("utf-8", "replace"), end="", file=sys.stderr)


ENGINES: dict[str, Callable[[str, int, int, str], Engine]] = {"pymixtral": PyMixtral, "llama-cpp-python": LlamaCpp}


class TimedLibrary:
    """Stands in for cffi's lib; spans has when each call of a C function began and ended."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self.spans: list[tuple[float, float]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._lib, name)
        if not callable(found):
            return found

        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = found(*arguments)
            self.spans.append((begin, time.perf_counter()))
            return result

        setattr(self, name, timed)  # so that the next access comes here no more
        return timed

    def seconds(self, begin: float, end: float) -> float:
        """Time inside C functions between two readings of the clock; calls of one thread are counted."""
        return sum(min(b, end) - max(a, begin) for a, b in self.spans if b > begin and a < end)


@contextmanager
def timed_library() -> Iterator[TimedLibrary]:
    """Puts a TimedLibrary in the place of the library that the modules of pymixtral.ops call."""
    import pymixtral.ops.native

    library = TimedLibrary(pymixtral.ops.native.lib)
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("pymixtral.ops.") and hasattr(module, "lib"):
                stack.enter_context(mock.patch.object(module, "lib", library))
        yield library


def keep(engine: Engine, tokens: Tokens) -> dict[str, Any]:
    """Makes these tokens the beginning of every text to come."""
    engine.clear()
    for start in range(0, len(tokens), BATCH):
        engine.feed(tokens[start : start + BATCH])
    engine.kept = len(tokens)
    return {}


def prefill(engine: Engine, tokens: Tokens) -> dict[str, Any]:
    """Seconds from the cleared cache to the logits after the last token, and these logits."""
    engine.clear()
    begin = time.perf_counter()
    for start in range(0, len(tokens), BATCH):
        logits = engine.feed(tokens[start : start + BATCH])
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "logits": base64.b64encode(logits.tobytes()).decode()}


def decode(engine: Engine, prompt: Tokens, tokens: Tokens) -> dict[str, Any]:
    """Seconds to append tokens one at a time after a prompt, each with its logits."""
    engine.clear()
    engine.feed(prompt)
    begin = time.perf_counter()
    for i in range(len(tokens)):
        engine.feed(tokens[i : i + 1])
    return {"seconds": time.perf_counter() - begin}


def python_share(engine: Engine, prompt: Tokens, tokens: Tokens) -> dict[str, Any]:
    """decode() by pymixtral with its C calls timed one by one; python_seconds is the rest, clock
    readings and wrappers included.
    """
    with timed_library() as library:
        engine.clear()
        engine.feed(prompt)
        begin = time.perf_counter()
        for i in range(len(tokens)):
            engine.feed(tokens[i : i + 1])
        end = time.perf_counter()
    return {"seconds": end - begin, "python_seconds": end - begin - library.seconds(begin, end)}


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "keep": keep,
    "prefill": prefill,
    "decode": decode,
    "python_share": python_share,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="One engine, driven through pipes by peers.py.")
    parser.add_argument("engine", choices=list(ENGINES))
    parser.add_argument("model")
    parser.add_argument("threads", type=int)
    parser.add_argument("context", type=int)
    parser.add_argument("kv_type")
    given = parser.parse_args()
    engine = ENGINES[given.engine](given.model, given.threads, given.context, given.kv_type)
    print(json.dumps(engine.about), flush=True)
    for line in sys.stdin:
        command, arguments = json.loads(line)
        arrays = (np.array(argument, np.int32) for argument in arguments)
        print(json.dumps(COMMANDS[command](engine, *arrays)), flush=True)


if __name__ == "__main__":
    main()
