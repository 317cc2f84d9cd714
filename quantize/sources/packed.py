"""Matrices of four bits as GPTQ and AWQ store them: as exact floats, or as blocks of q4_1 with the same codes.

A weight is scale * (code - zero). Codes are whole numbers from 0 to 15; scale and zero belong to a
row of the matrix and to a group of its columns. A block of q4_1 is d * code + m, so d is the scale
and m is -scale * zero. In a file the columns of a matrix come first, and eight codes share a word
of 32 bits:

    tensor    GPTQ                      AWQ
    qweight   [cols / 8, rows]          [cols, rows / 8]
    qzeros    [groups, rows / 8]        [groups, rows / 8]
    scales    [groups, rows]            [groups, rows]
    g_idx     [cols], of each its group

Source: AutoGPTQ's, GPTQModel's and AutoAWQ's own programs that pack and dequantize.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from gguf import GGMLQuantizationType

from pymixtral.arrays import F32, I32, I64, U8, U32
from pymixtral.errors import CheckpointError, NonFiniteError
from pymixtral.files.stored import SourceFile, StoredTensor, Type

from ..encoders.packing import Blocks, pack

BLOCK = 32
"""Weights of a block of q4_1 and of q4_0, which have one scale."""

IN_ORDER = (0, 1, 2, 3, 4, 5, 6, 7)
"""The place in a word, from its lowest four bits, of each of eight numbers: GPTQ's."""

INTERLEAVED = (0, 4, 1, 5, 2, 6, 3, 7)
"""AWQ's: the even ones come before the odd ones."""

_ONES = np.uint32(0x11111111)

_MIDDLE = 8
"""The zero of every group of a symmetric quantization, which is the one of q4_0."""


