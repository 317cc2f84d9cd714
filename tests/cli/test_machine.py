"""The commands inspect, plan, tokenize and doctor, as a user and as a program meet them."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType

import pymixtral
from pymixtral import Mixtral, ops
from pymixtral.cli.text import shorten
from pymixtral.files.types import MATRIX_TYPES
from pymixtral.inspection import machine, probe
from pymixtral.inspection.inventory import Inventory, Part
from pymixtral.inspection.machine import Memory
from pymixtral.inspection.mixes import MIXES, mixed
from pymixtral.inspection.published import MODELS
from support.command_line import COMMAND, DEMO_NOTE, refused, run
from support.holes import write_hole

CONFIG = MODELS["8x7b"]
TEXT = "Once upon a time, \u4f60 na\u00efve"


def output(*arguments: object, input: bytes | str | None = None) -> str:
    """What a command that succeeds prints: nothing a terminal cannot show, at most 80 columns, a
    path excepted.
    """
    result = run(*arguments, input=input)
    assert result.exit_code == 0, result.stderr
    for line in result.stdout.splitlines():
        assert len(line) <= 80 or line in map(str, arguments), line
        assert line.isprintable()
    return result.stdout


def as_json(*arguments: object, input: bytes | str | None = None) -> Any:
    result = run(*arguments, "--json", input=input)
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


@pytest.fixture
def of_64_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 GB, 40 GB of them available, that reads 50 GB/s."""
    monkeypatch.setattr(machine, "memory", lambda: Memory(64 * 10**9, 40 * 10**9, None, "madvise"))
    monkeypatch.setattr(probe, "read_bandwidth", lambda counts, _: dict.fromkeys(counts, 50.0))
    monkeypatch.setattr(probe, "int8_rate", lambda n_threads: probe.Int8Rate("avx2", n_threads, 500.0))
    monkeypatch.setattr(probe, "disk_rate", lambda _: probe.DiskRate(3.0, 1.5))


def hole(path: Path, mix: str) -> Path:
    return write_hole(path, CONFIG, mixed(Inventory.of_model(CONFIG), mix).parts)


@pytest.mark.parametrize("command", ["inspect", "plan", "deploy", "tokenize", "doctor", "calibrate", "quantize"])
def test_help_has_examples(command: str) -> None:
    text = output(command, "--help")
    assert f"Examples:\n    pymixtral {command}" in text
    assert f"  {command} " in output("--help")


# --- Lines ------------------------------------------------------------------------------------------------------------


def test_lines_are_shortened() -> None:
    assert shorten("a\n\x1b[31mb", 80) == "a\\n\\x1b[31mb"
    assert (shorten("a" * 11, 10), shorten("a" * 10, 10)) == ("aaaaaaa...", "a" * 10)


# --- inspect ------------------------------------------------------------------------------------------------------


def test_inspect_shows_a_mixtral(tmp_path: Path) -> None:
    text = output("inspect", hole(tmp_path / "m.gguf", "q4_k_m"))
    for words in (
        "46.7B in all, 12.9B active for a token",
        "8 experts, 2 used by a token; 32 layers, width 4096",
        "Tokenizer   none",
        "weights, mapped from the file   28.4 GB",
        "keys and values, in f16        536.9 MB  131.1 kB a token",
        "read for each generated token   7.86 GB",
        "llama.expert_used_count",
    ):
        assert words in text
    assert re.search(r"experts +96 +45\.1B +27\.\d GB +4\.8\d +q4_k, q6_k\n", text)


def test_inspect_counts_memory_for_a_context(tmp_path: Path) -> None:
    text = output("inspect", hole(tmp_path / "m.gguf", "q8_0"), "-c", 32768)
    assert "context of 32768 tokens" in text
    assert "4.29 GB  131.1 kB a token" in text
    refused(run("inspect", tmp_path / "m.gguf", "-c", 40000), "32768", "40000")


def test_inspect_of_a_type_without_a_kernel_says_so(tmp_path: Path) -> None:
    kind = GGMLQuantizationType.Q8_K
    assert kind not in MATRIX_TYPES
    tensors = [
        Part(part.name, kind if len(part.shape) > 1 else part.type, part.shape)
        for part in Inventory.of_model(CONFIG).parts
    ]
    path = write_hole(tmp_path / "m.gguf", CONFIG, tensors)
    text = output("inspect", path)
    assert re.search(r"Runs here +no: tensor 'token_embd.weight'", text)
    assert "Q8_K" in text
    found = as_json("inspect", path)
    assert (found["runs"], found["active_parameters"]) == (False, 12_879_925_248)


