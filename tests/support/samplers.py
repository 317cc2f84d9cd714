"""Samplers from keyword arguments."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pymixtral.sampling.filters import Exp
from pymixtral.sampling.parameters import SamplingParameters
from pymixtral.sampling.sampler import Sampler


def sampler_of(exp: Exp, *, n_vocab: int = 2**31, banned: Iterable[int] = (), **parameters: Any) -> Sampler:
    return Sampler(SamplingParameters(**parameters), exp, n_vocab=n_vocab, banned=banned)
