"""The program in a hard world: streams that are closed or full, no threads, no memory, signals at
any moment.
"""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from pymixtral import Mixtral
from support.adapter_files import write_adapter
from support.adapters import ADAPTERS, adapter_base
from support.command_line import COMMAND

TEXT = "Once upon a time there was a king. " * 60


@pytest.fixture
def lines(tiny_q8_0: Path, tiny_checkpoint: Path, tmp_path: Path) -> dict[str, list[str]]:
    """A command line for each command; those that write files write them into the folder "out"."""
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a", "max_tokens": 3}\n' * 5)
    (tmp_path / "out").mkdir()
    with Mixtral(tiny_q8_0, n_ctx=64) as opened:
        write_adapter(tmp_path / "tales.gguf", opened.config, 1)
    model, text, out = ["-m", str(tiny_q8_0)], ["-f", str(tmp_path / "text.txt")], tmp_path / "out"
    windows = ["-c", "32", "--windows", "2"]
    return {
        "generate": ["generate", *model, "-p", "a", "-n", "3"],
        "chat": ["chat", *model, "--chat-format", "mistral-v1", "-p", "a", "-n", "3"],
        "prompts": ["generate", *model, "--prompts", f"{tmp_path}/prompts.jsonl", "-o", f"{out}/texts"],
        "score": ["score", *model, "-p", "a", "--continuation", "b", "--adapter", str(tmp_path / "tales.gguf")],
        "embed": ["embed", *model, "-p", "a", "-o", f"{out}/vectors"],
        "tokenize": ["tokenize", *model, "-p", "a"],
        "perplexity": ["perplexity", *model, *text, *windows, "--save-base", f"{out}/base"],
        "routing": ["routing", *model, *text, *windows, "--html", f"{out}/page.html"],
        "bench": ["bench", *model, "--prompt-tokens", "2", "-n", "1", "-r", "1"],
        "inspect": ["inspect", "--verify", str(tiny_q8_0)],
        "plan": ["plan", str(tiny_q8_0)],
        "deploy": ["deploy", "--for", str(tiny_q8_0)],
        "doctor": ["doctor"],
        "quantize": ["quantize", str(tiny_checkpoint), f"{out}/model.gguf"],
        "calibrate": ["calibrate", *model, *text, *windows, "-o", f"{out}/imatrix"],
        "convert-adapter": [
            "convert-adapter",
            str(ADAPTERS / "v4-all"),
            f"{out}/adapter.gguf",
            "--base",
            str(adapter_base(tmp_path / "base")),
        ],
        "convert-layout": ["convert-layout", str(tiny_q8_0), f"{out}/parts.gguf", "--max-shard-size", "6M"],
        "prune": [
            "prune",
            str(tiny_q8_0),
            f"{out}/pruned.gguf",
            "--experts",
            "6",
            "--calibration",
            *text[1:],
            *windows,
        ],
    }


