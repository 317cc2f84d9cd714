"""The same model with fewer experts in each layer, with no weight changed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pymixtral.arguments import path_of
from pymixtral.errors import InvalidArgumentError, ModelConfigError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.header import Tensor, quoted
from pymixtral.files.names import TensorName
from pymixtral.files.rewriting import PlannedTensor, check_shard_bytes, rewrite

_COUNT, _USED, _LABEL = "llama.expert_count", "llama.expert_used_count", "general.size_label"
_LAYERS = "llama.block_count"


def drop_experts(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    kept: Sequence[Sequence[int]],
    *,
    max_shard_bytes: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Write a model with some of its experts.

    Experts that stay keep their order, and their blocks are copied byte for byte, as are the rows of
    the router that choose them. The metadata say how many there are, and that a token uses no more.
    A file appears only when all are complete.

    Args:
        source: a GGUF file, or any shard of a model in several, with merged or split experts.
        dest: the file to write.
        kept: the experts of each layer that stay, ascending, 2 or more, the same number in each layer.
        max_shard_bytes: as of convert_layout().
        force: replace existing files.
        progress: a bar on stderr, when that is a terminal.

    Returns:
        The files written.

    Raises:
        ModelFileError: the source cannot be read, or was changed meanwhile.
        ModelConfigError: its tensors contradict its metadata.
        UnsupportedError: it is dense, or has a tensor that pymixtral does not know.
        InvalidArgumentError: an argument is out of its range, or does not fit the model.
        OutputError: a file cannot be written.
    """
    check_shard_bytes(max_shard_bytes)
    path = path_of("dest", dest)
    with GGUFFile(path_of("source", source)) as file:
        n_experts, n_used = (file.metadata.get(key) for key in (_COUNT, _USED))
        if type(n_experts) is not int or n_experts < 2 or type(n_used) is not int:
            raise UnsupportedError(
                f"{file.path}: expected a mixture of at least 2 experts, found {quoted(n_experts)} as '{_COUNT}' and "
                f"{quoted(n_used)} as '{_USED}'"
            )
        n_layers = file.metadata.get(_LAYERS)
        if type(n_layers) is not int or n_layers < 1:
            raise ModelConfigError(f"{file.path}: expected at least 1 as '{_LAYERS}', found {quoted(n_layers)}")
        _check(kept, n_experts, n_layers)
        planned = [one for tensor in file.tensors.values() for one in _planned(file.path, tensor, kept, n_experts)]
        n_kept = len(kept[0])
        changed: dict[str, int | str] = {_COUNT: n_kept, _USED: min(n_used, n_kept)}
        label = file.metadata.get(_LABEL)
        if isinstance(label, str) and label.startswith(f"{n_experts}x"):
            changed[_LABEL] = f"{n_kept}x{label.removeprefix(f'{n_experts}x')}"
        return rewrite(
            file, planned, path, max_shard_bytes=max_shard_bytes, force=force, progress=progress, changed=changed
        )


def _check(kept: Sequence[Sequence[int]], n_experts: int, n_layers: int) -> None:
    if len(kept) != n_layers:
        raise InvalidArgumentError(f"expected experts to keep for each of {n_layers} layers, found {len(kept)}")
    for layer, experts in enumerate(kept):
        if len(experts) != len(kept[0]) or len(experts) < 2 or list(experts) != sorted(set(experts)):
            raise InvalidArgumentError(
                f"layer {layer}: expected at least 2 experts to keep, ascending, as many as in layer 0, "
                f"found {quoted(list(experts))}"
            )
        if experts[0] < 0 or experts[-1] >= n_experts:
            raise InvalidArgumentError(
                f"layer {layer}: expected experts from 0 to {n_experts - 1}, found {quoted(list(experts))}"
            )


def _planned(path: str, tensor: Tensor, kept: Sequence[Sequence[int]], n_experts: int) -> Iterator[PlannedTensor]:
    """What becomes of a tensor: at most one."""
    name = TensorName.parse(tensor.name)
    if name is None or (name.layer is not None and name.layer >= len(kept)):
        raise UnsupportedError(f"{path}: tensor {quoted(tensor.name)}: expected none of this name, found it")
    experts = () if name.layer is None else kept[name.layer]
    if name.expert is not None:
        if name.expert >= n_experts:
            raise ModelConfigError(f"{path}: tensor '{name}': expected experts below {n_experts}, found this one")
        if name.expert in experts:
            yield PlannedTensor(
                str(name.of_expert(experts.index(name.expert))), tensor.type, tensor.shape, [tensor.data]
            )
    elif name.merged or name.stem == "ffn_gate_inp":
        if tensor.shape[0] != n_experts or len(tensor.shape) != (3 if name.merged else 2):
            raise ModelConfigError(
                f"{path}: tensor '{name}': expected {n_experts} experts, as '{_COUNT}' says, found the shape "
                f"{list(tensor.shape)}"
            )
        yield PlannedTensor(
            tensor.name, tensor.type, (len(experts), *tensor.shape[1:]), [tensor.data[e] for e in experts]
        )
    else:
        yield PlannedTensor.kept(tensor)
