"""The C library of aarch64, cross-compiled and emulated: every instruction set equals the oracle.

On Debian and Ubuntu: apt-get install --no-install-recommends gcc-aarch64-linux-gnu
libc6-dev-arm64-cross qemu-user-static
"""

from __future__ import annotations

import runpy
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.aarch64_cases import ENONFINITE, GROUPS, Case
from support.paths import CSRC, TESTS

CC = shutil.which("aarch64-linux-gnu-gcc")
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")

pytestmark = pytest.mark.skipif(
    not (CC and QEMU), reason="not run: needs aarch64-linux-gnu-gcc with its libc, and qemu-aarch64"
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, compiled as build_ffi.py compiles it and without a warning, in a program that
    replays calls.
    """
    assert CC
    directory = tmp_path_factory.mktemp("aarch64")
    build = runpy.run_path(str(CSRC / "build_ffi.py"))
    flags = [*build["FLAGS"], *build["WARNINGS"], "-Werror", f"-I{CSRC}"]
    sources = [*(CSRC.parent / source for source in build["sources"]()), TESTS / "aarch64" / "driver.c"]
    objects = [directory / f"{i}.o" for i in range(len(sources))]
    with ThreadPoolExecutor(2) as pool:
        list(
            pool.map(
                lambda pair: subprocess.run([CC, *flags, "-c", pair[0], "-o", pair[1]], check=True),
                zip(sources, objects, strict=True),
            )
        )
    program = directory / "driver"
    subprocess.run([CC, "-static", *objects, "-o", program, "-lm", "-lpthread"], check=True)
    return program


def emulate(driver: Path, *args: str, cpu: str = "max", request: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    assert QEMU
    return subprocess.run([QEMU, "-cpu", cpu, str(driver), *args], input=request, capture_output=True, timeout=120)


@cache
def cases(group: str) -> list[Case]:
    return list(GROUPS[group]())


def replies(case_list: list[Case], output: bytes) -> list[tuple[int, int, list[bytes]]]:
    """Status, row and outputs of as many calls as were made."""
    at = 0

    def integer() -> int:
        nonlocal at
        at += 8
        return int.from_bytes(output[at - 8 : at], "little", signed=True)

    made: list[tuple[int, int, list[bytes]]] = []
    while at < len(output) and len(made) < len(case_list):
        status, row, buffers = integer(), integer(), []
        for _ in range(integer()):
            n = integer()
            buffers.append(output[at : at + n])
            at += n
        made.append((status, row, buffers))
    return made


@pytest.mark.parametrize(
    ("cpu", "available"),
    [("max", ["scalar", "neon", "neon_i8mm"]), ("neoverse-n1", ["scalar", "neon"]), ("cortex-a72", ["scalar"])],
)
def test_instruction_sets_are_those_of_the_cpu(driver: Path, cpu: str, available: list[str]) -> None:
    names = ["scalar", "neon", "neon_i8mm"]
    assert emulate(driver, "list", cpu=cpu).stdout.decode().splitlines() == [
        f"{name} {int(name in available)}" for name in names
    ]
    for name in names:
        assert emulate(driver, name, "1", cpu=cpu).returncode == (0 if name in available else 2)


@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("isa", ["scalar", "neon", "neon_i8mm"])
@pytest.mark.parametrize("group", GROUPS)
def test_equal_to_the_oracle(driver: Path, group: str, isa: str, threads: str) -> None:
    calls = cases(group)
    assert calls
    cpu = "neoverse-n1" if isa == "neon" else "max"  # a stray instruction of another set is illegal there
    result = emulate(driver, isa, threads, cpu=cpu, request=b"".join(case.request() for case in calls))
    made = replies(calls, result.stdout)
    assert len(made) == len(calls), f"{calls[len(made)]} ended with {result.returncode}: {result.stderr.decode()}"
    assert result.returncode == 0, result.stderr.decode()
    for case, (status, row, outputs) in zip(calls, made, strict=True):
        if isinstance(case.want, int):
            assert (status, row) == (ENONFINITE, case.want), str(case)
            continue
        assert status == 0, str(case)
        for got, want in zip(outputs[-len(case.want) :], case.want, strict=True):
            array: Any = np.frombuffer(got, want.dtype).reshape(want.shape)
            np.testing.assert_array_equal(array, want, str(case))