def unfinished(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def one_error(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and one line on standard error."""
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"Error: [^\n]+\n", done.stderr)
    for word in words:
        assert word in done.stderr


# --- Streams ------------------------------------------------------------------------------------------------------


def in_shell(line: Iterable[str], redirection: str) -> subprocess.CompletedProcess[str]:
    script = f'"$@" {redirection}'
    return subprocess.run(["bash", "-c", script, "bash", *COMMAND, *line], capture_output=True, text=True, timeout=60)


def test_a_closed_standard_input_has_no_text(lines: dict[str, list[str]]) -> None:
    for command in ("generate", "tokenize"):
        one_error(in_shell([word for word in lines[command] if word not in ("-p", "a")], "<&-"), "no text")


@pytest.mark.parametrize(("redirection", "word"), [(">&-", "Bad file descriptor"), ("> /dev/full", "No space left")])
def test_an_output_that_takes_nothing_is_one_error(
    redirection: str, word: str, lines: dict[str, list[str]], tmp_path: Path
) -> None:
    for command in ("generate", "chat", "prompts", "score", "embed", "tokenize", "inspect", "quantize"):
        one_error(in_shell(lines[command], redirection), word)
    one_error(in_shell(["--help"], redirection), word)
    assert unfinished(tmp_path) == []
    assert (tmp_path / "out" / "model.gguf").stat().st_size > 1 << 20  # and no result has gone into it


@pytest.mark.parametrize("redirection", ["2>&-", "2> /dev/full"])
def test_without_standard_error_the_exit_codes_are_the_same(redirection: str, lines: dict[str, list[str]]) -> None:
    done = in_shell(lines["generate"], redirection)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n")
    wrong = in_shell(["generate", "-m", "missing.gguf", "-p", "a"], redirection)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert in_shell(lines["generate"], f"<&- >&- {redirection}").returncode == 2


@pytest.mark.parametrize("command", ["generate", "chat", "prompts", "inspect", "--help"])
def test_a_reader_that_leaves_ends_the_program_quietly(command: str, lines: dict[str, list[str]]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        line = [*COMMAND, *lines.get(command, [command])]
        done = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


# --- Threads and memory -------------------------------------------------------------------------------------------

NO_THREADS = """
import threading
def refuse(*_, **__): raise RuntimeError("can't start new thread")
for name in ("_start_new_thread", "_start_joinable_thread"):
    if hasattr(threading, name): setattr(threading, name, refuse)
from pymixtral.__main__ import main
main()
"""

NO_MEMORY = """
import sys
import numpy, pymixtral.cli
def fail(*_, **__): raise MemoryError("Unable to allocate 9 GiB")
from importlib import import_module
module, name = sys.argv.pop(1).split(":")
setattr(import_module(module), name, fail)
from pymixtral.__main__ import main
main()
"""


LITTLE_MEMORY = """
import warnings
from pymixtral import memory, mixtral
from pymixtral.inspection.machine import Memory
memory.memory = lambda: Memory(64 * 10**6, 64 * 10**6, None, None)
before = list(warnings.filters)
load = mixtral.load_weights
def loading(*arguments):
    assert warnings.filters == before, "another thread may be about to restore its own"
    warnings.warn("from a library")
    return load(*arguments)
mixtral.load_weights = loading
from pymixtral.__main__ import main
main()
"""


def test_too_little_memory_is_a_note(lines: dict[str, list[str]]) -> None:
    """It is shown without a change of Python's filters, which are those of all threads."""
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, *lines["generate"]], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    library, note = (line for line in done.stderr.splitlines() if "library" in line or "Note" in line)
    assert library == "<string>:10: UserWarning: from a library"
    assert re.fullmatch(
        r"Note: .*\.gguf: expected .* MB of memory, found .* MB, so that .* again and again: .*[^.]\.", note
    )


def test_a_note_that_python_makes_an_error_is_one_sentence(lines: dict[str, list[str]]) -> None:
    program = LITTLE_MEMORY.replace('    warnings.warn("from a library")\n', "")
    line = [sys.executable, "-W", "error::UserWarning", "-c", program, *lines["generate"]]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert re.search(r"^Error: .*\.gguf: expected .* MB of memory, found .*\n\Z", done.stderr, re.M)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "generate",
        "chat",
        "prompts",
        "score",
        "embed",
        "perplexity",
        "bench",
        "inspect",
        "quantize",
        "calibrate",
    ],
)
def test_no_further_thread(command: str, lines: dict[str, list[str]], tmp_path: Path) -> None:
    line = [*lines[command], "--prefault"] if command == "generate" else lines[command]
    done = subprocess.run([sys.executable, "-c", NO_THREADS, *line], capture_output=True, text=True, timeout=60)
    one_error(done, "thread", "ulimit -u")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_long_prompt_needs_a_thread(lines: dict[str, list[str]]) -> None:
    line = [word if word != "a" else TEXT for word in lines["generate"]]
    done = subprocess.run([sys.executable, "-c", NO_THREADS, *line], capture_output=True, text=True, timeout=60)
    one_error(done, "thread")


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("generate", "pymixtral.mixtral:load_weights"),
        ("perplexity", "pymixtral.evaluation.perplexity:tokens_of"),
        ("inspect", "pymixtral.inspection.inspect:GGUFFile"),
        ("quantize", "pymixtral.quantize.convert:write_gguf"),
        ("convert-adapter", "pymixtral.quantize.adapters:open_adapter"),
        ("calibrate", "pymixtral.evaluation.calibration:tokens_of"),
    ],
)
def test_no_memory(command: str, place: str, lines: dict[str, list[str]], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_MEMORY, place, *lines[command]], capture_output=True, text=True, timeout=60
    )
    one_error(done, "memory", "9 GiB")
    assert list((tmp_path / "out").iterdir()) == []