@dataclass(eq=False)
class Packing:
    """How the matrices of a checkpoint are packed, and what became of their scales.

    Attributes:
        method: "GPTQ" or "AWQ".
        group_size: columns of a group, a multiple of 32; 0: all of a row.
        order: the places in a word of the eight numbers, IN_ORDER or INTERLEAVED.
        less_one: whether zeros are stored less one, as in the first version of GPTQ's format.
        wraps: whether that subtraction went through the whole word, so that adding undoes it where a
            zero was 0. Otherwise such a zero was lost.
        symmetric: whether all zeros should be 8.
        kept: whether the codes of any blocks were kept so far.
        rounding: of these blocks, the largest relative change of d or m by rounding to f16.
    """

    method: str
    group_size: int
    order: tuple[int, ...] = IN_ORDER
    less_one: bool = False
    wraps: bool = False
    symmetric: bool = False
    kept: bool = field(default=False, init=False)
    rounding: float = field(default=0.0, init=False)

    @property
    def groups(self) -> str:
        """Its groups, in words."""
        return f"groups of {self.group_size}" if self.group_size else "groups of a row"

    @property
    def kept_as(self) -> tuple[Type, ...]:
        """The types that can hold the codes."""
        return (Type.Q4_1, Type.Q4_0) if self.symmetric else (Type.Q4_1,)

    def add(self, exact: F32, rounded: F32) -> None:
        """Notes how far numbers were rounded."""
        self.kept = True
        changed = exact != rounded
        if changed.any():
            relative = np.abs(rounded[changed].astype(np.float64) / exact[changed] - 1)
            self.rounding = max(self.rounding, float(relative.max()))


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedTensor(StoredTensor):
    """A packed matrix.

    Its shape is [rows, cols], as of the weight that it stands for; `type`, `raw` and `encoded` are
    those of q4_1.

    Attributes:
        name: its name, for messages.
        packing: how it is packed.
        qweight: the codes, as the file has them.
        qzeros: the zeros, likewise.
        scales: the scales, likewise, in a type of floats.
        g_idx: the groups of the columns where they are not in order; else None.
    """

    name: str
    packing: Packing
    qweight: StoredTensor
    qzeros: StoredTensor
    scales: StoredTensor
    g_idx: StoredTensor | None = None

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """All files that it is read from."""
        parts = (self.qweight, self.qzeros, self.scales, self.g_idx)
        return tuple(part.file for part in parts if part is not None)

    def raw(self, rows: slice | I64 = slice(None)) -> U8:
        """Reads rows as q4_1.

        Args:
            rows: which.

        Returns:
            uint8 [n, row_bytes].

        Raises:
            CheckpointError: they cannot be read, or f16 cannot hold a scale times a zero.
            NonFiniteError: a scale is not finite.
        """
        blocks = self.encoded(Type.Q4_1, rows)
        assert blocks is not None
        return blocks

    def encoded(self, kind: GGMLQuantizationType, rows: slice | I64, zeroing: bool = False) -> U8 | None:
        """Reads rows as blocks with the codes of the file.

        Args:
            kind: the type.
            rows: which.
            zeroing: scales that are not finite count as 0.

        Returns:
            uint8 [n, row_bytes]; None where the type cannot hold the codes.

        Raises:
            CheckpointError: as of raw; or a zero is not 8, where the checkpoint says that all are.
            NonFiniteError: a scale is not finite.
        """
        if self.g_idx is not None or kind not in self.packing.kept_as:
            return None
        wanted = np.arange(self.shape[0])[rows]
        scales, zeros = self._groups(wanted)
        if zeroing:
            scales[~np.isfinite(scales)] = 0
        elif not np.isfinite(scales).all():
            raise NonFiniteError(f"tensor {self.name}: expected finite scales, found NaN or infinity")
        if kind == Type.Q4_0 and (other := zeros[zeros != _MIDDLE]).size:
            raise CheckpointError(
                f"tensor {self.name}: expected zeros of {_MIDDLE}, as of a symmetric quantization, found {other[0]}: "
                "use q4_1"
            )
        with np.errstate(over="ignore"):
            exact = np.stack([scales, scales * zeros])[: 1 if kind == Type.Q4_0 else 2]
            rounded = exact.astype(np.float16).astype(np.float32)
        if not np.isfinite(rounded).all():
            raise CheckpointError(
                f"tensor {self.name}: expected scales, and scales times zeros, that f16 can hold, found one of "
                f"magnitude {np.abs(exact).max():.3g}: use a type that is encoded again, such as q8_0"
            )
        self.packing.add(exact, rounded)
        blocks = Blocks(rounded[0].reshape(-1), self._codes(wanted).reshape(-1, BLOCK), rounded[-1].reshape(-1))
        return pack(kind, blocks).reshape(len(wanted), -1)

    def floats(self, rows: slice | I64 = slice(None)) -> F32:
        """Reads rows as floats, each rounded once.

        Args:
            rows: which.

        Returns:
            float32 [n, cols]; NaN or infinity where the scale is none, or is too large.

        Raises:
            CheckpointError: they cannot be read.
        """
        wanted = np.arange(self.shape[0])[rows]
        scales, zeros = self._groups(wanted)
        weights: F32 = self._codes(wanted).reshape(*scales.shape, -1).astype(np.float32)
        weights -= zeros[..., None]
        with np.errstate(invalid="ignore", over="ignore"):
            weights *= scales[..., None]
        return weights.reshape(len(wanted), self.shape[1])

    def _codes(self, rows: I64) -> U8:
        """uint8 [n, cols]."""
        n_rows, n_cols = self.shape
        if self.packing.order == INTERLEAVED:
            return self._spread(self.qweight, rows)
        words = replace(self.qweight, shape=(n_rows, n_cols // 8), transposed=True).raw(rows)
        codes = np.empty((len(rows), n_cols // 2, 2), np.uint8)  # of each byte the lower half comes first
        codes[..., 0], codes[..., 1] = words & 15, words >> 4
        return codes.reshape(len(rows), n_cols)

    def _groups(self, rows: I64) -> tuple[F32, U8]:
        """Scales and zeros, [n, blocks of 32 columns], or [n, cols] where groups are not in order."""
        scales = replace(self.scales, shape=self.scales.shape[::-1], transposed=True).floats(rows)
        zeros = self._spread(self.qzeros, rows, less_one=self.packing.less_one)
        if self.g_idx is not None:
            index: I32 = self.g_idx.raw().view("<i4")[0]
        else:
            index = np.arange(0, self.shape[1], BLOCK, np.int32) // (self.packing.group_size or self.shape[1])
        return scales[:, index], zeros[:, index]

    def _spread(self, tensor: StoredTensor, rows: I64, less_one: bool = False) -> U8:
        """Numbers of which eight rows share a word, uint8 [n, m], of a tensor [m, rows / 8]."""
        holders, holder = np.unique(rows // 8, return_inverse=True)
        words: U32 = replace(tensor, shape=tensor.shape[::-1], transposed=True).raw(holders).view("<u4")
        if less_one:
            words = self._more_by_one(words)
        shifts = 4 * np.array(self.packing.order, np.uint32)[rows % 8]
        numbers: U8 = (words[holder] >> shifts[:, None]).astype(np.uint8) & np.uint8(15)
        return numbers

    def _more_by_one(self, words: U32) -> U32:
        # Programs disagree about a 15: it is 0, it is 16, or it carries into its neighbour.
        if not self.packing.wraps and ((words & words >> 1 & words >> 2 & words >> 3) & _ONES).any():
            raise CheckpointError(
                f"tensor {self.name}: expected zeros from 1 to 15, which GPTQ's first format can hold, found one that "
                "it cannot: get the checkpoint in the format gptq_v2"
            )
        more: U32 = words + _ONES
        return more
