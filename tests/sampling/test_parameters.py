"""Sampling parameters: one list of them."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict, fields
from typing import get_args, get_type_hints

import numpy as np
import pytest

from pymixtral.errors import InvalidArgumentError
from pymixtral.sampling.parameters import Sampling, SamplingParameters

OPTIONAL = {name for name, kind in get_type_hints(SamplingParameters).items() if type(None) in get_args(kind)}


def test_the_typed_keywords_are_the_fields() -> None:
    typed, declared = get_type_hints(Sampling), get_type_hints(SamplingParameters)
    typed.pop("bad_words"), declared.pop("bad_words")  # texts, too, which a model's tokenizer turns into ids
    assert typed == declared


def test_each_parameter_is_described() -> None:
    text = SamplingParameters.__doc__ or ""
    for parameter in fields(SamplingParameters):
        assert f"        {parameter.name}: " in text
        assert parameter.metadata["help"]


def test_numbers_of_numpy_become_numbers() -> None:
    parameters = SamplingParameters(
        temperature=np.float32(0.5), top_k=np.int64(3), logit_bias={np.int32(7): np.float16(2)}
    )  # type: ignore[dict-item]
    assert asdict(parameters) == asdict(SamplingParameters(temperature=0.5, top_k=3, logit_bias={7: 2.0}))
    assert type(parameters.temperature) is float
    assert type(parameters.top_k) is int


def test_parameters_stay_as_they_were_checked() -> None:
    with pytest.raises(FrozenInstanceError):
        SamplingParameters().top_k = -1  # type: ignore[misc]


@pytest.mark.parametrize("value", [b"1", "1", [1], None, True, np.array([1, 2])])
@pytest.mark.parametrize("name", [parameter.name for parameter in fields(SamplingParameters)])
def test_a_value_of_another_type_is_refused_by_name(name: str, value: object) -> None:
    if value is None and name in OPTIONAL:
        return
    if isinstance(value, list) and name == "allowed_token_ids":
        return
    with pytest.raises(InvalidArgumentError, match=f"expected {name} to be"):
        SamplingParameters(**{name: value})  # type: ignore[arg-type]
