"""The contents of a page of the cache: as bytes, whether they make sense, and keys as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pymixtral.arrays import F32, U8
from pymixtral.ops import PAGE

_DTYPES: dict[str, np.dtype[Any]] = {"f16": np.dtype("<f2"), "f32": np.dtype("<f4"), "q8_0": np.dtype("u1")}

_F16_INFINITY = 0x7C00
"""The bits of the least f16 that is neither finite nor negative."""


@dataclass(frozen=True)
class PageForm:
    """The form of a page: 64 positions of all layers and heads.

    Args:
        n_layers: layers of the model.
        n_kv_heads: key/value heads of a layer.
        head_dim: elements of a head.
        kv_type: "f16", "f32" or "q8_0".
    """

    n_layers: int
    n_kv_heads: int
    head_dim: int
    kv_type: str

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the arrays below, little endian."""
        return _DTYPES[self.kv_type]

    @property
    def k_shape(self) -> tuple[int, ...]:
        """The shape of a page's keys, as in KVCache."""
        parts = (68 * self.head_dim,) if self.kv_type == "q8_0" else (self.head_dim, PAGE)
        return self.n_layers, self.n_kv_heads, *parts

    @property
    def v_shape(self) -> tuple[int, ...]:
        """The shape of a page's values, as in KVCache."""
        parts = (68 * self.head_dim,) if self.kv_type == "q8_0" else (PAGE, self.head_dim)
        return self.n_layers, self.n_kv_heads, *parts

    @property
    def n_bytes(self) -> int:
        """The bytes of a page, keys and values."""
        n = 68 if self.kv_type == "q8_0" else PAGE * self.dtype.itemsize
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim * n

    def encode(self, k: NDArray[Any], v: NDArray[Any], n: int) -> U8:
        """Turn a page into bytes: its keys, then its values.

        Args:
            k: of k_shape.
            v: of v_shape.
            n: positions that count, 1 to 64. The others, in which another text may have left
                something, become zero.

        Returns:
            uint8 [n_bytes].
        """
        halves: NDArray[Any] = np.empty((2, self.n_bytes // 2 // self.dtype.itemsize), self.dtype)
        keys, values = halves[0].reshape(self.k_shape), halves[1].reshape(self.v_shape)
        keys[:], values[:] = k, v
        if n < PAGE and self.kv_type == "q8_0":
            for x, per_position in ((keys, 4), (values, self.head_dim)):
                integers, scales = blocks(x)
                integers.reshape(*x.shape[:2], -1, PAGE, per_position)[..., n:, :] = 0
                scales[..., n:] = 0
        elif n < PAGE:
            keys[..., n:] = 0
            values[..., n:, :] = 0
        return halves.view(np.uint8).reshape(-1)

    def decode(self, content: bytes | U8) -> tuple[NDArray[Any], NDArray[Any]]:
        """Turn what encode() returns into a page again.

        Args:
            content: n_bytes bytes, or an array of them.

        Returns:
            Keys of k_shape and values of v_shape, read-only.
        """
        half = np.frombuffer(content, self.dtype).reshape(2, -1)
        return half[0].reshape(self.k_shape), half[1].reshape(self.v_shape)

    def is_sound(self, content: bytes | U8) -> bool:
        """Say whether a page could have been written by a kernel.

        Args:
            content: n_bytes bytes, or an array of them.

        Returns:
            Whether all numbers and scales are finite, no scale is negative, and no integer of q8_0
            is -128, which no quantizer writes and kernels need not take.
        """
        for x in self.decode(content):
            if self.kv_type != "q8_0":
                if not np.isfinite(x).all():
                    return False
            else:
                integers, scales = blocks(x)
                if integers.min() == -128 or scales.view(np.uint16).max() >= _F16_INFINITY:
                    return False
        return True


def blocks(x: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Look at the keys or values of a page in q8_0.

    Args:
        x: uint8 [..., 68*head_dim].

    Returns:
        Views: the integers, int8 [..., 64*head_dim], in k as [head_dim/4, 64, 4] and in v as
        [64, head_dim]; and the scales, float16 [..., head_dim/32, 64].
    """
    n = x.shape[-1] // 68 * PAGE
    scales = x[..., n:].view(np.float16)
    return x[..., :n].view(np.int8), scales.reshape(*x.shape[:-1], -1, PAGE)


def keys(k: NDArray[Any]) -> F32:
    """Read the keys of a page.

    Args:
        k: of one layer: float [n_kv_heads, head_dim, 64], or in q8_0 uint8
            [n_kv_heads, 68*head_dim].

    Returns:
        float32 [64, n_kv_heads, head_dim], each rounded once.
    """
    if k.dtype != np.uint8:
        return np.ascontiguousarray(k.transpose(2, 0, 1), np.float32)
    integers, scales = blocks(k)
    q = integers.reshape(len(k), -1, PAGE, 4).transpose(2, 0, 1, 3).reshape(PAGE, len(k), -1)
    x: F32 = q * scales.transpose(2, 0, 1).astype(np.float32).repeat(32, axis=2)
    return x
