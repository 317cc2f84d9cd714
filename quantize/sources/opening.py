"""Opens a checkpoint in whichever of the published forms it is."""

from __future__ import annotations

import shlex
from pathlib import Path

from pymixtral.errors import CheckpointError, UnsupportedError
from pymixtral.files.kinds import named
from pymixtral.files.places import reading

from . import gguf, huggingface, mistral
from .checkpoint import Checkpoint

_PICKLES = (".pth", ".pt", ".bin", ".ckpt")

# In a message, so on one line. Tensors are mapped and copied one file at a time; only tensors are
# unpickled. 1 stands for True, which in messages marks an argument of pymixtral.
_CONVERT = (
    'import glob, torch, safetensors.torch as s; f = sorted(glob.glob("consolidated.*.pt*")); '
    '[s.save_file({k: v.contiguous().clone() for k, v in torch.load(p, "cpu", weights_only=1, mmap=1).items()}, '
    '"consolidated.%02d-of-%02d.safetensors" % (i, len(f))) for i, p in enumerate(f)]'
)


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a directory in Hugging Face's or Mistral's own form, or a GGUF file.

    Args:
        path: the directory or file.

    Returns:
        The checkpoint, its tensors checked against its configuration. Their data is not read yet.

    Raises:
        CheckpointError: it is broken, incomplete or contradicts itself.
        UnsupportedError: it is another kind of model, or reading its form would run code from the
            file.
        ModelFileError: a GGUF file is broken.
        ModelConfigError: a GGUF file describes no model that makes sense.
    """
    with reading(path):
        return _open(path)


def _open(path: Path) -> Checkpoint:
    if path.is_file():
        if path.suffix in _PICKLES:
            raise _pickled(path, path.name)
        if path.name.endswith((".safetensors", ".json")):
            raise CheckpointError(
                f"{path}: expected a directory or a GGUF file, found one file of a checkpoint: name its directory"
            )
        return gguf.read(path)
    if not path.is_dir():
        raise CheckpointError(
            f"{named(path)}: expected a checkpoint (config.json and safetensors) or a GGUF file, found no such "
            "directory or file"
        )
    if huggingface.has_weights(path):
        return huggingface.read(path)
    if mistral.has_weights(path):
        return mistral.read(path)
    if any((path / name).exists() for name in ("adapter_config.json", "lora.safetensors")):
        raise UnsupportedError(
            f"{path}: expected a whole model, found a LoRA adapter: merge it into its model, by naming that here, "
            "and this among the adapters"
        )
    pickles = sorted(entry.name for entry in path.iterdir() if entry.suffix in _PICKLES)
    pickles = [name for name in pickles if name != "training_args.bin"]  # the trainer's settings, which hold no weights
    if pickles:
        raise _pickled(path, pickles[0])
    if ggufs := sorted(entry.name for entry in path.iterdir() if entry.suffix == ".gguf"):
        raise CheckpointError(
            f"{path}: expected safetensors, found GGUF files: name one of them, such as {path / ggufs[0]}"
        )
    raise CheckpointError(
        f"{path}: expected a checkpoint with {huggingface.SINGLE}, {huggingface.INDEX} or {mistral.SINGLE}, or a GGUF "
        "file, found none of them"
    )


def _pickled(path: Path, name: str) -> UnsupportedError:
    found = f"{path}: expected safetensors, found {name}, a Python pickle, which can run any code when it is read"
    if not name.startswith("consolidated."):
        return UnsupportedError(
            f"{found}: download the model's safetensors, or convert it where you trust it: transformers' "
            "from_pretrained(...).save_pretrained(...) writes them"
        )
    directory = shlex.quote(str(path.parent if path.is_file() else path))
    return UnsupportedError(
        f"{found}: download the model's safetensors, or convert it where you trust it, with torch and safetensors: "
        f"cd {directory} && python -c '{_CONVERT}'"
    )
