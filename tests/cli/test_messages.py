"""Messages of the library, which name Python's arguments, name options in the shell."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import pymixtral
from pymixtral import Mixtral, convert_layout, prune
from pymixtral.cli import in_options
from pymixtral.evaluation.bench import bench
from pymixtral.evaluation.calibration import calibrate
from pymixtral.evaluation.perplexity import perplexity
from pymixtral.files.imatrix import read
from pymixtral.inspection.verify import verify
from pymixtral.model.residence import _refusal
from pymixtral.quantize import plan, quantize
from pymixtral.sampling.parameters import SamplingParameters
from support.adapters import ADAPTERS
from support.checkpoints import Shape, make_checkpoint, make_tensors, write_safetensors
from support.command_line import commands, refused, run

COMMANDS = commands()
LIBRARY = Path(pymixtral.__file__).parent
CALLED = (
    Mixtral,
    Mixtral.stream,
    SamplingParameters,
    convert_layout,
    prune,
    bench,
    calibrate,
    perplexity,
    verify,
    plan,
    quantize,
)
ARGUMENTS = {name for function in CALLED for name in inspect.signature(function).parameters if "_" in name}
NEVER_WRONG = {"n_batch", "replace"}  # no command gives them


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a NaN."""
    path, shape = tmp_path_factory.mktemp("broken") / "hf", Shape(n_layers=1, n_vocab=64)
    make_checkpoint(path, shape, seed=4)
    tensors = make_tensors(shape, seed=4)
    tensors["model.norm.weight"][7] = float("nan")
    write_safetensors(path / "model.safetensors", tensors)
    return path


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("generate -p a -c 5000", "expected --context of at most 2048, which the model was trained for, found 5000"),
        (
            "generate -p 'a b c d e f' -c 4",
            "of at most 4 tokens (--context), found 7: shorten the text, or raise --context, up to 2048",
        ),
        (
            "generate -f LONG",
            "of at most 2048 tokens (--context), found 2401: shorten the text, as the model was trained for no more",
        ),
        ("generate -p a --top-k -1", "expected --top-k to be an integer of at least 0, found -1"),
        ("generate -p a --top-p nan", "expected --top-p to be a number from 0 to 1, found nan"),
        ("generate -p a --logit-bias 5=nan", "expected --logit-bias of token 5 to be a number"),
        ("generate -p a --logit-bias 4096=1", "in --logit-bias, found 4096"),
        ("generate -p a --experts-used 9", "expected --experts-used of at most the model's 8 experts, found 9"),
        (
            "generate -p a --experts-used 3 --override-kv llama.expert_used_count=int:2",
            "expected --experts-used or an override of",
        ),
        ("perplexity -f TEXT -c 4096", "expected --context of at most 2048"),
        ("perplexity -f TEXT -c 32 --stride 32", "expected --stride to be an integer from 1 to 31"),
        ("perplexity -f TEXT -c 32 --kl-against TEXT", "save one with --save-base"),
        ("calibrate -f TEXT -c 64 -o MATRIX --resume", "of the same model, texts and --context"),
        ("quantize CHECKPOINT TEXT", "found one that exists: choose another name, or replace it with --force"),
        ("convert-layout MODEL TEXT", "found one that exists: choose another name, or replace it with --force"),
        (
            "prune MODEL TEXT --experts 6 --criterion random",
            "found one that exists: choose another name, or replace it with",
        ),
        ("prune MODEL NEW --experts 8 --calibration TEXT", "--experts to be an integer from 2 to 7, found 8"),
        ("prune MODEL NEW --experts 6", "expected a text"),
        (f"convert-adapter {ADAPTERS}/v4-all TEXT --base MODEL", "replace it with --force"),
        (
            f"convert-adapter {ADAPTERS}/v4-all a.safetensors --base MODEL",
            "or to be a folder of PEFT, found a.safetensors",
        ),
        (f"convert-adapter {ADAPTERS}/v4-all NEW --base MODEL", "use the adapter's own base model"),
        (f"quantize CHECKPOINT NEW --adapter {ADAPTERS}/v4-all:0.5", "use the adapter's own base model"),
        (f"quantize CHECKPOINT NEW --adapter {ADAPTERS}/v4-all:5000", "scale"),
        ("quantize CHECKPOINT NEW --tensor blk.0.ffn_down.3.weight=q8_0", "types of their own with --per-expert"),
        ("quantize BARE NEW", "write a file that takes token ids only, with --no-tokenizer"),
        ("quantize BROKEN NEW", "have such weights written as 0 with --zero-nonfinite"),
    ],
)
def test_messages_in_the_shell(
    line: str, words: str, tiny_q8_0: Path, tiny_checkpoint: Path, broken: Path, tmp_path: Path
) -> None:
    text, long, matrix = tmp_path / "text.txt", tmp_path / "long.txt", tmp_path / "i.gguf"
    text.write_text("Once upon a time there was a king. " * 40)
    long.write_text("a" + " a" * 2399)
    names = {"TEXT": text, "LONG": long, "MATRIX": matrix, "MODEL": tiny_q8_0, "CHECKPOINT": tiny_checkpoint}
    names |= {"BROKEN": broken, "NEW": tmp_path / "m", "BARE": tmp_path / "bare"}
    if "BARE" in line:
        make_checkpoint(names["BARE"], Shape(n_layers=1, n_vocab=64), seed=4)
        (names["BARE"] / "tokenizer.model").unlink()
    if "MATRIX" in line:
        assert run("calibrate", "-m", tiny_q8_0, "-f", text, "-c", 32, "--windows", 1, "-o", matrix).exit_code == 0
        assert read(matrix).n_windows == 1
    command, *rest = (names.get(word, word) for word in re.findall(r"[^\s']+|'[^']*'", line))
    model = [] if command in ("quantize", "convert-adapter", "convert-layout", "prune") else ["-m", tiny_q8_0]
    result = run(command, *model, *(str(word).strip("'") for word in rest))
    refused(result, words)
    assert not re.search(rf"(?<![\w/.'])(?:{'|'.join(ARGUMENTS)}|\w+=True)(?![\w/.'])", result.stderr)


