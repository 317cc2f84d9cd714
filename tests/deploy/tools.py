"""Programs and packages that check the files of deploy/: what is missing fails, and says how to get it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REQUIREMENTS = "pip install -r tests/deploy/requirements.txt"


def program(name: str, package: str) -> str:
    """The path of a program of Debian's."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"expected the program {name}, found none: apt-get install {package}")
    return found


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """What a command that succeeds prints, on either stream."""
    done = subprocess.run(
        [str(word) for word in command],
        env=env,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}"
    return done.stdout


def python(*words: str | Path) -> str:
    """What a Python program that succeeds prints."""
    return run(sys.executable, *words)
