"""Opens an adapter in whichever of the published forms it is."""

from __future__ import annotations

import os
from pathlib import Path

from pymixtral.arguments import path_of
from pymixtral.errors import AdapterError, NativeError
from pymixtral.files.kinds import named
from pymixtral.model.adapter import Adapter
from pymixtral.model.config import ModelConfig

from . import gguf, mistral, peft
from .peft_config import FILE

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def open_adapter(path: str | os.PathLike[str], config: ModelConfig) -> Adapter:
    """Read a low-rank adapter.

    Args:
        path: a folder of PEFT (adapter_config.json, adapter_model.safetensors) or of Mistral
            (params.json, lora.safetensors), or a GGUF file, as llama.cpp has them.
        config: the numbers of the model that it is for. All shapes are compared with them before
            numbers are read.

    Returns:
        The adapter, its own scale multiplied in.

    Raises:
        AdapterError: it is broken, does not fit the model, or means what is not computed.
        ModelFileError: a GGUF file is broken.
        NativeError: there is no memory, or too many files are open.
    """
    place = path_of("adapter", path)
    try:
        return _open(place, config)
    except OSError as error:
        raise AdapterError(
            f"{named(place)}: cannot be read ({error.strerror}): check the path and its permissions"
        ) from None
    except MemoryError as error:
        raise NativeError(
            f"{named(place)}: expected memory for the adapter, found too little: end other programs"
        ) from error


def _open(path: Path, config: ModelConfig) -> Adapter:
    if path.is_dir():
        return _open_directory(path, config)
    if path.suffix in _PICKLES and path.is_file():
        raise peft.pickled(path)
    if not path.exists():
        raise AdapterError(
            f"{named(path)}: expected an adapter's folder or file, found none of this name: check the path"
        )
    if path.name.endswith((".safetensors", ".json")):
        raise AdapterError(
            f"{path}: expected an adapter's folder or a GGUF file, found one file of a folder: name the folder"
        )
    return gguf.read(path, config)


def _open_directory(path: Path, config: ModelConfig) -> Adapter:
    names = sorted(entry.name for entry in path.iterdir())
    if FILE in names:
        return peft.read(path, config)
    if mistral.WEIGHTS in names:
        return mistral.read(path, config)
    if ggufs := [name for name in names if name.endswith(".gguf")]:
        raise AdapterError(
            f"{named(path)}: expected an adapter, found a folder of GGUF files: name one of them, such as "
            f"{named(path / ggufs[0])}"
        )
    if peft.WEIGHTS in names or peft.PICKLE in names:
        weights = peft.WEIGHTS if peft.WEIGHTS in names else peft.PICKLE
        raise AdapterError(f"{named(path)}: expected {FILE} beside {weights}, found none: download it, too")
    raise AdapterError(
        f"{named(path)}: expected an adapter: {FILE} and {peft.WEIGHTS}, or {mistral.PARAMS} and {mistral.WEIGHTS}, or "
        "a GGUF file; found none of them"
    )
