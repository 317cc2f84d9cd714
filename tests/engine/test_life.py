"""The life of engines in programs of all kinds: other processes, ends, limits, memory. Whatever happens, nothing
waits for ever, nothing crashes, and nobody but the program itself writes to standard error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pymixtral.demo import demo_path
from pymixtral.quantize import quantize
from support.checkpoints import Shape, make_checkpoint

TRY = """
import asyncio, atexit, gc, logging, os, resource, signal, sys, threading, time, weakref
from pymixtral import AsyncMixtral, Mixtral

logging.disable()  # asyncio logs slow steps in Python's development mode

def endless(model):
    "A stream that has begun and never ends by itself."
    stream = model.stream("Once upon a time", ignore_eos=True)
    next(stream)
    return stream

def tell(function, *args):
    try:
        print(function(*args))
    except Exception as error:
        print(type(error).__name__, error)

def generate(n_threads=1):
    return len(Mixtral(n_threads=n_threads).generate("The king", max_tokens=3, ignore_eos=True).tokens)
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and sets limits that other systems lack")


def run(program: str, *args: str, status: int = 0) -> str:
    """What a program prints in Python's development mode, where every warning is an error."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", TRY + program, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (status, ""), done.stderr
    return done.stdout


# --- Other processes ---------------------------------------------------------------------------------------------

PROCESSES = """
import multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
from pymixtral import ClosedError, Mixtral

model = opened_by = None

def lazily(_):
    "Opens a model on the first call and never closes it."
    global model, opened_by
    if opened_by != os.getpid():
        model, opened_by = Mixtral(n_threads=2), os.getpid()
    return model.generate("The king", max_tokens=3, temperature=0).text

def inherited(_):
    try:
        return model.generate("a", max_tokens=1).text
    except ClosedError as error:
        return str(error).partition(": ")[2]

if __name__ == "__main__":
    want = lazily(0)
    stream = model.stream("Once", ignore_eos=True)
    next(stream)
    context = multiprocessing.get_context(sys.argv[1])
    if sys.argv[1] == "fork":
        with context.Pool(1) as pool:
            assert pool.map(inherited, [0]) == ["open the model after the fork"]
    with context.Pool(2) as pool:
        assert set(pool.map(lazily, range(6), 1)) == {want}
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert set(pool.map(lazily, range(2))) == {want}
    assert next(stream)
    print("held")
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_multiprocessing_open_their_own_model(method: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROCESSES)
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", program, method]  # threads beside a fork
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "held\n", "")


# --- Ends of programs --------------------------------------------------------------------------------------------

