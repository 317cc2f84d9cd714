"""One quantization from checkpoint to GGUF file and report."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from gguf import GGMLQuantizationType, LlamaFileType
from tqdm import tqdm

from pymixtral import ops
from pymixtral.errors import CheckpointError
from pymixtral.files import check_dest, check_space, replacing

from .checkpoint import Checkpoint
from .encoding import F32, U8, decode
from .planning import ALIGNMENT, Plan, PlannedTensor, Request, make_plan
from .report import ERROR_STRIDE, ErrorMeter, Report
from .vocab import Vocabulary, read_vocabulary
from .writer import write_gguf, write_header

Path_ = str | os.PathLike[str]


def quantize(
    source: Path_,
    dest: Path_,
    type: str | None = None,
    *,
    tensors: Sequence[tuple[str, str]] = (),
    imatrix: Path_ | None = None,
    target_bytes: int | None = None,
    target_bpw: float | None = None,
    n_threads: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> Report:
    """Writes the Hugging Face checkpoint in the directory `source` as the GGUF file `dest`.

    type: a type for the matrices ("f32", "bf16", "f16", "q8_0", "q4_0") or the name of a mix, such as "q4_k_m"; None without a target:
    "q8_0". Norms and the router are f32. tensors: (pattern, type) pairs that decide for the GGUF tensors of matching names, such as
    ("blk.*.ffn_down_exps.weight", "q6_k"); the last that matches counts. imatrix: a file of `pymixtral calibrate` or llama.cpp's; columns
    with larger inputs get smaller errors. target_bytes, target_bpw: instead of a type, the size of the file, or bits per weight: each
    matrix gets what reduces errors most, as pymixtral.quantize.budget explains. n_threads: None for one per core. force: replace an
    existing file. progress: bars on stderr when that is a terminal.

    `dest` appears only when it is complete. Memory beyond the mapped checkpoint stays under 1 GB whatever the model's size.
    Raises CheckpointError, UnsupportedError (another kind of model), ModelFileError (a broken importance matrix) and
    InvalidArgumentError (the other arguments, and an importance matrix of another model).
    """
    started = time.monotonic()
    path = Path(dest)
    checkpoint, vocabulary = _open(Path(source))
    check_dest(path, checkpoint.files, force)
    with ops.Context(n_threads) as context:
        decided = _plan(checkpoint, vocabulary, _request(type, target_bytes, target_bpw, tensors, imatrix), context, progress)
        check_space(path, decided.n_bytes + ALIGNMENT)
        meter = ErrorMeter()
        try:
            with (
                replacing(path) as temporary,
                tqdm(
                    total=sum(tensor.n_bytes for tensor in decided.tensors),
                    unit="B",
                    unit_scale=True,
                    unit_divisor=1024,
                    desc=path.name,
                    disable=None if progress else True,
                ) as bar,
            ):
                for chunk in write_gguf(temporary, checkpoint, vocabulary, decided, context):
                    _measure(meter, context, chunk.tensor, chunk.source, chunk.weights, chunk.data)
                    bar.update(chunk.data.size)
        except OSError as error:
            raise CheckpointError(f"{path} could not be written ({error.strerror or error}); nothing was left behind") from error
    reports = tuple(meter.tensor(tensor.target.name, tensor.type, tensor.target.shape, tensor.n_bytes) for tensor in decided.tensors)
    return Report(
        source=checkpoint.directory,
        dest=path,
        type=decided.name,
        file_bytes=path.stat().st_size,
        seconds=time.monotonic() - started,
        classes=meter.classes(reports),
        tensors=reports,
        notes=(*_vocabulary_notes(vocabulary), *decided.notes),
    )


def plan(
    source: Path_,
    type: str | None = None,
    *,
    tensors: Sequence[tuple[str, str]] = (),
    imatrix: Path_ | None = None,
    target_bytes: int | None = None,
    target_bpw: float | None = None,
    n_threads: int | None = None,
    progress: bool = True,
) -> Plan:
    """What quantize() with these arguments would write; writes nothing, and raises the same."""
    checkpoint, vocabulary = _open(Path(source))
    with ops.Context(n_threads) as context:
        return _plan(checkpoint, vocabulary, _request(type, target_bytes, target_bpw, tensors, imatrix), context, progress)


def _request(
    type: str | None, target_bytes: int | None, target_bpw: float | None, tensors: Sequence[tuple[str, str]], imatrix: Path_ | None
) -> Request:
    if type is None and target_bytes is None and target_bpw is None:
        type = "q8_0"
    return Request(type, target_bytes, target_bpw, tensors, Path(imatrix) if imatrix is not None else None)


def _open(directory: Path) -> tuple[Checkpoint, Vocabulary | None]:
    checkpoint = Checkpoint.open(directory)
    vocabulary = read_vocabulary(directory)
    return checkpoint, vocabulary.padded(checkpoint.config.n_vocab) if vocabulary is not None else None


def _plan(checkpoint: Checkpoint, vocabulary: Vocabulary | None, request: Request, context: ops.Context, progress: bool) -> Plan:
    placeholders = [PlannedTensor(target, GGMLQuantizationType.F32) for target in checkpoint.targets]
    with tempfile.TemporaryDirectory() as directory:
        header = Path(directory) / "header"
        write_header(header, checkpoint, vocabulary, placeholders, LlamaFileType.ALL_F32)
        header_bytes = header.stat().st_size
    return make_plan(checkpoint, request, context, -(-header_bytes // ALIGNMENT) * ALIGNMENT, progress)


def _measure(meter: ErrorMeter, context: ops.Context, tensor: PlannedTensor, source: int, weights: F32, data: U8) -> None:
    importance = tensor.importance.weights[source] if tensor.importance else None
    meter.add_rows(tensor.target.name, source, weights[::ERROR_STRIDE], decode(context, tensor.type, data[::ERROR_STRIDE]), importance)


def _vocabulary_notes(vocabulary: Vocabulary | None) -> list[str]:
    if vocabulary is None:
        return ["no tokenizer.model in the checkpoint: the file has no vocabulary and takes token ids only"]
    if vocabulary.n_padding:
        return [f"tokenizer.model is smaller than vocab_size: {vocabulary.n_padding} unused pieces [PADn] were added"]
    return []
