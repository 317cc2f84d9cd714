"""Samplers from keyword arguments, which draw one row at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from pymixtral import ops
from pymixtral.arrays import F32, I32, U32
from pymixtral.errors import PymixtralError
from pymixtral.sampling.parameters import SamplingParameters
from pymixtral.sampling.sampler import Sampler, draw
from support.variants import FIRST_CONTEXT

NO_TEXT = np.empty(0, np.int32)


class OneText:
    """A sampler that draws the tokens of one text, for logits of any vocabulary."""

    def __init__(self, parameters: SamplingParameters, ctx: ops.Context, n_vocab: int, **arguments: Any) -> None:
        self._parameters, self._ctx, self._arguments = parameters, ctx, arguments
        self.sampler = Sampler(parameters, n_vocab=n_vocab, **arguments)

    def sample(self, logits: F32, text: I32 = NO_TEXT, mask: U32 | None = None) -> int:
        if self.sampler.row.n_vocab != len(logits):
            self.sampler = Sampler(self._parameters, n_vocab=len(logits), **self._arguments)
        (token,) = draw(self._ctx, [self.sampler], logits[np.newaxis], [text], [mask])
        if isinstance(token, PymixtralError):
            raise token
        return token


def sampler_of(
    *, ctx: ops.Context = FIRST_CONTEXT, n_vocab: int = 1 << 20, banned: Iterable[int] = (), **parameters: Any
) -> OneText:
    return OneText(SamplingParameters(**parameters), ctx, n_vocab, eos_ids=list(banned), ignore_eos=True)


def mask_of(allowed: Iterable[int], n_vocab: int) -> U32:
    """The mask of some tokens."""
    mask = np.zeros((n_vocab + 31) // 32, np.uint32)
    for id in allowed:
        mask[id // 32] |= np.uint32(1 << id % 32)
    return mask
