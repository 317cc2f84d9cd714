"""The choice of the next token from logits. docs/numerics.md defines it under "sampling"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields

import numpy as np

from pymixtral import ops
from pymixtral.arguments import integer
from pymixtral.arrays import F32, I32, U32
from pymixtral.errors import InvalidArgumentError, PymixtralError
from pymixtral.sampling.parameters import SamplingParameters

_NUMBERS = tuple(
    field.name for field in fields(SamplingParameters) if field.type in ("float", "int") and field.name != "min_tokens"
)
"""The parameters that C takes by name, as they are."""


class Sampler:
    """Draws the tokens of one text, with a random generator of its own.

    Args:
        parameters: the steps and the seed.
        n_vocab: size of the vocabulary; all ids are below it.
        eos_ids: the tokens that end the text.
        ignore_eos: whether the end tokens are banned.
        n_prompt: ids of the prompt, with which the text begins.
        seed_index: which of several samples of one prompt this is, 0 or more. Sample 0 has the
            generator of the seed, each other one its own, made from the seed and its index.

    Raises:
        InvalidArgumentError: for an id outside the vocabulary.
    """

    def __init__(
        self,
        parameters: SamplingParameters,
        *,
        n_vocab: int,
        eos_ids: Iterable[int] = (),
        ignore_eos: bool = False,
        n_prompt: int = 0,
        seed_index: int = 0,
    ) -> None:
        p = parameters
        bias = p.logit_bias or {}
        with np.errstate(over="ignore"):  # beyond float32 is -inf, which bans the token
            values = np.array(list(bias.values()), np.float64).astype(np.float32)
        self.row = ops.SamplerRow(
            n_vocab=n_vocab,
            random=_random(p.seed, integer("seed_index", seed_index, 0)),
            bias_ids=_ids("logit_bias", bias, n_vocab),
            bias=values,
            end_ids=_ids("eos_ids", eos_ids, n_vocab),
            min_text=ops.NEVER if ignore_eos else min(n_prompt + p.min_tokens, ops.NEVER),
            bad_words=[_ids("bad_words", word, n_vocab).tolist() for word in p.bad_words or ()],
            dry_breakers=[_ids("dry_breakers", breaker, n_vocab).tolist() for breaker in p.dry_breakers or ()],
            allowed=None if p.allowed_token_ids is None else _ids("allowed_token_ids", p.allowed_token_ids, n_vocab),
            **{name: getattr(p, name) for name in _NUMBERS},
        )


def draw(
    ctx: ops.Context,
    samplers: Sequence[Sampler],
    logits: F32,
    texts: Sequence[I32],
    masks: Sequence[U32 | None] | None = None,
) -> list[int | PymixtralError]:
    """Draw a token for each row, in one call. No row depends on another.

    Args:
        ctx: threads and instruction set.
        samplers: one for each row, none twice.
        logits: float32 [n, n_vocab], which are not changed.
        texts: for each row all ids so far, int32 [n_text] from 0 to n_vocab - 1, prompt included.
        masks: for each row the tokens that may be drawn, uint32 [ceil(n_vocab/32)]: token i if bit
            i % 32 of word i // 32 is set. None: all.

    Returns:
        For each row the token's id, or what went wrong in this row alone, whose sampler is then as
        before: NonFiniteError if the largest logit is NaN or infinite, InvalidArgumentError if every
        token is banned.

    Raises:
        InvalidArgumentError: for shapes that do not fit, and ids outside the vocabulary.
        CanceledError: after Context.cancel(); all samplers are as before.
        NativeError: if there is no memory.
    """
    rows = [sampler.row for sampler in samplers]
    return ops.sample(ctx, rows, logits, texts, [None] * len(rows) if masks is None else masks)


def _random(seed: int | None, index: int) -> tuple[int, int]:
    """State and increment of the generator of a seed's sample."""
    sequence = np.random.SeedSequence(seed, spawn_key=(index,) if index else ())
    state = np.random.PCG64(sequence).state["state"]
    return state["state"], state["inc"]


def _ids(name: str, ids: Iterable[int], n_vocab: int) -> I32:
    ids = list(ids)
    outside = [id for id in ids if not 0 <= id < n_vocab]
    if outside:
        raise InvalidArgumentError(f"expected token ids from 0 to {n_vocab - 1} in {name}, found {outside[0]}")
    return np.array(ids, np.int32)
