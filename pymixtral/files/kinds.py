"""What a file is that is no model: recognized by its first bytes and its name, with what helps."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from pymixtral.arguments import shown

HEAD_BYTES = 512
"""How many of a file's first bytes are looked at."""

_MAX_SHOWN = 300
"""Characters of a path that a message has as it is."""

_ADAPTER = "a LoRA adapter, which is no model by itself: open its model, with this as an adapter"

_ADAPTER_FILES = ("adapter_model.safetensors", "lora.safetensors")
"""Of PEFT and of Mistral."""

_PART = re.compile(r"(.+\.\w+?)(?:[.-](?:split|part)-?)(?:[a-z]{1,3}|\d+(?:of\d+)?)", re.ASCII)
"""Names of files that were cut for hosts with a limit: x.gguf-split-a, x.gguf.part1of2."""

_MAGICS = (
    (b"version https://git-lfs.github.com/", "a pointer of git-lfs in place of the file: fetch it with `git lfs pull`"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"PK\x03\x04", "a zip archive or a file of PyTorch: unpack it, or download the model as GGUF or safetensors"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it"),
    (b"\xfd7zXZ", "an xz archive: unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it"),
    *((magic, "GGML, the format before GGUF: download the model as GGUF") for magic in (b"lmgg", b"fmgg", b"tjgg")),
)


def part_of(path: Path) -> str:
    """How to join the parts that a file was cut into.

    Args:
        path: a file.

    Returns:
        What to do; "" for a file whose name is not that of a part.
    """
    match = _PART.fullmatch(path.name)
    if not match:
        return ""
    whole = shlex.quote(match[1])
    return f"join all its parts in order, such as with `cat {whole}[.-]* > {whole}`"


def named(path: Path) -> str:
    """Name a path in a message.

    Args:
        path: the path, which may be a stranger's.

    Returns:
        It as it is where that is one line of a modest length, else what shown() makes of it.
    """
    text = str(path)
    return text if text.isprintable() and len(text) <= _MAX_SHOWN else shown(text)


def found_instead(path: Path, head: bytes) -> str:
    """What a file is that was expected to be GGUF or safetensors.

    Args:
        path: the file.
        head: its first HEAD_BYTES.

    Returns:
        What it is and what to do; "" if it is nothing known.
    """
    if advice := part_of(path):
        return f"a part of a file: {advice}"
    for magic, what in _MAGICS:
        if head.startswith(magic):
            return what
    text = head.lstrip()[:14].lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return (
            "a web page: log in where the file is published, accept its terms if there are any, and download it again"
        )
    if path.name in _ADAPTER_FILES:
        return _ADAPTER
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 1 << 30:
        return f"safetensors: {_quantize(path.parent)}"
    if text.startswith(b"{"):
        return "JSON: download the file again, or name the directory of the checkpoint that it belongs to"
    if len(head) == HEAD_BYTES and not any(head):
        return "zeros: the download is incomplete, so download the file again"
    return ""


def gguf_instead(metadata: Mapping[str, object]) -> str:
    """What a GGUF file is that holds no model, and what to do; "" of a model, and of what is unknown."""
    values = (metadata.get("general.type"), metadata.get("general.architecture"))
    kind, architecture = (value if isinstance(value, str) else "" for value in values)  # a file may have arrays there
    if kind == "mmproj" or architecture == "clip":
        return "a projector of images, a part of a model that sees: name the model's own file"
    if kind == "adapter":
        return _ADAPTER
    if kind == "imatrix":
        return "an importance matrix: name a model here, and this file in quantize's imatrix"
    return ""


def directory_instead(path: Path) -> str:
    """What a directory is that was given as a GGUF file, and what to do."""
    names = sorted(entry.name for entry in path.iterdir())
    if models := [name for name in names if name.endswith(".gguf")]:
        return f"a directory: name a file in it, such as {path / models[0]}"
    if "lora.safetensors" in names or ("adapter_config.json" in names and "config.json" not in names):
        return _ADAPTER
    if "config.json" in names or "params.json" in names:
        return f"the directory of a checkpoint: {_quantize(path)}"
    return "a directory: name a GGUF file"


def _quantize(directory: Path) -> str:
    return f"make a GGUF file of the checkpoint with `pymixtral quantize {shlex.quote(str(directory))} model.gguf`"