def test_inspect_in_json(tiny_q8_0: Path) -> None:
    found = as_json("inspect", tiny_q8_0, "-c", 100)
    assert (found["runs"], found["tokenizer"], found["memory"]["context"]) == (True, True, 100)
    assert found["model"]["n_experts"] == 8
    assert found["metadata"]["tokenizer.ggml.scores"]["length"] == 4096


def test_inspect_of_hostile_names_prints_plain_lines(tmp_path: Path) -> None:
    part = Part("evil\x1b[2J\n.weight", GGMLQuantizationType.F32, (8,))
    path = write_hole(tmp_path / "m.gguf", CONFIG, [part], architecture="\x1b[2J" + "long" * 100)
    assert "\\x1b[2J" in output("inspect", path)


@pytest.mark.parametrize("arguments", [["missing.gguf"], ["."], [__file__], ["--unknown"], [__file__, "-c", "0"]])
def test_inspect_refuses(arguments: list[str]) -> None:
    refused(run("inspect", *arguments))


# --- plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("of_64_gb")
def test_plan_of_a_file_that_fits(tiny_q8_0: Path) -> None:
    text = output("plan", tiny_q8_0)
    assert "tiny-mixtral, q8_0: 8.52 bits a weight" in text
    assert "It fits" in text
    assert "Prediction: " in text
    assert "Choose" not in text
    found = as_json("plan", tiny_q8_0, "-t", 1)
    assert (found["verdict"], found["runs"], found["threads"], found["choose"]) == ("fits", True, 1, None)


@pytest.mark.usefixtures("of_64_gb")
def test_plan_of_a_file_that_does_not_fit(tmp_path: Path) -> None:
    path = hole(tmp_path / "m.gguf", "f16")
    text = " ".join(output("plan", path).split())
    assert "It does not fit: 54.1 GB of memory are missing." in text
    assert "It still runs, paging" in text
    assert re.search(r"of the 25\.5 GB that a token reads about 1\d\.\d GB come from the disk", text)
    assert "from a disk that was measured to give 3.00 GB/s, 1.50 in pieces of 1 MB" in text
    assert re.search(
        r"Prompts: \d+\.\d tokens/s at most, as each 8192 tokens of a prompt read the whole file once", text
    )
    found = as_json("plan", path)
    assert (found["verdict"], found["type"]) == ("pages", None)
    if found["choose"] is None:
        assert "Nothing that pymixtral runs fits" in text
    else:
        assert f"Choose {found['choose']}, the largest type that fits" in text


@pytest.mark.usefixtures("of_64_gb")
def test_plan_of_a_disk_that_cannot_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "disk_rate", lambda _: None)
    assert "a disk of 2 GB/s, as this one could not be measured" in " ".join(
        output("plan", hole(tmp_path / "m.gguf", "f16")).split()
    )
    assert as_json("plan", tmp_path / "m.gguf")["disk_gb_per_second"] == {"sequential": 2.0, "random": 2.0}


@pytest.mark.usefixtures("of_64_gb")
def test_plan_without_a_file() -> None:
    found = as_json("plan", "--params", "8x7b", "--type", "Q8_0")
    assert found["memory"] == {
        "weights": 49_625_579_520,
        "kv": 1 << 29,
        "working": found["memory"]["working"],
        "total": found["memory"]["total"],
    }
    assert (found["verdict"], found["limit"], found["available"]) == ("crowded", 64 * 10**9, 40 * 10**9)
    assert found["predicted_tokens_per_second"]["in_memory"] == pytest.approx(
        50e9 / found["active_bytes_per_token"], rel=1e-3
    )
    small = as_json("plan", "--params", "8x7b", "--type", "q8_0", "--kv-type", "q8_0")["memory"]
    assert small["kv"] == found["memory"]["kv"] * 34 // 64
    text = output("plan", "--params", "8x7b", "--type", "q8_0")
    assert "it would if other programs ended" in " ".join(text.split())


