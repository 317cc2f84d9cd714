"""Fuzzes what reads checkpoints, importance matrices and bases, by hand:

    PYTHONPATH=tests python tests/support/fuzz_checkpoints.py SECONDS [SEED] [PARSER]...

Each parser gets SECONDS in a process of its own. What is allowed is as of fuzz_gguf.py. Inputs that
break the rules are kept as fuzz-PARSER-NNN.
"""

from __future__ import annotations

import base64
import contextlib
import faulthandler
import json
import multiprocessing
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pymixtral.arrays import F64
from pymixtral.errors import NonFiniteError, PymixtralError
from pymixtral.evaluation.base import BaseReader, log_softmax, writing_base
from pymixtral.evaluation.windows import Windows
from pymixtral.files import imatrix
from pymixtral.files.importance import Entry, ImportanceMatrix
from pymixtral.files.stored import Type
from pymixtral.quantize.sources import huggingface, mistral
from pymixtral.quantize.sources.safetensors import read_safetensors
from pymixtral.quantize.vocabulary.reading import read_vocabulary
from pymixtral.text.bpe import ALPHABET
from pymixtral.text.pretokenizers import PRE_TOKENIZERS, TEKKEN
from support.checkpoints import Shape, make_checkpoint, make_tensors, write_safetensors
from support.packed import Form, make_packed

SECONDS_EACH, BYTES_MORE = 2.0, 1 << 27
SHAPE = Shape(hidden=32, ffn=32, n_layers=1, n_heads=2, n_kv_heads=1, n_experts=2, n_vocab=300)
VALUES: list[bytes] = [
    *(b"null true false 0 1 2 3 -1 1.5 -0.0 1e999 1e-999 NaN -Infinity [] {} [1,2] [[1]]".split()),
    *(str(2**bits + more).encode() for bits in (8, 16, 31, 32, 63, 64) for more in (-1, 0, 1)),
    *(b"9" * 400, b"9" * 5000, b"[" * 3000, b"[" * 90 + b"]" * 90, b'{"a":{"a":{}}}', b'["<s>","</s>"]'),
    *(b'"" "a" "<s>" "\\ud800" "\\udc00\\ud800" "\\u0000" "a\\nb" "\\u2028" "../x" "/dev/zero" "\xff"'.split()),
    *(b'"' + b"x" * n + b'"' for n in (257, 5000, 70000)),
    *(b'"\\ud800.safetensors"', b'"a\\nb.safetensors"', b'"' + b"n" * 300 + b'.safetensors"'),
]
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[-\d][\d.eE+-]*|\w+|[][{}:,]')
_FLAT = re.compile(rb"\[[^][{}]*\]|\{[^][{}]*\}")