def test_only_the_words_of_the_library_become_options() -> None:
    command = COMMANDS["quantize"]
    assert in_options("replace it with force=True, per_expert=True or n_threads", command) == (
        "replace it with --force, --per-expert or --threads"
    )
    quoted = ("a/n_threads/b", "'n_threads'", "n_threads.gguf", "my-n_threads", "n_threads=3", "no_n_threads_here")
    for text in (*quoted, "force", "a force of 3"):
        assert in_options(text, command) == text
    generate = COMMANDS["generate"]
    assert in_options("expected stop to be a text, found stop", generate) == "expected --stop to be a text, found stop"
    assert in_options("a.txt: expected stop to be a text", generate) == "a.txt: expected stop to be a text"
    for n_bytes in (1, 1 << 60):
        message = in_options(_refusal(n_bytes, "no"), COMMANDS["generate"])
        assert message.endswith("leave out --lock")


def messages() -> Iterator[tuple[str, str]]:
    """The texts in the library's code, but for docstrings: place and text."""
    quantizer = Path(inspect.getfile(quantize)).parent
    for path in sorted({*LIBRARY.rglob("*.py"), *quantizer.rglob("*.py")}):
        if "cli" in path.parts or path.name == "llm_plugin.py":  # commands
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                yield f"{path.name}:{node.lineno}", node.value


def test_the_library_speaks_of_no_option() -> None:
    others = re.compile("`ray [^`]*`")  # commands of another program
    assert [place for place, text in messages() if re.search(r"(?<![\w-])--[a-z]", others.sub("", text))] == []


def test_each_argument_that_the_library_speaks_of_is_an_option() -> None:
    named = {param.name for command in COMMANDS.values() for param in command.params}
    spoken = set()
    for _, text in messages():
        words = re.findall(r"\w+(?:=True)?", text)
        spoken |= {word.removesuffix("=True") for word in words if word in ARGUMENTS or word.endswith("=True")}
    assert {"n_ctx", "force", "logit_bias", "lock"} <= spoken
    assert spoken - NEVER_WRONG <= named