@pytest.mark.usefixtures("of_64_gb")
def test_plan_of_every_type() -> None:
    text = output("plan", "--params", "8x22b", "-c", 65536)
    for mix in MIXES:
        assert re.search(rf"^  {mix} ", text, re.MULTILINE)
    found = as_json("plan", "--params", "8x22b", "-c", 65536)
    assert len(found["plans"]) == len(MIXES)
    assert {one["context"] for one in found["plans"]} == {65536}
    assert found["choose"] is None
    assert "No type that pymixtral runs fits." in text
    small = as_json("plan", "--params", "7b")
    assert small["choose"] == "bf16" if GGMLQuantizationType.BF16 in MATRIX_TYPES else "f16"
    assert f"Choose {small['choose']}," in output("plan", "--params", "7b")


@pytest.mark.usefixtures("of_64_gb")
def test_plan_of_a_file_in_another_type(tmp_path: Path) -> None:
    found = as_json("plan", hole(tmp_path / "m.gguf", "f16"), "--type", "q8_0")
    assert (found["type"], found["memory"]["weights"]) == ("q8_0", 49_625_579_520)


@pytest.mark.usefixtures("of_64_gb")
def test_plan_of_a_file_that_cannot_run_says_why(tmp_path: Path) -> None:
    name = "blk.31.ffn_down_exps.weight"
    parts = [part for part in Inventory.of_model(CONFIG).parts if part.name != name]
    path = write_hole(tmp_path / "m.gguf", CONFIG, parts)
    assert f"does not run it: tensor '{name}' is missing" in " ".join(output("plan", path).split())
    assert as_json("plan", path)["runs"] is False
    write_hole(tmp_path / "other.gguf", CONFIG, Inventory.of_model(CONFIG).parts, architecture="gemma")
    refused(run("plan", tmp_path / "other.gguf"), "gemma")


def test_plan_measures_this_machine() -> None:
    found = as_json("plan", "--params", "7b", "--type", "q4_0")
    assert 0.1 < found["bandwidth_gb_per_second"] < 10_000
    assert found["limit"] == machine.memory().limit


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["a.gguf", "-m", "b.gguf"], "two"),
        (["-m", "a.gguf", "--params", "8x7b"], "both"),
        ([__file__, "--params", "8x7b"], "both"),
        (["--params", "8x8b"], "8x22b"),
        (["--params", "8x7b", "--type", "q4_x"], "q4_k_m"),
        (["--params", "8x7b", "-c", "40000"], "32768"),
        (["--params", "8x7b", "-t", "0"], "-t"),
        (["missing.gguf"], "missing.gguf"),
    ],
)
def test_plan_refuses(arguments: list[str], word: str) -> None:
    refused(run("plan", *arguments), word)


# --- tokenize -----------------------------------------------------------------------------------------------------


def test_tokenize_shows_ids_and_pieces(tiny_q8_0: Path) -> None:
    with Mixtral(tiny_q8_0) as engine:
        ids = engine.tokenize(TEXT)
    result = run("tokenize", "-m", tiny_q8_0, "-p", TEXT)
    assert result.stderr == f"{len(ids)} tokens\n"
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [int(line[0]) for line in lines] == ids
    assert (lines[0][1], lines[1][1]) == ("<s>", "\u2581Once")
    assert run("tokenize", "-m", tiny_q8_0, "-p", TEXT, "--ids").stdout == " ".join(map(str, ids)) + "\n"
    found = as_json("tokenize", "-m", tiny_q8_0, "-p", TEXT)
    assert (found["count"], found["ids"], found["pieces"][1]) == (len(ids), ids, "\u2581Once")
    assert as_json("tokenize", "-m", tiny_q8_0, "-p", TEXT, "--no-bos")["ids"] == ids[1:]
    demo = run("tokenize", "-p", TEXT, "--json")
    assert json.loads(demo.stdout)["ids"] == ids  # the demo model has the same tokenizer
    assert demo.stderr == DEMO_NOTE


def test_tokenize_reads_files_and_standard_input(tiny_q8_0: Path, tmp_path: Path) -> None:
    tokenize = ["tokenize", "-m", tiny_q8_0]
    ids = as_json(*tokenize, "-p", TEXT)["ids"]
    (tmp_path / "text.txt").write_text(TEXT + "\n", encoding="utf-8")
    assert as_json(*tokenize, "-f", tmp_path / "text.txt")["ids"] == ids
    assert as_json(*tokenize, input=TEXT.encode())["ids"] == ids
    assert as_json(*tokenize, "-p", "", input=TEXT.encode())["ids"] == ids[:1]