class Mutator:
    """Mutations of one valid file.

    Args:
        data: its bytes.
        json_end: where the JSON in it ends, which begins at `json_begin`; 0: there is none.
    """

    def __init__(self, data: bytes, seed: int, json_begin: int = 0, json_end: int = 0) -> None:
        self._data, self._g = data, random.Random(seed)
        self._begin, self._end = json_begin, json_end
        self._tokens = [match.span() for match in _TOKEN.finditer(data, json_begin, json_end)]
        # Scalars and names, and lists and objects without others inside.
        self._values = [(begin, end) for begin, end in self._tokens if data[begin : begin + 1] not in b"[]{}:,"]
        self._values += [match.span() for match in _FLAT.finditer(data, json_begin, json_end)]

    def next(self) -> bytes:
        """The file with a few changes."""
        g, data = self._g, self._data
        for _ in range(g.choice((1, 1, 1, 2, 3)) if self._tokens and g.random() < 0.85 else 0):
            data = self._spliced(data)
        grown = len(data) - len(self._data)
        for _ in range(g.choice((0, 0, 0, 1)) if data is not self._data else g.choice((1, 1, 2, 5))):
            data = self._changed(data)
        if self._begin and grown:  # the length before the JSON
            data = max(self._end - self._begin + grown, 0).to_bytes(8, "little") + data[8:]
        return data

    def _changed(self, data: bytes) -> bytes:
        """A few bytes changed, put in, or left out."""
        g = self._g
        at, size = g.randrange(min(g.choice((64, 400, len(data))), len(data)) or 1), g.choice((1, 1, 2, 4, 8))
        how = g.randrange(12)
        if how < 3:
            return data[:at] + g.randbytes(size) + data[at + size :]
        if how < 6:
            number = g.choice((0, 1, 2, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 0x7F800000, 0x7FC00000))
            return data[:at] + (number % 256**size).to_bytes(size, "little") + data[at + size :]
        if how < 8:
            return data[:at] + bytes(byte ^ 1 << g.randrange(8) for byte in data[at : at + size]) + data[at + size :]
        if how == 8:
            return data[:at] + g.randbytes(g.randrange(1, 40)) + data[at:]
        if how == 9:
            return data[:at] + data[at + g.randrange(1, 40) :]
        if how == 10:
            begin = g.randrange(len(data) + 1)
            return data[:at] + data[begin : begin + g.randrange(1, 60)] + data[at + size :]
        return data[:at]

    def _spliced(self, data: bytes) -> bytes:
        """A value, or a stretch of JSON, in place of another, about where it was in the valid file."""
        g = self._g
        i = g.randrange(len(self._tokens))
        begin, end = self._tokens[i]
        how = g.randrange(40)
        if how == 0:  # left out
            return data[:begin] + data[self._tokens[min(i + g.randrange(1, 6), len(self._tokens) - 1)][1] :]
        if how == 1:  # twice
            end = self._tokens[min(i + g.randrange(1, 12), len(self._tokens) - 1)][1]
            return data[:end] + b"," * g.randrange(2) + data[begin:end] + data[end:]
        begin, end = g.choice(self._values)
        if how < 10:
            other, stop = g.choice(self._values)
            return data[:begin] + self._data[other:stop] + data[end:]
        if how < 12:  # an entry twice
            return data[:begin] + self._data[begin:end] + b":1," + data[begin:]
        return data[:begin] + g.choice(VALUES) + data[end:]


def _vocabulary_files(directory: Path) -> None:
    """A tokenizer.json with all that may be beside it."""
    space = "\u2581"
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        space,
        *"abcdefgh",
        "ab",
        "cd",
        "abcd",
        space + "a",
    ]
    special = [{"id": i, "content": words[i], "special": True} for i in range(3)]
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": space}
    template = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    for name, values in {
        "tokenizer.json": {
            "added_tokens": [*special, {"id": len(words), "content": "<end>", "special": False}],
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": space}, escape]},
            "pre_tokenizer": None,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": template,
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
            },
            "model": {
                "type": "BPE",
                "unk_token": "<unk>",
                "byte_fallback": True,
                "vocab": {word: i for i, word in enumerate(words)},
                "merges": [["a", "b"], ["c", "d"], ["ab", "cd"], f"{space} a"],
            },
        },
        "tokenizer_config.json": {
            "add_bos_token": True,
            "add_eos_token": False,
            "add_prefix_space": None,
            "bos_token": "<s>",
            "eos_token": {"content": "</s>"},
            "additional_special_tokens": ["<end>", {"content": "x"}],
            "added_tokens_decoder": {
                "1": {"content": "<s>", "special": True},
                "275": {"content": "<x>", "special": False},
            },
            "chat_template": [{"name": "default", "template": "{{ bos_token }}"}],
        },
        "special_tokens_map.json": {
            "bos_token": "<s>",
            "unk_token": {"content": "<unk>"},
            "extra_special_tokens": {"a": "b"},
        },
        "added_tokens.json": {"<y>": 276, "<z>": 277},
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": [2, 276]},
    }.items():
        (directory / name).write_text(json.dumps(values))


def _byte_level(directory: Path) -> None:
    """A byte-level tokenizer.json."""
    words = ["<s>", "</s>", *ALPHABET, "ab", "cd", "abcd", "\u0120a"]
    values = {
        "added_tokens": [{"id": i, "content": words[i], "special": True} for i in range(2)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": PRE_TOKENIZERS["qwen2"].pattern},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        },
        "post_processor": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "ignore_merges": False,
            "vocab": {word: i for i, word in enumerate(words)},
            "merges": [["a", "b"], ["c", "d"], ["ab", "cd"], "\u0120 a"],
        },
    }
    (directory / "tokenizer.json").write_text(json.dumps(values))


