"""Fixtures shared by the tests: tests/data/tiny-mixtral and the GGUF files that the quantizer makes
of it, and a model that takes its time, once per session.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import settings

from pymixtral.inspection.machine import instruction_sets
from pymixtral.quantize import quantize
from support.checkpoints import Shape, make_checkpoint
from support.paths import DATA

# The same cases each time, so that what fails once fails again. To hunt: pytest --hypothesis-profile=explore
settings.register_profile("seeded", derandomize=True)
settings.register_profile("explore")
settings.load_profile("seeded")


def pytest_configure() -> None:
    """The signals that a terminal's programs begin with, also where the tests run in the background
    or under nohup: tests of interrupts send them, to this process and to those it starts, which
    inherit what is ignored.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says which instruction sets the kernels' tests ran on, and which of this build the machine
    cannot run.
    """
    sets = instruction_sets()
    missing = [name for name in sets.built if name not in sets.available]
    not_run = f"; not run: {', '.join(missing)}" if missing else ""
    terminalreporter.write_line(f"instruction sets: {', '.join(sets.available)}{not_run}")


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """A small trained Mixtral as a Hugging Face directory, bfloat16."""
    return DATA / "tiny-mixtral"


def _quantized(kind: str, checkpoint: Path, factory: pytest.TempPathFactory) -> Path:
    path = factory.mktemp("tiny") / f"tiny-mixtral-{kind}.gguf"
    quantize(checkpoint, path, kind, progress=False)
    return path


@pytest.fixture(scope="session")
def tiny_f32(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _quantized("f32", tiny_checkpoint, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_f16(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _quantized("f16", tiny_checkpoint, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_q8_0(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _quantized("q8_0", tiny_checkpoint, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_q4_0(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _quantized("q4_0", tiny_checkpoint, tmp_path_factory)


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights that writes for minutes, and reads a long prompt for as long."""
    directory = tmp_path_factory.mktemp("endless")
    make_checkpoint(directory / "endless", Shape(n_heads=16, n_kv_heads=1, n_ctx=1 << 16), seed=1)
    quantize(directory / "endless", directory / "endless.gguf", "q8_0", progress=False)
    return directory / "endless.gguf"
