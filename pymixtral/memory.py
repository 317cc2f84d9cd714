"""How much memory keys and values get, and what follows where the weights have too little."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pymixtral.arguments import integer, shown
from pymixtral.errors import InvalidArgumentError, NativeError
from pymixtral.files.gguf import GGUFFile
from pymixtral.inspection.inventory import Inventory, Part
from pymixtral.inspection.machine import memory
from pymixtral.inspection.plan import largest_that_fits, plans
from pymixtral.model.config import ModelConfig, context_length
from pymixtral.model.footprint import (
    BATCH,
    Footprint,
    batch_size,
    bytes_per_prompt_token,
    footprint,
    kv_bytes_per_token,
)
from pymixtral.model.kv_cache import n_pages_for
from pymixtral.ops import PAGE
from pymixtral.units import show_bytes

_CONTEXTS = 4
"""Contexts that the cache has room for, where memory allows."""

_FEWEST = 512
"""Positions of the shortest context that is chosen for lack of memory."""


@dataclass(frozen=True)
class CacheSize:
    """The size of a cache.

    Attributes:
        n_ctx: positions of a context.
        n_pages: pages for all requests, of each cache.
        bytes: the size of them all; of several caches together, with all layers.
        bytes_here: what this machine has of that.
    """

    n_ctx: int
    n_pages: int
    bytes: int
    bytes_here: int


def cache_size(
    config: ModelConfig,
    weight_bytes: int,
    *,
    n_ctx: int | None,
    kv_type: str,
    cache_bytes: int | None,
    n_caches: int = 1,
    n_layers: int | None = None,
) -> CacheSize:
    """Choose the size of a model's cache, and check that it fits into memory.

    Args:
        config: the model's numbers.
        weight_bytes: bytes of its tensors that this machine has.
        n_ctx: positions of a context; None: the model's own, as far as cache_bytes allow, but at
            least 512, or those of a shorter model.
        kv_type: the type of keys and values.
        cache_bytes: bytes of the cache; None: as many as 4 contexts, as far as half of the memory
            that the weights leave allows.
        n_caches: caches of one size that share the bytes; n_pages is that of each.
        n_layers: layers whose keys and values this machine has; None: all.

    Returns:
        The size. It has room for one context and a page, in each cache.

    Raises:
        InvalidArgumentError: for values out of range, and cache_bytes below one context.
        NativeError: if there is too little memory for what was asked.
    """
    page = PAGE * kv_bytes_per_token(config, kv_type) * n_caches
    here = page * (n_layers or config.n_layers) // config.n_layers
    usable = memory().usable
    mappable = _address_space()  # the weights have theirs already
    half = max(min(usable - weight_bytes, mappable), 0) // 2
    usable = min(usable, mappable)
    if cache_bytes is not None:
        cache_bytes = integer("cache_bytes", cache_bytes, 1)
    if n_ctx is None:
        n_fitting = half // here if cache_bytes is None else cache_bytes // page
        n_ctx = min(config.n_ctx_train, max(n_fitting - 1, _FEWEST // PAGE) * PAGE)
    n_ctx = context_length(config, n_ctx)
    one = n_pages_for(n_ctx) + 1  # a page more, for the copy of one that is shared
    if cache_bytes is None:
        n_pages = max(one, min(_CONTEXTS * one // n_caches, half // here))
    else:
        n_pages = cache_bytes // page
        if n_pages < one:
            raise InvalidArgumentError(
                f"expected cache_bytes of at least {one * page}, for one context of {n_ctx} tokens"
                f"{f' in each of {n_caches} caches' if n_caches > 1 else ''}, "
                f"found {shown(cache_bytes)}: give more, or a smaller n_ctx"
            )
    if n_pages * here > usable:
        raise NativeError(
            f"expected {n_pages * here / 1e9:.2f} GB of memory for keys and values ({n_ctx} tokens of context), "
            f"found {usable / 1e9:.2f} GB: ask for a shorter context, or kv_type q8_0"
        )
    return CacheSize(n_ctx, n_pages, n_pages * page, n_pages * here)


@dataclass(frozen=True)
class Room:
    """Whether a model has room in memory, and what follows.

    Attributes:
        n_batch: the most tokens of prompts in a pass.
        lockable: bytes of weights that may be kept in memory, where they do not all fit. An eighth is
            left for the others.
        shortage: what is missing and what to do, a sentence without its beginning; None where
            everything fits.
    """

    n_batch: int
    lockable: int
    shortage: str | None


def room(file: GGUFFile, config: ModelConfig, size: CacheSize, kv_type: str, n_bytes: int) -> Room:
    """Find whether a model and its cache fit into the memory that is available now.

    Args:
        file: the open model.
        config: its numbers.
        size: of its cache.
        kv_type: the type of keys and values.
        n_bytes: bytes of the file that this process reads.

    Returns:
        The room.
    """
    parts = [Part(name, tensor.type, tensor.shape) for name, tensor in file.tensors.items()]
    one = footprint(config, n_bytes, size.n_ctx, kv_type)
    need, here = Footprint(one.weights, size.bytes_here, one.working), memory()
    if need.total <= here.usable:
        return Room(BATCH, one.weights, None)
    inventory = Inventory(parts, config.n_experts, config.experts_used)
    best = largest_that_fits(plans(config, inventory, size.n_ctx, here, 1.0, kv_type=kv_type))
    if n_bytes < sum(tensor.data.nbytes for tensor in file.tensors.values()):
        better = "share the model among more hosts, or choose a smaller type"
    elif best:
        better = f"choose {best.type}, the largest type that fits, which is usually several times as fast"
    else:
        better = "give it more memory, as no type fits"
    n_batch = batch_size(config, need, here.usable)
    working = one.working + (n_batch - BATCH) * bytes_per_prompt_token(config)
    return Room(
        n_batch,
        max(here.usable - need.kv - working, 0) * 7 // 8,
        f"expected {show_bytes(need.total)} of memory, found {show_bytes(here.usable)}, so that weights are read from "
        f"the disk again and again: {better}",
    )


def _address_space() -> int:
    """The bytes that this process may still map (`ulimit -v`); 2^63 - 1 without a limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    with suppress(OSError, ValueError):  # where there is no /proc
        if limit != resource.RLIM_INFINITY:
            mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            return max(limit - mapped, 0)
    return (1 << 63) - 1
