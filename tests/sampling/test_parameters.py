"""Sampling parameters: one list of them."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict, fields
from typing import Any, get_args, get_type_hints

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


@pytest.mark.parametrize("wrong", [-1, True, 1.5, "1", None, np.float32(1)])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_wrong_token_among_right_ones(wrong: Any, place: int) -> None:
    ids: list[Any] = [1, 2]
    ids.insert(place, wrong)
    for options in ({"bad_words": [[3], ids]}, {"allowed_token_ids": ids}, {"dry_breakers": [ids]}):
        with pytest.raises(InvalidArgumentError, match=f"a token id in {next(iter(options))}"):
            SamplingParameters(**options)


def test_tokens_of_numpy_are_python_s_afterwards() -> None:
    ids = SamplingParameters(allowed_token_ids=[np.int64(3), 4]).allowed_token_ids
    assert ids == (3, 4)
    assert {type(id) for id in ids} == {int}
