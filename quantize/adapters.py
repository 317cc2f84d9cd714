"""Adapters from one program's form to another's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymixtral.adapters import gguf_writer, peft_writer
from pymixtral.adapters.opening import open_adapter
from pymixtral.arguments import path_of
from pymixtral.errors import AdapterError, CheckpointError, InvalidArgumentError
from pymixtral.files.atomic import check_dest
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.kinds import named
from pymixtral.files.places import reading
from pymixtral.model.config import ModelConfig

from .sources import huggingface, mistral

_Path = str | os.PathLike[str]


@dataclass(frozen=True)
class Conversion:
    """An adapter that was written.

    Attributes:
        files: the files written.
        n_pairs: pairs of matrices.
        rank: the largest rank.
        n_bytes: of the files.
    """

    files: tuple[Path, ...]
    n_pairs: int
    rank: int
    n_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {
            "files": [str(file) for file in self.files],
            "pairs": self.n_pairs,
            "rank": self.rank,
            "n_bytes": self.n_bytes,
        }


def convert_adapter(source: _Path, dest: _Path, base: _Path, *, force: bool = False) -> Conversion:
    """Write a low-rank adapter in another form.

    Args:
        source: a folder of PEFT or of Mistral, or a GGUF file.
        dest: what to write: a GGUF file where its name ends in .gguf, else a folder of PEFT.
        base: the model that it is for: a GGUF file, or the folder of a checkpoint, of which
            config.json or params.json is enough.
        force: replace files that exist.

    Returns:
        What was written.

    Raises:
        AdapterError: the adapter is broken, does not fit the model, or means what is not computed.
        ModelFileError: a GGUF file is broken.
        CheckpointError: `base` is no model.
        ModelConfigError: it describes none that makes sense.
        UnsupportedError: it is another kind of model.
        InvalidArgumentError: an argument is no path, or `dest` is named like a file of a folder.
        OutputError: `dest` cannot be written.
    """
    path, place = path_of("dest", dest), path_of("source", source)
    as_gguf = path.suffix == ".gguf"
    if path.suffix in (".safetensors", ".json", ".bin"):
        raise InvalidArgumentError(
            f"expected dest to end in .gguf, or to be a folder of PEFT, found {named(path)}: name the folder"
        )
    files = (path,) if as_gguf else peft_writer.paths(path)
    used = [*adapter_files(place), path_of("base", base)]
    if as_gguf or path.is_dir():
        for file in files:
            check_dest(file, used, force)
    else:
        check_dest(path, used, force)
    config = read_numbers(path_of("base", base))
    adapter = open_adapter(place, config)
    if not adapter.pairs:
        raise AdapterError(
            f"{named(place)}: expected an adapter that adds something, found one of zeros: train it first"
        )
    write = gguf_writer.write if as_gguf else peft_writer.write
    write(adapter, config, path, force=force)
    n_bytes = sum(file.stat().st_size for file in files)
    return Conversion(files, len(adapter.pairs), adapter.rank, n_bytes)


def adapter_files(path: Path) -> list[Path]:
    """The files of an adapter, which no output may replace."""
    return [entry for entry in path.iterdir() if entry.is_file()] if path.is_dir() else [path]


def read_numbers(path: Path) -> ModelConfig:
    """Read the numbers of a model, and no weights.

    Args:
        path: a GGUF file, or the folder of a checkpoint.

    Returns:
        Its numbers.

    Raises:
        CheckpointError: there is no model.
        ModelFileError: a GGUF file is broken.
        ModelConfigError: it describes no model that makes sense.
        UnsupportedError: it is another kind of model.
    """
    with reading(path):
        if not path.is_dir():
            with GGUFFile(path) as file:
                return ModelConfig.from_gguf(file)
        if (path / "config.json").exists():
            return huggingface.read_config(path / "config.json")[0]
        if (path / "params.json").exists():
            return mistral.read_params(path / "params.json")[0]
    raise CheckpointError(
        f"{named(path)}: expected a model: a GGUF file, or a folder with config.json or params.json, found none of them"
    )
