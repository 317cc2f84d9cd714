"""The choice of the next token: one C call draws for all rows of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pymixtral.arrays import F32, I32, U32
from pymixtral.errors import InvalidArgumentError, NonFiniteError, PymixtralError
from pymixtral.ops.context import Context
from pymixtral.ops.native import check, ffi, lib
from pymixtral.ops.views import as_input, check_shape, pointer

NEVER = 2**63 - 1
"""As min_text: end tokens stay banned."""


class SamplerRow:
    """The sampler of one text as C sees it: steps of docs/numerics.md, "sampling", and a generator.

    C checks all numbers and ids when it draws.

    Args:
        n_vocab: columns of the logits.
        random: state and increment of NumPy's PCG64, each of 128 bits.
        bias_ids: int32 [n_bias].
        bias: float32 [n_bias], added to the logits of bias_ids.
        end_ids: int32 [n_end], banned while the text has fewer than min_text ids.
        min_text: see end_ids; NEVER bans them always.
        bad_words: sequences of ids, none empty; the last id of one is banned where the text ends
            with the others.
        dry_breakers: sequences of ids that no repetition crosses, none empty.
        allowed: the ids that may be drawn, int32 [n]; None: all.
        **numbers: the members of C's pmx_sampler that are left, which have the names of
            SamplingParameters: temperature, top_k and so on. Those without a value are 0.

    Attributes:
        n_vocab: columns of the logits.
        struct: the C struct pmx_sampler.
    """

    def __init__(
        self,
        *,
        n_vocab: int,
        random: tuple[int, int],
        bias_ids: I32,
        bias: F32,
        end_ids: I32,
        min_text: int,
        bad_words: Sequence[Sequence[int]] = (),
        dry_breakers: Sequence[Sequence[int]] = (),
        allowed: I32 | None = None,
        **numbers: float,
    ) -> None:
        self.n_vocab = n_vocab
        self._keep: list[object] = []
        self._masked = False
        self.struct = struct = ffi.new("pmx_sampler *")
        for words, number in zip((struct.state.state, struct.state.increment), random, strict=True):
            words[0], words[1] = number & 0xFFFFFFFFFFFFFFFF, number >> 64
        for name, value in numbers.items():
            setattr(struct, name, min(value, NEVER))
        struct.state.surprise = 2 * struct.mirostat_tau
        check_shape("bias", bias.shape, bias_ids.shape)
        struct.bias_ids, struct.bias, struct.n_bias = self._bound(bias_ids, np.int32), self._bound(bias), len(bias)
        struct.end_ids, struct.n_end, struct.min_text = self._bound(end_ids, np.int32), len(end_ids), min_text
        self._bind_sequences(struct.bad_words, bad_words)
        # Breakers of one token may be hundreds, which a mask finds at once.
        self._bind_sequences(struct.dry_breakers, [breaker for breaker in dry_breakers if len(breaker) > 1])
        struct.dry_breaker_tokens = self._mask_of(
            np.array([breaker[0] for breaker in dry_breakers if len(breaker) == 1], np.int32)
        )
        if allowed is not None:
            struct.allowed = self._mask_of(allowed)

    def shorten(self, n: int) -> None:
        """Note that the text has lost ids: end tokens stay banned for as many tokens as before.

        Args:
            n: how many ids.
        """
        if self.struct.min_text != NEVER:
            self.struct.min_text = max(self.struct.min_text - n, 0)

    def bind(self, text: I32, mask: U32 | None) -> object:
        """Set what one draw looks at.

        Args:
            text: all ids so far, int32 [n].
            mask: tokens that may be drawn, uint32 [ceil(n_vocab/32)], of which bit i % 32 of word
                i // 32 is token i; None: all.

        Returns:
            What must stay alive until the draw.
        """
        struct = self.struct
        ids = pointer(as_input(text, 1, np.int32))
        struct.text, struct.n_text = ids, len(ids)
        if mask is None:
            if self._masked:
                struct.mask, self._masked = ffi.NULL, False
            return ids
        words: U32 = as_input(mask, 1, np.uint32)
        check_shape("mask", words.shape, ((self.n_vocab + 31) // 32,))
        bits = pointer(words)
        struct.mask, self._masked = bits, True
        return ids, bits

    def _bound(self, array: NDArray[Any], dtype: DTypeLike = np.float32) -> Any:
        """A pointer to an array, both kept as long as this."""
        self._keep.append(pointer(as_input(array, 1, dtype)))
        return self._keep[-1]

    def _bind_sequences(self, struct: Any, sequences: Sequence[Sequence[int]]) -> None:
        struct.ids = self._bound(np.array([id for sequence in sequences for id in sequence], np.int32), np.int32)
        struct.ends = self._bound(np.cumsum([len(sequence) for sequence in sequences], dtype=np.int64), np.int64)
        struct.n = len(sequences)

    def _mask_of(self, ids: I32) -> Any:
        allowed = np.zeros((self.n_vocab + 31) // 32 * 32, np.uint8)
        allowed[ids] = 1
        return self._bound(np.packbits(allowed, bitorder="little").view("<u4"), np.uint32)


def sample(
    ctx: Context, samplers: Sequence[SamplerRow], logits: F32, texts: Sequence[I32], masks: Sequence[U32 | None]
) -> list[int | PymixtralError]:
    """Draw a token for each row. The rows are divided among the threads; none depends on another.

    Args:
        ctx: threads and instruction set.
        samplers: one for each row, none twice.
        logits: float32 [n, n_vocab].
        texts: for each row all ids so far, int32 [n_text].
        masks: for each row the tokens that may be drawn, uint32 [ceil(n_vocab/32)]; None: all.

    Returns:
        For each row the token's id, or what went wrong in this row alone, which leaves its sampler
        as it was: NonFiniteError if the largest logit is NaN or infinite, InvalidArgumentError if
        every token is banned.

    Raises:
        InvalidArgumentError: for shapes that do not fit, and numbers and ids out of their range.
        CanceledError: after Context.cancel(); all samplers are as they were.
        NativeError: if there is no memory.
    """
    logits = as_input(logits, 2)
    n, n_vocab = logits.shape
    if not len(samplers) == len(texts) == len(masks) == n:
        raise InvalidArgumentError(
            f"expected a sampler, a text and a mask for each of {n} rows, found {len(samplers)}, {len(texts)} and "
            f"{len(masks)}"
        )
    keep = []
    for sampler, text, mask in zip(samplers, texts, masks, strict=True):
        if sampler.n_vocab != n_vocab:
            check_shape("logits", logits.shape, (n, sampler.n_vocab))
        keep.append(sampler.bind(text, mask))
    structs = ffi.new("pmx_sampler *[]", [sampler.struct for sampler in samplers])
    ids, statuses = ffi.new("int32_t[]", n), ffi.new("int32_t[]", n)
    check(lib.pmx_sample(ctx.pointer, ids, statuses, pointer(logits), structs, n, n_vocab))
    found: list[int | PymixtralError] = ffi.unpack(ids, n)
    for row, status in enumerate(ffi.unpack(statuses, n)):
        if status == lib.PMX_ENONFINITE:
            found[row] = NonFiniteError(
                f"expected finite logits, found {logits[row, ids[row]]} for token {ids[row]}: the model's weights may "
                "be damaged",
                row,
            )
        elif status:
            found[row] = InvalidArgumentError(
                "expected at least one token of the vocabulary that may be drawn, found all banned"
            )
    return found
