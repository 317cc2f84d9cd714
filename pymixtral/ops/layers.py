"""All layers of a pass in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from pymixtral.arrays import F32, U8, IdArray
from pymixtral.errors import InvalidArgumentError
from pymixtral.ops.context import Context
from pymixtral.ops.layer import Batch, Layer, Observer, observed
from pymixtral.ops.native import check, ffi, lib
from pymixtral.ops.views import CacheLayer, check_shape, pointer

Item = TypeVar("Item", Layer, CacheLayer)

EVERY = slice(None)
"""All rows."""


class Stack(Generic[Item]):
    """Layers, or the layers of a cache, as a C array of pointers.

    Args:
        items: at least one.

    Attributes:
        items: see above.
        array: the C array, of pointers to their structs.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self.items: tuple[Item, ...] = tuple(items)
        self.array = ffi.new(ffi.getctype(ffi.typeof(items[0].struct), "[]"), [item.struct for item in items])


class Choices:
    """What the routers choose in one pass.

    Args:
        n_tokens: tokens of the pass.
        n_layers: its layers.
        n_experts: experts of each layer.
        n_experts_used: experts of each token.
        full: whether the routers' logits are wanted.

    Attributes:
        experts: ascending for each token and layer, uint8 [n_tokens, n_layers, n_experts_used].
        weights: theirs, float32 of the same shape.
        logits: of all experts, float32 [n_tokens, n_layers, n_experts]; None without `full`. 0 in a
            layer without a router.
    """

    def __init__(self, n_tokens: int, n_layers: int, n_experts: int, n_experts_used: int, *, full: bool) -> None:
        self.experts: U8 = np.empty((n_tokens, n_layers, n_experts_used), np.uint8)
        self.weights: F32 = np.empty((n_tokens, n_layers, n_experts_used), np.float32)
        self.logits: F32 | None = np.empty((n_tokens, n_layers, n_experts), np.float32) if full else None


def run_layers(
    ctx: Context,
    batch: Batch,
    layers: Stack[Layer],
    caches: Stack[CacheLayer],
    which: range,
    *,
    rows: slice | IdArray = EVERY,
    observers: Sequence[Observer] | None = None,
    choices: Choices | None = None,
) -> None:
    """Compute consecutive layers: layer_attention() and layer_experts() of each.

    Another thread of Python delays a pass only at its end, not between its layers. The batch has the
    wanted rows alone afterwards.

    Args:
        ctx: threads and instruction set.
        batch: begun with the runs of this pass.
        layers: those of the model, of one width.
        caches: the keys and values of each, in the pages that the runs name.
        which: consecutive layers, at least one.
        rows: the rows that the experts of the last layer take, a slice or indices, ascending.
        observers: one for each layer of the model, if inputs are to be summed for calibration.
        choices: made for this pass; it is filled.

    Raises:
        InvalidArgumentError: for arguments that do not fit each other, and rows that do not ascend.
        NonFiniteError: for NaN or infinity, and for a key or value beyond the range of the cache's
            type. From the last experts it counts the wanted rows alone.
        CanceledError: after Context.cancel().
        NativeError: if there is no memory.
    """
    n = batch.n_tokens
    if not 0 <= which.start < which.stop <= min(len(layers.items), len(caches.items)) or which.step != 1:
        raise InvalidArgumentError(
            f"expected consecutive layers of {len(layers.items)}, each with a cache, found {which} and "
            f"{len(caches.items)} caches"
        )
    for layer, cache in zip(layers.items[which.start : which.stop], caches.items[which.start :], strict=False):
        batch.check(layer, cache)
    struct: Any = ffi.new("pmx_layers *")
    struct.layers, struct.caches, struct.n_layers = layers.array + which.start, caches.array + which.start, len(which)
    keep = []
    if observers is not None:
        pointers = [observed(observers[i], layers.items[i]) for i in which]
        keep.append(ffi.new("pmx_observer *[]", pointers))
        struct.observers = keep[-1]
    kept = None
    if not (isinstance(rows, slice) and rows == EVERY):
        kept = np.ascontiguousarray(np.arange(n, dtype=np.int64)[rows])
        keep.append(pointer(kept))
        struct.kept, struct.n_kept = keep[-1], len(kept)
    if choices is not None:
        n_experts, n_used = layers.items[which.start].n_experts, layers.items[which.start].n_experts_used
        check_shape("choices", choices.experts.shape, (n, len(which), n_used))
        keep += [pointer(choices.experts), pointer(choices.weights)]
        struct.choices, struct.choices_weights = keep[-2:]
        if choices.logits is not None:
            check_shape("choices", choices.logits.shape, (n, len(which), n_experts))
            keep.append(pointer(choices.logits))
            struct.choices_logits = keep[-1]
    check(lib.pmx_run_layers(ctx.pointer, batch.struct, struct))
    if kept is not None:
        batch.show(len(kept))
