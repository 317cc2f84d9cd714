"""Programs and commands as a reader of the documentation runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SECONDS = 120  # that nothing hangs for ever; each takes a few


def run(arguments: list[str], folder: Path) -> str:
    """Runs a program in a folder, with this interpreter's own commands before others.

    Returns:
        What it prints. What it says on standard error is shown when it fails.
    """
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": commands, "PYTHONUTF8": "1"}
    environment.pop("PYMIXTRAL_MODEL", None)  # the reader has set none
    environment |= {
        "LLM_USER_PATH": str(folder / "llm"),
        "LLM_LOAD_PLUGINS": "pymixtral",
    }  # and uses llm for this alone
    done = subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=SECONDS
    )
    assert done.returncode == 0, f"{arguments}: exit code {done.returncode}\n{done.stderr}"
    return done.stdout