def limited(kind: int, n: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (n, n))


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no limit of address space")
def test_a_limit_of_address_space(lines: dict[str, list[str]]) -> None:
    """NumPy would hang at the first."""
    for command, mib in (("inspect", 90), ("generate", 120), ("generate", 300)):
        line = [*lines[command], *(["-t", "256"] if mib == 300 else [])]
        limit = limited(resource.RLIMIT_AS, mib << 20)
        done = subprocess.run([*COMMAND, *line], preexec_fn=limit, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr.count("Error: "), "Traceback" in done.stderr) == (2, 1, False)


# --- Signals ------------------------------------------------------------------------------------------------------

STORM = """
import os, signal, sys
moment, *numbers = map(int, sys.argv[1:4])
sys.argv[1:4] = []
n_calls = 0
def count(*_):
    global n_calls
    n_calls += 1
    if n_calls == moment:
        sys.setprofile(None)
        for number in numbers: os.kill(os.getpid(), number)
from pymixtral.__main__ import main
sys.setprofile(count)
try: main()
finally:
    sys.setprofile(None)
    if not moment: print(n_calls, file=sys.stderr)
"""


@pytest.mark.parametrize("command", ["generate", "prompts", "embed", "quantize", "convert-adapter", "convert-layout"])
def test_two_signals_at_any_call_are_one_end(command: str, lines: dict[str, list[str]], tmp_path: Path) -> None:
    """The moment is a number of calls that Python has made, of a million or more, from the imports
    on to the last flush.
    """

    def run(moment: int, *numbers: int) -> subprocess.CompletedProcess[str]:
        for path in (tmp_path / "out").iterdir():
            path.unlink()
        program = [sys.executable, "-c", STORM, *map(str, (moment, *numbers)), *lines[command]]
        return subprocess.run(program, capture_output=True, text=True, timeout=60)

    n_calls = int(run(0, 0, 0).stderr.split()[-1])
    pairs = [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT), (signal.SIGHUP, signal.SIGTERM)]
    random_ = random.Random(command)
    for i in range(6):
        moment = random_.randint(1 if i % 2 else n_calls * 9 // 10, n_calls)
        first, second = pairs[i % 3]
        done = run(moment, first, second)
        where = f"{moment} of {n_calls} calls, {first.name}: {done.stderr}"
        assert done.returncode == 128 + first, where
        assert not re.search("Traceback|Error|gnored", done.stderr), where
        assert unfinished(tmp_path) == [], where


STUB = """
import os, sys, types
from pymixtral import __main__ as program
def send(number):
    os.kill(os.getpid(), number)
    for _ in range(99): pass
cli = sys.modules["pymixtral.cli"] = types.ModuleType("pymixtral.cli")
class Ends:
    def __del__(self): send(15)
def cli_main():
    BODY
cli.main = cli_main
program.main()
"""


def run_stub(body: str) -> tuple[int, str, str]:
    """The program with a command line of a few lines: exit code, and what it writes."""
    program = STUB.replace("BODY", body.replace("\n", "\n    "))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("first", "second"), [(2, 2), (15, 2), (2, 15), (1, 15)])
def test_a_second_signal_does_not_disturb_the_cleaning_up(first: int, second: int) -> None:
    body = f"try:\n    send({first})\n    while True: pass\nfinally:\n    send({second})\n    print('clean')"
    assert run_stub(body) == (128 + first, "clean\n", "")


def test_a_signal_after_the_work_changes_nothing() -> None:
    body = "import atexit\natexit.register(send, 2)\natexit.register(send, 15)\nprint('done')"
    assert run_stub(body) == (0, "done\n", "")


def test_a_signal_in_a_destructor_is_not_lost() -> None:
    """Python cannot pass on an exception from there."""
    assert run_stub("end = Ends()\ndel end\nwhile True: pass") == (143, "", "")


def test_a_signal_whose_exception_was_replaced_ends_the_program() -> None:
    body = "try: send({})\nexcept BaseException: raise TypeError('expected a path')"
    assert run_stub(body.format(1)) == (129, "", "")
    code, _, told = run_stub("raise TypeError('expected a path')")
    assert (code, told.splitlines()[-1]) == (1, "TypeError: expected a path")


def test_a_signal_in_an_import_waits_for_its_end(tmp_path: Path) -> None:
    (tmp_path / "fragile.py").write_text("import __main__\n__main__.send(2)\nprint('imported')\n")
    body = f"sys.path.insert(0, {str(tmp_path)!r})\nimport fragile\nwhile True: pass"
    assert run_stub(body) == (130, "imported\n", "")