ENDS: dict[str, tuple[str, int, str]] = {
    "in the middle of a prompt": ("m = Mixtral(); s = m.stream([1] * 2000)", 0, ""),
    "with a suspended generator": ("m = Mixtral()\ndef g():\n yield from endless(m)\ni = g(); next(i)", 0, ""),
    "by _exit": ("m = Mixtral(); s = endless(m); os._exit(4)", 4, ""),
    "by exit in a thread": (
        """
def work():
    model = Mixtral()
    stream = endless(model)
    sys.exit(3)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print("on")
""",
        0,
        "on\n",
    ),
    "with readers": (
        """
model = Mixtral()
for _ in range(3):
    threading.Thread(target=lambda: list(endless(model)), daemon=True).start()
endless(model)
sys.exit(6)
""",
        6,
        "",
    ),
    "before its threads": (
        """
model = Mixtral()
def work():
    threading.main_thread().join()
    print(len(model.generate("a", max_tokens=200, ignore_eos=True).tokens))
threading.Thread(target=work).start()
""",
        0,
        "200\n",
    ),
    "with a use at the end": (
        "m = Mixtral()\n"
        "atexit.register(lambda: tell(lambda: len(m.generate('a', max_tokens=2, ignore_eos=True).tokens)))",
        0,
        "2\n",
    ),
    "with tasks": (
        """
async def main():
    global model, stream
    model = await asyncio.to_thread(AsyncMixtral)
    stream = model.stream("Once", ignore_eos=True)
    await stream.__anext__()
    began = asyncio.Event()
    async def read():
        async for _ in model.stream("Once", ignore_eos=True):
            began.set()
    task = asyncio.create_task(read())
    await began.wait()
asyncio.run(main())
""",
        0,
        "",
    ),
    "without the modules": (
        """
model = Mixtral()
stream = endless(model)
for name in [name for name in sys.modules if name.startswith("pymixtral")]:
    del sys.modules[name]
""",
        0,
        "",
    ),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_program_ends(how: str) -> None:
    program, status, output = ENDS[how]
    assert run(program, status=status) == output


def test_an_exception_that_nobody_catches_is_all_that_is_told() -> None:
    command = [sys.executable, "-X", "dev", "-c", TRY + "m = Mixtral(); s = endless(m)\n1 / 0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_a_model_that_is_opened_too_late_is_an_error() -> None:
    """Python 3.12 starts no thread once the program ends."""
    program = """
def refuse(thread):
    raise RuntimeError("can't create new thread at interpreter shutdown")
threading.Thread.start = refuse
tell(generate)
"""
    assert run(program).startswith("NativeError expected a program that goes on, to start a further thread, found one")


def test_signals_of_an_asyncio_program_reach_it() -> None:
    program = """
async def main():
    model = await asyncio.to_thread(AsyncMixtral)
    loop, stop, began = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    async def read():
        async for _ in model.stream("Once", ignore_eos=True, max_tokens=2000):
            began.set()
    task = asyncio.create_task(read())
    await began.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await stop.wait()
    task.cancel()
    await asyncio.wait([task])
    print(task.cancelled(), len((await model.generate("Once", max_tokens=3, ignore_eos=True)).tokens))
asyncio.run(main())
"""
    assert run(program) == "True 3\n"


# --- Interpreters ------------------------------------------------------------------------------------------------

SUBINTERPRETER = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
code = '''
try:
    import pymixtral
except ImportError as error:
    print(error, flush=True)
'''
interpreters.run_string(interpreters.create(), f"import sys; sys.path[:] = {sys.path}" + code)
import pymixtral
print(pymixtral.Mixtral.__name__)
"""


def test_a_subinterpreter_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SUBINTERPRETER], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "expected Python's main interpreter, found a subinterpreter, where NumPy does not work: import pymixtral in "
        "the main one (in mod_wsgi: WSGIApplicationGroup %{GLOBAL})\nMixtral\n"
    )


# --- Limits ------------------------------------------------------------------------------------------------------

LIMIT = """
def limit(name, n):
    "Sets a limit; of the address space it is beyond what is in use."
    if name == "AS":
        with open("/proc/self/statm") as statm:
            n += int(statm.read().split()[0]) * resource.getpagesize()
    which = getattr(resource, "RLIMIT_" + name)
    resource.setrlimit(which, (n, resource.getrlimit(which)[1]))
Mixtral(n_threads=1).close()  # what is imported on first use
"""


@linux
@pytest.mark.parametrize("n_bytes", [0, 1 << 20, 1 << 24, 1 << 25, 1 << 26])
def test_too_little_memory_is_an_error(n_bytes: int) -> None:
    out = run(LIMIT + "limit('AS', int(sys.argv[1])); tell(generate)", str(n_bytes))
    assert out == "3\n" or out.startswith("NativeError "), out
    assert n_bytes > 1 << 20 or "expected room for one more file, found an error (Cannot allocate memory)" in out


@linux
def test_a_cache_that_does_not_fit_is_refused_with_figures() -> None:
    out = run(LIMIT + "limit('AS', 40 << 20); tell(lambda: Mixtral(n_threads=1, cache_bytes=50 << 20))")
    assert out.startswith("NativeError expected 0.05 GB of memory for keys and values (2048 tokens of context), found")


@linux
def test_a_text_that_does_not_fit_into_memory_fails_alone(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "long", Shape(n_ctx=1 << 16), seed=1)
    quantize(tmp_path / "long", tmp_path / "long.gguf", "q8_0", progress=False)
    program = """
model = Mixtral(sys.argv[1], n_threads=1, n_batch=1 << 16, pace=1e5)
short = model.generate("Once upon a time", max_tokens=5, temperature=0).tokens
other = model.stream("Once upon a time", max_tokens=1500, ignore_eos=True)
next(other)
long = [1] * 60_000
limit("AS", 8 << 20)
for _ in range(3):
    tell(model.generate, long)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
print(len("".join(other)) > 0, len(other.tokens), model.stats().used_pages)
print(model.generate("Once upon a time", max_tokens=5, temperature=0).tokens == short)
"""
    *errors, whole, last = run(LIMIT + program, str(tmp_path / "long.gguf")).splitlines()
    assert len(errors) == 3
    assert all(error.startswith(("NativeError ", "MemoryError")) for error in errors), errors
    assert (whole, last) == ("True 1500 0", "True")


@linux
def test_too_many_open_files_are_an_error() -> None:
    out = run(LIMIT + "limit('NOFILE', len(os.listdir('/proc/self/fd')) - 1); tell(generate)")
    assert out.startswith("NativeError ")
    assert "found an error (Too many open files): raise the limit (`ulimit -n`)" in out


@linux
@pytest.mark.skipif(os.getuid() != 0, reason="only root becomes a user who has no other program")
@pytest.mark.parametrize(("n_more", "whole"), [(0, False), (1, False), (2, True)])
def test_too_few_threads_are_an_error(n_more: int, whole: bool) -> None:
    program = """
with Mixtral(n_threads=1) as model:  # imports the rest, which the other user may not read
    model.generate("The king", max_tokens=3)
    threads = {str(thread.native_id) for thread in threading.enumerate()} - {str(threading.get_native_id())}
while threads & set(os.listdir("/proc/self/task")):
    pass
os.setuid(65533)
n = len(os.listdir("/proc/self/task")) + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NPROC, (n, n))
tell(lambda: len(Mixtral(sys.argv[2], n_threads=1).generate("The king", max_tokens=3, ignore_eos=True).tokens))
"""
    with tempfile.TemporaryDirectory() as folder:  # that another user may read
        Path(folder).chmod(0o755)
        model = Path(shutil.copy(demo_path(), folder))
        model.chmod(0o644)
        out = run(program, str(n_more), str(model))
    refused = "NativeError expected to start a further thread, found that the system allows no more: "
    assert out == "3\n" if whole else out.startswith(refused), out


# Before 3.11 each Python call takes C stack, and 32 KB are too few for Python itself.
@pytest.mark.parametrize("kilobytes", [32 if sys.version_info >= (3, 11) else 128, 256])
def test_threads_with_little_stack_work(kilobytes: int) -> None:
    assert run(f"threading.stack_size({kilobytes} << 10); print(generate(2))") == "3\n"


# --- Memory ------------------------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("collector", ["enable", "disable"])
def test_models_that_are_dropped_leave_nothing(collector: str) -> None:
    program = """
getattr(gc, sys.argv[1])()

def count(name):
    return len(os.listdir("/proc/self/" + name))

def megabytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 1e6

n_threads, n_files = count("task"), count("fd")
for i in range(101):
    model = Mixtral(n_threads=2)
    gone = weakref.ref(model)
    stream = endless(model) if i % 3 == 1 else model.stream("Once") if i % 3 == 2 else None
    if not stream:
        model.generate("Once upon", max_tokens=3)
    del model
    assert gone() is None
    del stream
    end = time.monotonic() + 60
    while (count("task"), count("fd")) != (n_threads, n_files) and time.monotonic() < end:
        time.sleep(0.001)
    assert (count("task"), count("fd")) == (n_threads, n_files), i
    if i == 20:
        before = megabytes()
assert megabytes() < before + 10, (before, megabytes())
print("held")
"""
    assert run(program, collector) == "held\n"


@linux
def test_a_model_that_is_dropped_in_any_moment_leaves_nothing() -> None:
    """Without the garbage collector: an exception in the middle of a pass must not be in a cycle."""
    program = """
gc.disable()
def texts():
    return sum(type(one).__name__ in ("Continuation", "Loop", "Model", "GGUFFile") for one in gc.get_objects())
before = texts()
for _ in range(150):
    model = Mixtral(n_threads=1)
    stream = endless(model)
    del model, stream
end = time.monotonic() + 60
while texts() > before and time.monotonic() < end:
    time.sleep(0.01)
print(texts() - before)
"""
    assert run(program) == "0\n"


@linux
def test_models_in_cycles_are_collected() -> None:
    program = """
class Node:
    pass
def n_threads():
    return len(os.listdir("/proc/self/task"))
before = n_threads()
for _ in range(5):
    node = Node()
    node.itself, node.model = node, Mixtral(n_threads=2)
    node.stream = endless(node.model)
    gone = weakref.ref(node.model)
    del node
    gc.collect()
    assert gone() is None
end = time.monotonic() + 60
while n_threads() > before and time.monotonic() < end:
    time.sleep(0.001)
print(n_threads() - before)
"""
    assert run(program) == "0\n"


def test_a_collector_in_another_thread_changes_nothing() -> None:
    program = """
model = Mixtral(n_threads=2)
def text():
    return model.generate("Once upon a time", max_tokens=100, ignore_eos=True, seed=1).tokens
want, done = text(), threading.Event()
def collect():
    while not done.is_set():
        gc.collect()
thread = threading.Thread(target=collect)
thread.start()
print(text() == want)
done.set()
thread.join()
"""
    assert run(program) == "True\n"
