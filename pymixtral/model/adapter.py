"""Low-rank adapters: what one adds to a model's matrices, and whether it fits the model.

Source: Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np

from pymixtral.arguments import shown
from pymixtral.arrays import F32
from pymixtral.errors import AdapterError
from pymixtral.files.names import FFN_STEMS, TensorName
from pymixtral.model.config import ModelConfig

MAX_RANK = 1024
"""The largest rank of a pair. Published adapters have 4 to 256."""


class LowRank(NamedTuple):
    """What is added to one matrix W of rows x cols: y = W x + transpose(b) (a x).

    Attributes:
        a: C-contiguous float32 [rank, cols].
        b: C-contiguous float32 [rank, rows]; the adapter's own scale, such as alpha/rank, is multiplied in.
    """

    a: F32
    b: F32


class Adapter:
    """A low-rank adapter, of whatever format it was read.

    Args:
        pairs: what is added to each matrix that the adapter has. A name is one matrix: attn_q, attn_k,
            attn_v, attn_output, ffn_gate_inp (the router), or ffn_gate, ffn_up, ffn_down of one expert,
            of no expert in a dense model. Rows of attn_q and attn_k are in GGUF's adjacent rope order.
        source: where it was read, for messages.

    Attributes:
        pairs: see above, ordered by name.
        source: see above.

    Raises:
        AdapterError: for shapes that are no pair, a rank out of range, and NaN or infinity.
    """

    def __init__(self, pairs: Mapping[TensorName, LowRank], source: str) -> None:
        self.pairs = {name: pairs[name] for name in sorted(pairs, key=str)}
        self.source = source
        for name, (a, b) in self.pairs.items():
            if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or not 1 <= len(a) <= MAX_RANK:
                raise AdapterError(
                    f"{source}: {name}: expected a pair [rank, cols] and [rank, rows] of a rank from 1 to {MAX_RANK}, "
                    f"found {list(a.shape)} and {list(b.shape)}"
                )
            if any(x.dtype != np.float32 or not x.flags.c_contiguous for x in (a, b)):
                raise AdapterError(
                    f"{source}: {name}: expected C-contiguous float32, found {a.dtype} and {b.dtype} in another order"
                )
            if not (np.isfinite(a).all() and np.isfinite(b).all()):
                raise AdapterError(f"{source}: {name}: expected finite numbers, found NaN or infinity")

    def __repr__(self) -> str:
        return f"<Adapter {shown(self.source)}: {len(self.pairs)} matrices of rank {self.rank}, {self.nbytes} bytes>"

    @property
    def nbytes(self) -> int:
        """Bytes of all pairs in memory."""
        return sum(a.nbytes + b.nbytes for a, b in self.pairs.values())

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max((len(a) for a, _ in self.pairs.values()), default=0)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of names, shapes and numbers: the same for the same adapter in any file."""
        hashed = hashlib.sha256()
        for name, (a, b) in self.pairs.items():
            hashed.update(f"{name} {a.shape} {b.shape}\n".encode())
            hashed.update(a.data)
            hashed.update(b.data)
        return hashed.digest()

    def check(self, config: ModelConfig) -> None:
        """Check that each pair is of a matrix that a model has.

        Args:
            config: the model's numbers.

        Raises:
            AdapterError: for a matrix that the model does not have, and one of another shape.
        """
        for name, (a, b) in self.pairs.items():
            shape = adapted_shape(name, config)
            if shape is None:
                raise AdapterError(
                    f"{self.source}: {name}: expected matrices of a model of {config.n_layers} layers and "
                    f"{config.n_experts} experts, found one that it does not have: use the adapter's own base model"
                )
            if (b.shape[1], a.shape[1]) != shape:
                raise AdapterError(
                    f"{self.source}: {name}: expected a pair for {shape[0]} x {shape[1]}, found one for {b.shape[1]} x "
                    f"{a.shape[1]}: use the adapter's own base model"
                )


def adapted_shape(name: TensorName, config: ModelConfig) -> tuple[int, int] | None:
    """Say which shape a matrix has that an adapter can change.

    Args:
        name: a tensor's name; of experts, one expert's.
        config: the model's numbers.

    Returns:
        Rows and columns; None for what no adapter changes, and what the model does not have.
    """
    c = config
    if name.layer is None or not 0 <= name.layer < c.n_layers or name.merged:
        return None
    q_dim, kv_dim = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    attention = {
        "attn_q": (q_dim, c.hidden),
        "attn_k": (kv_dim, c.hidden),
        "attn_v": (kv_dim, c.hidden),
        "attn_output": (c.hidden, q_dim),
    }
    mixed = c.n_experts > 1
    if name.stem in FFN_STEMS:
        if (name.expert is not None) != mixed or not (name.expert or 0) < c.n_experts:
            return None
        return (c.hidden, c.ffn) if name.stem == "ffn_down" else (c.ffn, c.hidden)
    if name.expert is not None:
        return None
    if name.stem == "ffn_gate_inp":
        return (c.n_experts, c.hidden) if mixed else None
    return attention.get(name.stem)
