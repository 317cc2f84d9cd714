"""The choice of the next token: one C call draws for all rows of a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pymixtral.arrays import F32, I32, U32
from pymixtral.errors import InvalidArgumentError, NonFiniteError, PymixtralError
from pymixtral.ops.context import Context
from pymixtral.ops.native import check, ffi, lib
from pymixtral.ops.views import as_input, check_shape, pointer

NEVER = 2**63 - 1
"""As min_text: end tokens stay banned."""


class SamplerRow:
    """The sampler of one text as C sees it: steps of docs/numerics.md, "sampling", and a generator.

    C checks all numbers when it draws.

    Args:
        n_vocab: columns of the logits.
        random: state and increment of NumPy's PCG64, each of 128 bits.
        temperature: 0 takes the largest logit; rounded to float32.
        top_k: 0: all.
        top_p: 0 to 1.
        min_p: 0 to 1.
        typical_p: 0 to 1.
        repetition_penalty: above 0; rounded to float32.
        presence_penalty: is subtracted once.
        frequency_penalty: is subtracted for each occurrence.
        penalty_window: how many of the last ids of the text the penalties look at; 0: all.
        bias_ids: int32 [n_bias].
        bias: float32 [n_bias], added to the logits of bias_ids.
        end_ids: int32 [n_end], banned while the text has fewer than min_text ids.
        min_text: see end_ids; NEVER bans them always.
        allowed: tokens that may be drawn, as a mask: uint32 [ceil(n_vocab/32)], of which bit i % 32 of
            word i // 32 is token i. None: all.

    Attributes:
        n_vocab: columns of the logits.
        reads_text: whether any step looks at the ids of the text.
        struct: the C struct pmx_sampler.
    """

    def __init__(
        self,
        *,
        n_vocab: int,
        random: tuple[int, int],
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        typical_p: float,
        repetition_penalty: float,
        presence_penalty: float,
        frequency_penalty: float,
        penalty_window: int,
        bias_ids: I32,
        bias: F32,
        end_ids: I32,
        min_text: int,
        allowed: U32 | None = None,
    ) -> None:
        self.n_vocab = n_vocab
        self.struct = struct = ffi.new("pmx_sampler *")
        for words, number in zip((struct.state.state, struct.state.increment), random, strict=True):
            words[0], words[1] = number & 0xFFFFFFFFFFFFFFFF, number >> 64
        struct.temperature, struct.repetition_penalty = temperature, repetition_penalty
        struct.presence_penalty, struct.frequency_penalty = presence_penalty, frequency_penalty
        struct.typical_p, struct.top_p, struct.min_p = typical_p, top_p, min_p
        struct.top_k, struct.penalty_window = min(top_k, n_vocab), min(penalty_window, NEVER)
        bias_ids, bias, end_ids = as_input(bias_ids, 1, np.int32), as_input(bias, 1), as_input(end_ids, 1, np.int32)
        check_shape("bias", bias.shape, bias_ids.shape)
        self._keep = [pointer(array) for array in (bias_ids, bias, end_ids)]
        struct.bias_ids, struct.bias, struct.end_ids = self._keep
        struct.n_bias, struct.n_end, struct.min_text = len(bias), len(end_ids), min_text
        if allowed is not None:
            self._keep.append(self._mask(allowed))
            struct.allowed = self._keep[-1]
        self._masked = False
        self._state = ffi.buffer(ffi.addressof(struct[0], "state"))
        self.reads_text = repetition_penalty != 1 or presence_penalty != 0 or frequency_penalty != 0

    def state(self) -> bytes:
        """Copy what a draw changes.

        Returns:
            The state of the generator, for restore() of this sampler or an equal one.
        """
        return self._state[:]  # type: ignore[no-any-return]

    def restore(self, state: bytes) -> None:
        """Go back to a state.

        Args:
            state: what state() returned.

        Raises:
            InvalidArgumentError: for bytes of another length.
        """
        if len(state) != len(self._state):
            raise InvalidArgumentError(f"expected a sampler's state of {len(self._state)} bytes, found {len(state)}")
        self._state[:] = state

    def bind(self, text: I32, mask: U32 | None) -> object:
        """Set what one draw looks at.

        Args:
            text: all ids so far, int32 [n]; its contents are read only if reads_text.
            mask: tokens that may be drawn, a mask as above; None: all.

        Returns:
            What must stay alive until the draw.
        """
        struct = self.struct
        struct.n_text = len(text)
        keep = None
        if self.reads_text:
            keep = pointer(as_input(text, 1, np.int32))
            struct.text = keep
        if mask is None:
            if self._masked:
                struct.mask, self._masked = ffi.NULL, False
            return keep
        bits = self._mask(mask)
        struct.mask, self._masked = bits, True
        return keep, bits

    def _mask(self, mask: U32) -> object:
        words: U32 = as_input(mask, 1, np.uint32)
        check_shape("mask", words.shape, ((self.n_vocab + 31) // 32,))
        return pointer(words)


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
