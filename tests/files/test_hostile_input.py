"""Hostile input beyond single modules (docs/hostile_input.md).

Files are damaged and shrink at run time, prompts have no measure.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from pymixtral import ContextLengthError, Mixtral, ModelConfigError, ModelFileError, NonFiniteError, UnsupportedError
from pymixtral.cli import main
from pymixtral.files.gguf import GGUFFile
from pymixtral.inspection.inspect import inspect
from pymixtral.inspection.verify import verify
from pymixtral.text.tokenizer import Tokenizer
from support import fuzz_gguf
from support.command_line import COMMAND
from support.ggufs import damaged, rewrite
from support.paths import ROOT, TESTS

NAN = np.float16(np.nan).tobytes()


def command(*arguments: object, input: bytes = b"", seconds: float = 20) -> tuple[int, bytes, bytes]:
    result = subprocess.run([*COMMAND, *map(str, arguments)], input=input, capture_output=True, timeout=seconds)
    return result.returncode, result.stdout, result.stderr


@pytest.fixture(scope="module")
def engine(tiny_q8_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0) as engine:
        yield engine


@pytest.fixture
def copy(tiny_q8_0: Path, tmp_path: Path) -> Path:
    path = tmp_path / "copy.gguf"
    path.write_bytes(tiny_q8_0.read_bytes())
    return path


@pytest.mark.parametrize("wrong", [[1, 2], 7])
def test_row_4_a_tokenizer_model_that_is_no_string(tiny_q8_0: Path, tmp_path: Path, wrong: object) -> None:
    path = rewrite(tiny_q8_0, tmp_path / "m.gguf", keys={"tokenizer.ggml.model": wrong})
    words = "metadata key 'tokenizer.ggml.model': expected a string, found"
    for reader in (Mixtral, verify):
        with pytest.raises(ModelConfigError, match=words):
            reader(path)
    assert words in str(inspect(path).problem)
    with GGUFFile(path) as file, pytest.raises(UnsupportedError, match="found"):
        Tokenizer.from_metadata(file.metadata)
    result = CliRunner().invoke(main, ["tokenize", "-m", str(path), "-p", "a"])
    assert (result.exit_code, words in result.stderr) == (2, True)


@pytest.mark.parametrize("wrong", [[1, 2], [True], 7])
@pytest.mark.parametrize(
    "key",
    [
        "model",
        "tokens",
        "scores",
        "token_type",
        *(f"{name}_token_id" for name in ("bos", "eos", "eot", "unknown")),
        "add_bos_token",
    ],
)
def test_row_4_tokenizer_keys_of_the_wrong_type(tmp_path: Path, key: str, wrong: object) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    keys = {
        "model": "llama",
        "tokens": ["<unk>", "<s>", "</s>", "a"],
        "scores": [0.0] * 4,
        "token_type": [1, 3, 3, 1],
        key: wrong,
    }
    for name, value in keys.items():
        kind = {str: GGUFValueType.STRING, int: GGUFValueType.UINT32, list: GGUFValueType.ARRAY}[type(value)]
        writer.add_key_value(f"tokenizer.ggml.{name}", value, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    result = CliRunner().invoke(main, ["tokenize", "-m", str(tmp_path / "m.gguf"), "-p", "a"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert f"'tokenizer.ggml.{key}'" in result.stderr
    inspect(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("tokenizer.ggml.eos_token_id", 4096, "from 0 to 4095, found 4096"),
        ("llama.vocab_size", 4000, "expected 4000 tokens, the model's vocabulary, found 4096"),
    ],
)
def test_row_13_a_tokenizer_that_contradicts_the_model(
    tiny_q8_0: Path, tmp_path: Path, key: str, value: int, words: str
) -> None:
    path = rewrite(tiny_q8_0, tmp_path / "m.gguf", keys={key: value})
    with pytest.raises(ModelConfigError, match=words):
        Mixtral(path)
    code, out, err = command("generate", "-m", path, "-p", "a")
    assert (code, out, err.count(b"\n")) == (2, b"", 1)


@pytest.mark.parametrize(
    "tensor", ["token_embd.weight", "blk.0.attn_q.weight", "blk.3.ffn_down_exps.weight", "output.weight"]
)
@pytest.mark.parametrize("temperature", [0, 1])
def test_row_14_a_damaged_scale_is_an_error_at_run_time_never_a_token(
    tiny_q8_0: Path, tmp_path: Path, tensor: str, temperature: float
) -> None:
    path = tmp_path / "m.gguf"
    size = next(int(t.n_bytes) for t in GGUFReader(tiny_q8_0).tensors if t.name == tensor)
    damaged(tiny_q8_0, path, tensor, 0, b"".join([NAN, bytes(32)]) * (size // 34))
    with Mixtral(path) as model:
        generation = model.stream("Once upon a time", temperature=temperature, max_tokens=5)
        with pytest.raises(NonFiniteError):
            "".join(generation)
        assert generation.tokens == []


def test_row_14_the_command_line_says_so_in_one_line(tiny_q8_0: Path, tmp_path: Path) -> None:
    path = damaged(tiny_q8_0, tmp_path / "m.gguf", "output_norm.weight", 4, np.float32(np.inf).tobytes())
    code, out, err = command("generate", "-m", path, "-p", "Once")
    assert (code, out.strip(), err.count(b"\n")) == (2, b"", 1)


def test_row_16_a_file_that_lost_a_part_of_its_last_page(copy: Path) -> None:
    with Mixtral(copy) as model:
        assert model.generate("Once", temperature=0, max_tokens=2).text
        os.truncate(copy, copy.stat().st_size - 4)  # reads as zeros
        with pytest.raises(
            ModelFileError, match=r"copy\.gguf: expected \d+ bytes, found \d+, .*shortened while it was in use"
        ):
            model.generate("Once upon", temperature=0, max_tokens=2)


def test_row_16_a_file_that_lost_whole_pages_ends_the_process_without_a_result(copy: Path) -> None:
    program = (
        "import os, sys; from pymixtral import Mixtral; model = Mixtral(sys.argv[1]); os.truncate(sys.argv[1], 1 << "
        "20); print(model.generate('Once', temperature=0, max_tokens=2).text)"
    )
    result = subprocess.run([sys.executable, "-c", program, copy], capture_output=True, timeout=20)
    assert (result.returncode, result.stdout) == (-signal.SIGBUS, b"")


def test_row_16_a_file_that_is_replaced_by_renaming_stays_as_it_was(copy: Path, tmp_path: Path) -> None:
    with Mixtral(copy) as model:
        want = model.generate("Once", temperature=0, max_tokens=5).text
        (tmp_path / "other").write_bytes(b"GGUF")
        (tmp_path / "other").rename(copy)
        assert model.generate("Once upon", temperature=0, max_tokens=1).text
        assert model.generate("Once", temperature=0, max_tokens=5).text == want


@pytest.mark.parametrize("text", ["a", " ", "\0", "\n", "\U0001f600", "lorem ipsum ", "\u4f60"])
def test_row_21_and_23_a_prompt_of_ten_megabytes_is_refused_at_once(engine: Mixtral, text: str) -> None:
    prompt = text * (10_000_000 // len(text.encode()))
    began = time.monotonic()
    with pytest.raises(ContextLengthError, match=rf"at most {engine.n_ctx} tokens .* found \d+ or more"):
        engine.generate(prompt)
    assert time.monotonic() - began < 1


def test_row_23_ten_megabytes_from_standard_input(tiny_q8_0: Path) -> None:
    code, out, err = command("generate", "-m", tiny_q8_0, input=b"\0 \xe4\xbd\xa0" * 2_000_000)
    assert (code, out, err.count(b"\n")) == (2, b"", 1)
    assert b"tokens (--context)" in err
    code, out, err = command("generate", "-m", tiny_q8_0, input=b"a" * 10_000_000 + b"\xff")
    assert (code, out, err.count(b"\n")) == (2, b"", 1)
    assert b"0xff at offset 10000000" in err


def test_row_23_nul_bytes_are_text(engine: Mixtral) -> None:
    ids = engine.tokenize("a\0b\0")
    assert engine.detokenize(ids) == "a\0b\0"
    assert engine.generate("a\0b\0", temperature=0, max_tokens=3).stats.prompt_tokens == len(ids)


def test_row_23_nul_bytes_in_a_path(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="can be opened"):
        Mixtral(f"{tmp_path}/a\0b.gguf")


def test_a_short_run_of_the_fuzzer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where findings are kept
    assert fuzz_gguf.main(3, 0) == 0, capsys.readouterr().out


def test_the_tests_that_the_table_names_exist() -> None:
    names = re.findall(r"`([\w/]+/test_\w+)\.py::(test_\w+)(\*?)`", (ROOT / "docs" / "hostile_input.md").read_text())
    assert len(names) > 40
    for module, name, prefix in names:
        end = "" if prefix else r"\("
        assert re.search(rf"^def {name}{end}", (TESTS / f"{module}.py").read_text(), re.M), f"{module}.py::{name}"