def _tekken(directory: Path) -> None:
    tokens = [*(bytes([byte]) for byte in range(256)), b"ab", b"cd", b"abcd", b" a"]
    values = {
        "config": {"pattern": TEKKEN, "default_vocab_size": 263, "default_num_special_tokens": 4, "version": "v3"},
        "special_tokens": [
            {"rank": i, "token_str": name, "is_control": True} for i, name in enumerate(("<unk>", "<s>", "</s>"))
        ],
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for i, token in enumerate(tokens)
        ],
    }
    (directory / "tekken.json").write_text(json.dumps(values))


def _consolidated(directory: Path) -> None:
    tensors = {mistral.own_name(name): values for name, values in make_tensors(SHAPE, seed=1).items()}
    write_safetensors(directory / mistral.SINGLE, tensors)
    moe = {"num_experts": 2, "num_experts_per_tok": 2}
    values = {
        "dim": 32,
        "n_layers": 1,
        "head_dim": 16,
        "hidden_dim": 32,
        "n_heads": 2,
        "n_kv_heads": 1,
        "norm_eps": 1e-5,
    }
    (directory / "params.json").write_text(json.dumps({**values, "vocab_size": 300, "rope_theta": 1e6, "moe": moe}))


def _matrix(directory: Path) -> None:
    g = np.random.Generator(np.random.PCG64(0))
    entries = {f"blk.{i}.ffn_down_exps.weight": Entry(g.random((2, 32)), np.array([5.0, 9.0])) for i in range(2)}
    imatrix.write(ImportanceMatrix(entries, ["text"], 2, 512, "d"), directory / "m.gguf", force=True)
    names = [name.encode() for name in entries]
    parts = [len(name).to_bytes(4, "little") + name + np.array([3, 32], "<i4").tobytes() + bytes(128) for name in names]
    (directory / "m.dat").write_bytes(
        b"".join([(2).to_bytes(4, "little"), *parts, np.array([7, 4], "<i4").tobytes(), b"text"])
    )


WINDOWS = Windows.cut(np.arange(24, dtype=np.int32), 8, None, None, 1, 8)


def _base(directory: Path) -> None:
    with writing_base(directory / "base", WINDOWS, 40) as writer:
        for i in range(WINDOWS.n_windows):
            writer.write(_predictions(i), np.ones(WINDOWS.n_scored))


def _predictions(i: int) -> F64:
    return log_softmax(np.random.Generator(np.random.PCG64(i)).random((WINDOWS.n_scored, 40), np.float32))


def _compare(directory: Path) -> None:
    with BaseReader(directory / "base", WINDOWS, 40) as reader:
        for i in range(WINDOWS.n_windows):
            kl, _, scores = reader.compare(_predictions(i))
            assert np.isfinite(kl).all()
            assert np.isfinite(scores).all()


def _sums(path: Path) -> None:
    for name, entry in imatrix.read(path).entries.items():
        assert name
        assert np.isfinite(entry.sums).all()
        assert np.isfinite(entry.counts).all()


def _weights(directory: Path) -> None:
    for tensor in read_safetensors(directory / huggingface.SINGLE).values():
        tensor.raw()


def _checkpoint(shards: int) -> Callable[[Path], object]:
    return lambda directory: make_checkpoint(directory, SHAPE, seed=1, shards=shards)


def _packed(form: Form) -> Callable[[Path], object]:
    return lambda directory: make_packed(directory, SHAPE, form)


def _packed_weights(directory: Path) -> None:
    checkpoint = huggingface.read(directory)
    for tensor in checkpoint.tensors.values():
        tensor.floats()
        with contextlib.suppress(NonFiniteError):
            tensor.encoded(Type.Q4_1, slice(None))


