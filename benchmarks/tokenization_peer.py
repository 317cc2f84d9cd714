"""llama.cpp's part of tokenization.py, in a process of its own.

    python tokenization_peer.py GGUF < TEXTS

TEXTS is a JSON list. A line of JSON answers: the ids of each text, and the seconds that all took.
Names of control tokens are ordinary text. It runs under an interpreter that has llama-cpp-python and
needs nothing of pymixtral.
"""

from __future__ import annotations

import json
import sys
import time

from engines import print_errors


def main() -> None:
    """Answers for the file and the texts that are given."""
    import llama_cpp

    log = llama_cpp.llama_log_callback(print_errors)  # C keeps the pointer
    llama_cpp.llama_log_set(log, None)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), params)
    if not model:
        raise SystemExit(f"{sys.argv[1]}: llama.cpp refuses it")
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    answers, seconds = [], 0.0
    for text in json.load(sys.stdin):
        data = text.encode()
        ids = (llama_cpp.llama_token * (len(data) + 8))()
        begin = time.perf_counter()
        n = llama_cpp.llama_tokenize(vocabulary, data, len(data), ids, len(ids), False, False)
        seconds += time.perf_counter() - begin
        if n < 0:
            raise SystemExit(f"llama_tokenize: {n} for a text of {len(data)} bytes")
        answers.append(ids[:n])
    print(json.dumps({"ids": answers, "seconds": seconds}))


if __name__ == "__main__":
    main()
