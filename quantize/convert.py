"""One quantization from checkpoint to GGUF file and report."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from gguf import GGMLQuantizationType
from tqdm import tqdm

from pymixtral import ops
from pymixtral.errors import CheckpointError, InvalidArgumentError
from pymixtral.files import replacing

from .checkpoint import Checkpoint
from .recipe import parse_type, tensor_type
from .report import ErrorMeter, Report, size
from .vocab import Vocabulary, read_vocabulary
from .writer import ALIGNMENT, PlannedTensor, write_gguf


def quantize(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    type: str = "q8_0",
    *,
    n_threads: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> Report:
    """Writes the Hugging Face checkpoint in the directory `source` as the GGUF file `dest`.

    type: "f32", "bf16", "f16", "q8_0" or "q4_0" for the matrices; norms and the router are f32. n_threads: None for one per core.
    force: replace an existing file. progress: a bar on stderr when that is a terminal.

    `dest` appears only when it is complete. Memory beyond the mapped checkpoint stays under 1 GB whatever the model's size.
    Raises CheckpointError, UnsupportedError (another kind of model) and InvalidArgumentError (type, dest, n_threads).
    """
    started = time.monotonic()
    asked = parse_type(type)
    directory, path = Path(source), Path(dest)
    checkpoint = Checkpoint.open(directory)
    _check_dest(path, checkpoint, force)
    vocabulary = read_vocabulary(directory)
    if vocabulary is not None:
        vocabulary = vocabulary.padded(checkpoint.config.n_vocab)
    plan = [PlannedTensor(target, tensor_type(target, asked)) for target in checkpoint.targets]
    n_bytes = sum(tensor.n_bytes for tensor in plan)
    _check_space(path, n_bytes + ALIGNMENT * len(plan))
    meter = ErrorMeter()
    for tensor in plan:
        meter.add_tensor(tensor.target.name, tensor.type, tensor.n_weights, tensor.n_bytes)
    try:
        with (
            ops.Context(n_threads) as context,
            replacing(path) as temporary,
            tqdm(total=n_bytes, unit="B", unit_scale=True, unit_divisor=1024, desc=path.name, disable=None if progress else True) as bar,
        ):
            for chunk in write_gguf(temporary, checkpoint, vocabulary, plan, asked, context):
                meter.add_rows(chunk.tensor.target.name, chunk.tensor.type, chunk.weights, chunk.data)
                bar.update(chunk.data.size)
    except OSError as error:
        raise CheckpointError(f"{path} could not be written ({error.strerror or error}); nothing was left behind") from error
    return Report(
        source=directory,
        dest=path,
        type=type,
        file_bytes=path.stat().st_size,
        seconds=time.monotonic() - started,
        classes=meter.classes(),
        notes=tuple(_notes(plan, asked, vocabulary)),
    )


def _check_dest(path: Path, checkpoint: Checkpoint, force: bool) -> None:
    if not path.parent.is_dir():
        raise InvalidArgumentError(f"{path}: the directory {path.parent} does not exist; create it first")
    if not path.name or path.is_dir():
        raise InvalidArgumentError(f"{path} is a directory; expected the name of a file to write")
    if not os.path.lexists(path):
        return
    if path.exists() and any(path.samefile(used) for used in checkpoint.files):
        raise InvalidArgumentError(f"{path} belongs to the checkpoint that is read; choose another destination")
    if not path.is_file() and not path.is_symlink():
        raise InvalidArgumentError(f"{path} is no regular file; choose another destination")
    if not force:
        raise InvalidArgumentError(f"{path} exists; choose another destination or replace it with --force (force=True)")


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise InvalidArgumentError(f"{path}: needs {size(needed)}, its disk has {size(free)} free; make room or choose another destination")


def _notes(plan: Sequence[PlannedTensor], asked: GGMLQuantizationType, vocabulary: Vocabulary | None) -> list[str]:
    notes = []
    if vocabulary is None:
        notes.append("no tokenizer.model in the checkpoint: the file has no vocabulary and takes token ids only")
    elif vocabulary.n_padding:
        notes.append(f"tokenizer.model is smaller than vocab_size: {vocabulary.n_padding} unused pieces [PADn] were added")
    fallback = [tensor.target.name for tensor in plan if tensor.type == GGMLQuantizationType.F16 != asked]
    if fallback:
        notes.append(f"{len(fallback)} matrices are f16, as their rows do not divide into blocks of 32, such as {fallback[0]}")
    return notes