_Parser = tuple[str, Callable[[Path], object], Callable[[Path], object]]
PARSERS: dict[str, _Parser] = {  # the file that is mutated, what makes it and those beside it, what reads them
    "safetensors": (huggingface.SINGLE, _checkpoint(1), _weights),
    "config": ("config.json", _checkpoint(1), huggingface.read),
    "params": ("params.json", _consolidated, mistral.read),
    "index": (huggingface.INDEX, _checkpoint(2), huggingface.read),
    "gptq": (huggingface.SINGLE, _packed(Form(32, 1, act_order=True)), _packed_weights),
    "awq": (huggingface.SINGLE, _packed(Form(32)), _packed_weights),
    "packed-config": ("config.json", _packed(Form(32, 1)), _packed_weights),
    "sentencepiece": ("tokenizer.model", _checkpoint(1), read_vocabulary),
    **{
        name.removesuffix(".json"): (name, _vocabulary_files, read_vocabulary)
        for name in (
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
            "generation_config.json",
        )
    },
    "byte-level": ("tokenizer.json", _byte_level, read_vocabulary),
    "tekken": ("tekken.json", _tekken, read_vocabulary),
    "imatrix-gguf": ("m.gguf", _matrix, lambda directory: _sums(directory / "m.gguf")),
    "imatrix-dat": ("m.dat", _matrix, lambda directory: _sums(directory / "m.dat")),
    "base": ("base", _base, _compare),
}


def fuzz(parser: str, seconds: float, seed: int) -> int:
    """Fuzzes one parser and prints a line of what came of it.

    Returns:
        The number of inputs that broke the rules.
    """
    directory = Path(tempfile.mkdtemp(prefix=f"fuzz-{parser}-"))
    name, make, run = PARSERS[parser]
    make(directory)
    run(directory)
    path = directory / name
    data = path.read_bytes()
    begin = 8 if name.endswith(".safetensors") else 0
    end = 8 + int.from_bytes(data[:8], "little") if begin else len(data) if name.endswith(".json") else 0
    mutator, results, places, slowest, most = Mutator(data, seed, begin, end), Counter[str](), Counter[str](), 0.0, 0
    first = resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        path.write_bytes(mutator.next())
        problem = place = ""
        began = time.monotonic()
        try:
            run(directory)
            results["read"] += 1
        except PymixtralError as error:
            results[type(error).__name__] += 1
            if len(str(error).splitlines()) > 1 or len(str(error)) > 1000:
                place = problem = f"a message of {len(str(error))} characters: {str(error)[:300]!r}"[:90]
        except BaseException as error:
            results["FINDING"] += 1
            problem = traceback.format_exc()
            place = f"{type(error).__name__} {traceback.extract_tb(error.__traceback__)[-1]}"
        took = time.monotonic() - began
        slowest = max(slowest, took)
        if took > SECONDS_EACH:
            place = problem = "took too long"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        most, grown, resident = max(most, peak - resident), peak - resident, peak
        if grown * 1024 > BYTES_MORE:
            place = problem = f"{grown // 1024} MB of memory"
        if problem:
            places[place] += 1
            if places[place] == 1:
                saved = Path(f"fuzz-{parser}-{len(places):03}").resolve()
                shutil.copy(path, saved)
                print(f"{saved}: {took:.1f} s: {problem}", flush=True)
    print(
        f"{parser}: {results.total()} inputs, {places.total()} findings in {len(places)} places, "
        f"slowest {slowest:.3f} s, memory {(resident - first) / 1024:.1f} MB more, "
        f"at once {most / 1024:.1f} MB; "
        f"{dict(results.most_common())}",
        flush=True,
    )
    shutil.rmtree(directory)
    return places.total()


def main(seconds: float, seed: int, parsers: list[str]) -> int:
    """Fuzzes parsers one after the other. Returns 1 where one broke the rules, or crashed."""
    failed = 0
    for parser in parsers:
        process = multiprocessing.get_context("spawn").Process(target=_exit, args=(parser, seconds, seed))
        process.start()
        process.join()
        if process.exitcode not in (0, 1):
            print(f"{parser}: ended with {process.exitcode}", flush=True)
        failed |= process.exitcode != 0
    return int(failed)


def _exit(parser: str, seconds: float, seed: int) -> None:
    faulthandler.enable()
    np.seterr(invalid="ignore")  # of signalling NaN, which the readers refuse
    sys.exit(fuzz(parser, seconds, seed) > 0)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, sys.argv[3:] or list(PARSERS)))
