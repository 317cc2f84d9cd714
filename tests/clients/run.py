"""Runs programs of other packages against `pymixtral serve`, each in its own environment.

python tests/clients/run.py [--environments FOLDER] [NAME...]

They need PyPI and minutes, so they are no part of pytest: a client comes with up to a hundred
packages, and no environment fits all. The server is this interpreter's, with the demo model. A
program passes if its answers are those that the model gives in this process, to the letter. Between
runs FOLDER keeps the environments; otherwise they are removed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import compare

from pymixtral import Mixtral
from pymixtral.demo import demo_chat_path

HERE = Path(__file__).parent
ADDRESS = "http://127.0.0.1:8080"  # what the programs say; the server's own is put in its place
KEY = "sesame"
SECONDS = 600  # that nothing waits for ever


@dataclass(frozen=True)
class Client:
    """A program and its packages.

    Attributes:
        package: what pip installs first, whose version is reported; "": nothing.
        program: its file.
        answers: how often it prints the answer: whole, and piece by piece.
    """

    package: str
    program: str
    answers: int = 2


CLIENTS = {
    "curl": Client("", "with_curl.sh", 1),
    "openai": Client("openai", "with_openai.py"),
    "openai-2": Client("openai<3", "with_openai.py"),
    "langchain": Client("langchain-openai", "with_langchain.py"),
    "llama-index": Client("llama-index-llms-openai-like", "with_llama_index.py"),
    "llm": Client("llm", "with_llm.sh"),
    "litellm": Client("litellm", "with_litellm.py"),
    "haystack": Client("haystack-ai", "with_haystack.py"),
    "dspy": Client("dspy", "with_dspy.py", 1),
    "lm-eval": Client("lm-eval[api]", "with_lm_eval.sh", 0),
}


@contextmanager
def server() -> Iterator[str]:
    """The address of a server that is ready."""
    command = [sys.executable, "-m", "pymixtral", "serve", "--port", "0", "--name", "mixtral"]
    environment = {**os.environ, "PYMIXTRAL_API_KEYS": KEY}
    environment.pop("PYMIXTRAL_MODEL", None)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        lines = []
        while not (found := re.search(r"http://\S+", "".join(lines))):
            lines.append(process.stderr.readline())
            if not lines[-1]:
                sys.exit(f"expected a server, found that it ended: {''.join(lines)}")
        address = found[0].rstrip("/")
        # The log, which else fills the pipe.
        threading.Thread(target=deque, args=(process.stderr, 0), daemon=True).start()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=SECONDS):
                    break
            except urllib.error.HTTPError:  # 503 while it loads
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(SECONDS)


def expected() -> str:
    """The answer of the model in this process."""
    with Mixtral(demo_chat_path()) as model:
        question = [{"role": "user", "content": "Who are you?"}]
        return model.chat(question, max_tokens=16, temperature=0).content


def environment(name: str, package: str, folder: Path) -> Path:
    """An environment with the package, made if it is not there."""
    place = folder / name
    if not (place / "complete").exists():
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        if package:
            subprocess.run([place / "bin/python", "-m", "pip", "install", "-q", package], check=True)
        (place / "complete").touch()
    return place


def version(place: Path, package: str) -> str:
    """What is installed, such as "openai 3.57.0"."""
    if not package:
        return subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split(" (")[0]
    name = re.split(r"[<\[]", package)[0]
    program = f"from importlib.metadata import version; print({name!r}, version({name!r}))"
    done = subprocess.run([place / "bin/python", "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def printed(client: Client, place: Path, address: str, home: Path) -> str:
    """What a program prints, run from a copy with the server's address."""
    for file in [HERE / client.program, *(HERE / "tasks").iterdir()]:
        text = file.read_text(encoding="utf-8").replace(ADDRESS, address).replace("FOLDER", str(home))
        (home / file.name).write_text(text, encoding="utf-8")
    variables = {
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "LLM_USER_PATH": str(home / "llm"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "PYTHONUTF8": "1",
    }
    runs = ["bash", "-euo", "pipefail"] if client.program.endswith(".sh") else [place / "bin/python"]
    done = subprocess.run(
        [*runs, client.program], cwd=home, env=variables, capture_output=True, encoding="utf-8", timeout=SECONDS
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def main() -> int:
    """Runs the clients that are named, or all; returns how many failed."""
    parser = argparse.ArgumentParser(description="Run other packages against a server.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CLIENTS))
    parser.add_argument("--environments", type=Path, help="a folder that keeps the environments")
    given = parser.parse_args()
    names = given.names or list(CLIENTS)
    if unknown := sorted(set(names) - CLIENTS.keys()):
        parser.error(f"expected names among {', '.join(CLIENTS)}, found {', '.join(unknown)}")
    answer, failed = expected(), 0
    print(f"The answer: {answer!r}")
    with server() as address, tempfile.TemporaryDirectory() as temporary:
        for name in names:
            client = CLIENTS[name]
            folder = (given.environments or Path(temporary)).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            try:
                place = environment(name, client.package, folder)
                with tempfile.TemporaryDirectory() as home:
                    text = printed(client, place, address, Path(home))
                    found = text.count(answer)
                    if found != client.answers:
                        raise RuntimeError(
                            f"expected the answer {client.answers} times, found it {found} times: {text}"
                        )
                    if not client.answers:
                        print(compare(Path(home)))
                print(f"passed {name}: {version(place, client.package)}", flush=True)
            except (RuntimeError, subprocess.SubprocessError, AssertionError) as error:
                failed += 1
                print(f"FAILED {name}: {error}", flush=True)
            if given.environments is None:
                shutil.rmtree(folder / name, ignore_errors=True)
    print(f"{len(names) - failed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(min(main(), 1))
