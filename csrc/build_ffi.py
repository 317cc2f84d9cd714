"""cffi build script of pymixtral._pmx: the sources and flags of the C library.

Runs without importing pymixtral. The ABI that cffi sees is pmx.h itself, between its two markers,
so that the header cannot drift from the binding. No -march: each instruction set's files raise
their own target, chosen at run time. No link-time optimization: it could clone scalar kernels into
wider instruction sets.

Environment: PYMIXTRAL_STRICT=1 makes warnings errors; PYMIXTRAL_SANITIZE=address,undefined builds
with these sanitizers, for a Python that has their runtime preloaded (tests/native/sanitize).
"""

import os
import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

FLAGS = [
    "-std=c11",
    "-O3",
    "-fno-lto",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-g0",  # Python's own flags may ask for -g, which makes four megabytes of one
    "-D_GNU_SOURCE",
]
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion"]
# Python's own -fwrapv would hide signed overflow, and make gcc take minutes over it.
SANITIZED = ["-O1", "-g", "-fno-wrapv", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]


def flags() -> tuple[list[str], list[str]]:
    """For the compiler and the linker."""
    strict = [*WARNINGS, "-Werror"] if os.environ.get("PYMIXTRAL_STRICT") else []
    sanitize = [f"-fsanitize={names}"] if (names := os.environ.get("PYMIXTRAL_SANITIZE")) else []
    return [*FLAGS, *strict, *(SANITIZED if sanitize else []), *sanitize], sanitize


def declarations() -> str:
    header = (HERE / "pmx.h").read_text()
    body = header.split("/* cdef begin */")[1].split("/* cdef end */")[0]
    return re.sub(r"/\*.*?\*/", "", body, flags=re.S)


def sources() -> list[str]:
    files = sorted(p for p in HERE.rglob("*.c") if not p.name.startswith("_"))
    return [os.path.relpath(p, ROOT) for p in files]


compile_args, link_args = flags()
ffibuilder = FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source(
    "pymixtral._pmx",
    '#include "pmx.h"',
    sources=sources(),
    include_dirs=[os.path.relpath(HERE, ROOT)],
    depends=[os.path.relpath(p, ROOT) for p in sorted(HERE.rglob("*.h"))],
    extra_compile_args=compile_args,
    extra_link_args=link_args,
    libraries=["m", "pthread"],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
