"""One quantization from checkpoint to GGUF file and report."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from gguf import GGMLQuantizationType, LlamaFileType
from tqdm import tqdm

from pymixtral import ops
from pymixtral.arguments import path_of
from pymixtral.errors import CheckpointError
from pymixtral.files.atomic import check_dest, check_space, replacing
from pymixtral.files.kinds import named
from pymixtral.progress import progress_bar, warn

from .adapters import adapter_files
from .encoding import decode
from .header import make_header
from .planning import ALIGNMENT, Plan, PlannedTensor, Request, make_plan
from .report import ERROR_STRIDE, ErrorMeter, Report, TensorReport
from .sources.checkpoint import Checkpoint
from .sources.merged import Merged
from .sources.opening import open_checkpoint
from .verify import verify as read_back
from .vocabulary.reading import read_vocabulary
from .vocabulary.vocabulary import Vocabulary
from .writer import Chunk, write_gguf

_Path = str | os.PathLike[str]


def quantize(
    source: _Path,
    dest: _Path,
    type: str | None = None,
    *,
    tensors: Sequence[tuple[str, str]] = (),
    imatrix: _Path | None = None,
    target_bytes: int | None = None,
    target_bpw: float | None = None,
    per_expert: bool = False,
    zero_nonfinite: bool = False,
    no_tokenizer: bool = False,
    adapters: Sequence[_Path | tuple[_Path, float]] = (),
    n_threads: int | None = None,
    force: bool = False,
    verify: bool = True,
    progress: bool = True,
) -> Report:
    """Writes a checkpoint as a GGUF file.

    `dest` appears only when it is complete. Memory stays under 1 GB whatever the model's size.

    Args:
        source: a directory in Hugging Face's form (config.json, safetensors) or in Mistral's own
            (params.json, consolidated.safetensors), or a GGUF file, whose metadata is kept. One
            that is quantized already, also by GPTQ or AWQ with four bits, keeps its errors. Tensors
            that stay in their type are copied; that of GPTQ and AWQ is q4_1, or q4_0 where they are
            symmetric.
        dest: the file to write.
        type: a type for the matrices ("f32", "bf16", "f16", "q8_0") or the name of a mix, such as
            "q4_k_m" or "q4_0"; None without a target: "q8_0", or "q4_1" of a source by GPTQ or AWQ,
            which keeps its codes. Norms and the router are f32.
        tensors: pairs of pattern and type that decide for the GGUF tensors of matching names, such
            as ("blk.*.ffn_down_exps.weight", "q6_k"), or of all, ("*", "q4_0"). The last that
            matches counts.
        imatrix: a file of `pymixtral calibrate` or llama.cpp's. Columns with larger inputs get
            smaller errors.
        target_bytes: instead of a type, the size of the file. Each matrix gets the type that
            reduces errors most, as pymixtral.quantize.budget explains.
        target_bpw: likewise, bits per weight.
        per_expert: write a tensor for each expert, so that a target, or a pattern such as
            "blk.0.ffn_down.3.weight", gives each a type of its own. pymixtral reads such files,
            llama.cpp does not.
        zero_nonfinite: write weights that are NaN or infinite as 0 and report them, instead of
            refusing the checkpoint. In a quantized source these are the blocks with such a scale.
        no_tokenizer: write a file without a vocabulary, which takes token ids only, also where the
            checkpoint has none or one that is not supported. A GGUF source keeps its own.
        adapters: low-rank adapters (LoRA) whose changes are added to the weights before these are
            encoded: paths as of pymixtral's convert_adapter(), or pairs of a path and a scale. Sums
            are of float64, rounded once to float32. Tensors that an adapter changes are encoded again.
        n_threads: None for one per core.
        force: replace an existing file.
        verify: read the file back from the disk and compare it with checksums of what was written,
            before it gets its name.
        progress: warnings on stderr, and bars when that is a terminal.

    Returns:
        What was written, and its errors.

    Raises:
        CheckpointError: the source is broken, incomplete, contradicts itself or was changed
            meanwhile.
        UnsupportedError: the source is another kind of model.
        ModelFileError: an importance matrix or a GGUF source is broken.
        ModelConfigError: a GGUF source describes no model that makes sense.
        InvalidArgumentError: another argument is out of its range, or the importance matrix is of
            another model.
        AdapterError: an adapter is broken, does not fit the model, or means what is not computed.
        OutputError: `dest` cannot be written.
    """
    started = time.monotonic()
    path = path_of("dest", dest)
    checkpoint, vocabulary = _open(path_of("source", source), per_expert, zero_nonfinite, no_tokenizer, adapters)
    beside = [file for adapter, _ in checkpoint.merged.adapters for file in adapter_files(Path(adapter.source))]
    check_dest(path, [*checkpoint.used, *beside, *([imatrix] if imatrix is not None else [])], force)
    with ops.Context(n_threads) as context:
        request = _request(checkpoint, type, target_bytes, target_bpw, tensors, imatrix)
        decided = _plan(checkpoint, vocabulary, request, context, progress)
        check_space(path, decided.n_bytes + ALIGNMENT)
        header = make_header(checkpoint, vocabulary, decided.tensors, decided.file_type)
        meter, checksums, zeroed = ErrorMeter(), dict[str, int](), Counter[str]()
        merged = checkpoint.merged.notes(checkpoint.targets)
        notes = [*checkpoint.notes, *merged, *_vocabulary_notes(checkpoint, vocabulary), *decided.notes]
        for note in checkpoint.notes if progress else ():
            warn(note)
        with replacing(path, force=force) as temporary:
            with (
                closing(write_gguf(temporary, header, checkpoint, decided, context, checksums)) as chunks,
                _bar(path.name, decided, progress) as bar,
            ):
                for chunk in chunks:
                    _measure(meter, context, chunk)
                    zeroed[chunk.tensor.target.sources[chunk.source]] += chunk.n_zeroed
                    bar.update(chunk.data.size)
            checkpoint.check_unchanged()
            if verify:
                began = time.monotonic()
                with _bar("verifying", decided, progress) as bar:
                    for n_bytes in read_back(temporary, header, decided, checksums):
                        bar.update(n_bytes)
                seconds = time.monotonic() - began
                notes.append(f"read back from the disk and found equal to what was written, in {seconds:.1f} s")
    reports = tuple(_report(meter, tensor, zeroed) for tensor in decided.tensors)
    return Report(
        source=checkpoint.path,
        dest=path,
        type=decided.name,
        file_bytes=path.stat().st_size,
        seconds=time.monotonic() - started,
        classes=meter.classes(reports),
        tensors=reports,
        notes=(*notes, *_packing_notes(checkpoint), *_zeroed_notes(zeroed)),
    )


def plan(
    source: _Path,
    type: str | None = None,
    *,
    tensors: Sequence[tuple[str, str]] = (),
    imatrix: _Path | None = None,
    target_bytes: int | None = None,
    target_bpw: float | None = None,
    per_expert: bool = False,
    zero_nonfinite: bool = False,
    no_tokenizer: bool = False,
    adapters: Sequence[_Path | tuple[_Path, float]] = (),
    n_threads: int | None = None,
    progress: bool = True,
) -> Plan:
    """What quantize() would write. Nothing is written.

    Args:
        source: as of quantize().
        type: likewise.
        tensors: likewise.
        imatrix: likewise.
        target_bytes: likewise.
        target_bpw: likewise.
        per_expert: likewise.
        zero_nonfinite: likewise.
        no_tokenizer: likewise.
        adapters: likewise.
        n_threads: likewise.
        progress: a bar on stderr, when that is a terminal.

    Returns:
        Types and sizes; str() shows them.

    Raises:
        PymixtralError: those of quantize(), but for OutputError.
    """
    checkpoint, vocabulary = _open(path_of("source", source), per_expert, zero_nonfinite, no_tokenizer, adapters)
    with ops.Context(n_threads) as context:
        request = _request(checkpoint, type, target_bytes, target_bpw, tensors, imatrix)
        return _plan(checkpoint, vocabulary, request, context, progress)


def _request(
    checkpoint: Checkpoint,
    type: str | None,
    target_bytes: int | None,
    target_bpw: float | None,
    tensors: Sequence[tuple[str, str]],
    imatrix: _Path | None,
) -> Request:
    if type is None and target_bytes is None and target_bpw is None:
        type = "q4_1" if checkpoint.packing else "q8_0"
    matrix = path_of("imatrix", imatrix) if imatrix is not None else None
    return Request(type, target_bytes, target_bpw, tensors, matrix)


def _open(
    source: Path,
    per_expert: bool,
    zero_nonfinite: bool,
    no_tokenizer: bool,
    adapters: Sequence[_Path | tuple[_Path, float]],
) -> tuple[Checkpoint, Vocabulary | None]:
    checkpoint = replace(open_checkpoint(source), zero_nonfinite=zero_nonfinite)
    checkpoint = replace(checkpoint, merged=Merged.open(adapters, checkpoint.config))
    if per_expert:
        checkpoint = checkpoint.per_expert()
    if checkpoint.metadata or no_tokenizer:
        return checkpoint, None
    vocabulary = read_vocabulary(source)
    if vocabulary is None:
        raise CheckpointError(
            f"{named(source)}: expected tokenizer.model, tokenizer.json or tekken.json, found none of them: put it "
            "beside the weights, or write a file that takes token ids only, with no_tokenizer=True"
        )
    return checkpoint, vocabulary.padded(checkpoint.config.n_vocab)


def _plan(
    checkpoint: Checkpoint, vocabulary: Vocabulary | None, request: Request, context: ops.Context, progress: bool
) -> Plan:
    placeholders = [PlannedTensor(target, GGMLQuantizationType.F32) for target in checkpoint.targets]
    n_header = len(make_header(checkpoint, vocabulary, placeholders, LlamaFileType.ALL_F32))
    return make_plan(checkpoint, request, context, n_header, progress)


def _bar(name: str, plan: Plan, progress: bool) -> tqdm[NoReturn]:
    n_bytes = sum(tensor.n_bytes for tensor in plan.tensors)
    return progress_bar(total=n_bytes, unit="B", unit_scale=True, label=name, shown=progress)


def _measure(meter: ErrorMeter, context: ops.Context, chunk: Chunk) -> None:
    tensor, some = chunk.tensor, slice(None, None, ERROR_STRIDE)
    importance = tensor.importance.weights[chunk.source] if tensor.importance else None
    decoded = decode(context, tensor.type, chunk.data[some])
    meter.add_rows(tensor.target.name, chunk.source, chunk.weights[some], decoded, importance)


def _report(meter: ErrorMeter, tensor: PlannedTensor, zeroed: Counter[str]) -> TensorReport:
    n_zeroed = sum(zeroed[source] for source in tensor.target.sources)
    return meter.tensor(tensor.target.name, tensor.type, tensor.target.shape, tensor.n_bytes, n_zeroed)


def _packing_notes(checkpoint: Checkpoint) -> list[str]:
    packing = checkpoint.packing
    if packing is None or not packing.kept:
        return []
    rounded = f"changed by {100 * packing.rounding:.3g}% at most" if packing.rounding else "not changed"
    return [f"the codes of {packing.method} are kept, and scales and their zeros were {rounded} by rounding to f16"]


def _zeroed_notes(zeroed: Counter[str]) -> list[str]:
    found = [f"{n} of {source}" for source, n in zeroed.items() if n]
    if not found:
        return []
    more = f" and {len(found) - 4} more tensors" * (len(found) > 4)
    return [f"weights that were NaN or infinite and are 0: {', '.join(found[:4])}{more}"]


def _vocabulary_notes(checkpoint: Checkpoint, vocabulary: Vocabulary | None) -> list[str]:
    if checkpoint.metadata:
        return []
    if vocabulary is None:
        return ["no tokenizer was asked for: the file has no vocabulary and takes token ids only"]
    notes = list(vocabulary.notes)
    if vocabulary.n_dropped:
        notes.append(f"{vocabulary.n_dropped} added tokens are beyond the model's vocab_size and were left out")
    if vocabulary.n_padding:
        notes.append(
            f"the vocabulary is smaller than vocab_size: {vocabulary.n_padding} unused pieces [PADn] were added"
        )
    return notes