def test_tokenize_of_nothing(tiny_q8_0: Path) -> None:
    result = run("tokenize", "-m", tiny_q8_0, "-p", "", "--no-bos")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "0 tokens\n")
    assert run("tokenize", "-m", tiny_q8_0, "-p", "").stderr == "1 token\n"


def test_tokenize_refuses(tmp_path: Path) -> None:
    refused(run("tokenize", "-p", "a", "-f", __file__), "both")
    refused(run("tokenize", "-p", "a", "--ids", "--json"), "both")
    refused(run("tokenize", "-p", "a", "-m", "missing.gguf"), "missing.gguf")
    refused(run("tokenize", "-f", "missing.txt"), "missing.txt")
    refused(run("tokenize", input=b"ab\xff"), "0xff at offset 2", "standard input")
    refused(run("tokenize", "-p", "a", "-m", hole(tmp_path / "m.gguf", "q4_0")), "no tokenizer")


def test_tokenize_in_a_terminal_and_in_another_locale() -> None:
    master, slave = pty.openpty()
    try:
        process = subprocess.run([*COMMAND, "tokenize"], stdin=slave, capture_output=True, text=True, timeout=20)
    finally:
        os.close(master)
        os.close(slave)
    assert (process.returncode, process.stdout) == (2, "")
    assert re.fullmatch(r"Error: no text[^\n]*-p TEXT[^\n]*\n", process.stderr)
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(
        [*COMMAND, "tokenize", "--json", "-p", TEXT], env=environment, capture_output=True, check=True
    )
    assert json.loads(done.stdout.decode("utf-8"))["pieces"][1] == "\u2581Once"


# --- doctor -------------------------------------------------------------------------------------------------------


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYMIXTRAL_ISA", ops.available_isas()[-1])
    result = run("doctor")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    names = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    known = ["CPU", "Kernels", "Prefetch", "Threads", "Memory", "Read", "int8", "Disk", "Versions"]
    assert [name for name in names if name in known] == known
    assert f"chosen: {ops.available_isas()[-1]} (PYMIXTRAL_ISA asks for it" in result.stdout
    assert f"pymixtral {pymixtral.__version__}" in " ".join(result.stdout.split())
    assert re.search(r"Read +[\d.]+ GB/s with 1 thread", result.stdout)


def test_doctor_in_json_and_with_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYMIXTRAL_ISA", "mmx")
    monkeypatch.setenv("PYMIXTRAL_PREFETCH", "T1")
    result = run("doctor", "--json")
    assert (result.exit_code, result.stderr) == (1, "")
    found = json.loads(result.stdout)
    assert found["instruction_sets"]["chosen"] is None
    assert "'mmx'" in found["problems"][0]
    assert found["prefetch"]["default"] is None
    assert "'T1'" in found["problems"][1]
    assert found["threads"]["default"] == ops.thread_limits().default
    assert found["probe"]["isa"] == ops.available_isas()[-1]
    assert found["probe"]["read_gb_per_second"].keys() == found["probe"]["int8_gmac_per_second"].keys()
    assert all(rate > 0 for rate in found["probe"]["int8_gmac_per_second"].values())
    assert found["memory"]["total"] == machine.memory().total


def test_doctor_names_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYMIXTRAL_ISA", ops.available_isas()[-1])
    monkeypatch.setattr(
        "pymixtral.cli.doctor._probe",
        lambda *_: {"isa": "", "read_gb_per_second": {}, "int8_gmac_per_second": {}, "disk_gb_per_second": None},
    )
    n_cpus = ops.thread_limits().allowed
    seconds = iter([100.0, 1e9, 100.0, 100.0])
    monkeypatch.setattr(machine, "busy_seconds", lambda: next(seconds))
    busy, idle = run("doctor"), run("doctor")
    assert (busy.exit_code, idle.exit_code) == (0, 0)
    assert f"of {n_cpus} CPU" in busy.stdout
    assert "The machine is busy: others used" in busy.stdout
    assert "No problem found." not in busy.stdout
    assert idle.stdout.endswith("\n\nNo problem found.\n")
    monkeypatch.setattr(machine, "busy_seconds", lambda: None)
    assert as_json("doctor")["cpus_of_others"] is None
