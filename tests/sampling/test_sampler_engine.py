"""Sampling as callers of the engine and of the command line meet it, on the real test model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from pymixtral import Mixtral
from pymixtral.cli import main
from pymixtral.errors import InvalidArgumentError

PROMPT = "Once upon a time there was a king who had three daughters"
FORCED = 500


@pytest.fixture(scope="module")
def engine(tiny_q8_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0, n_ctx=512, n_threads=2) as engine:
        yield engine


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="pymixtral")


def greedy(logits: NDArray[np.float32], text: list[int], window: int, presence: float, frequency: float) -> int:
    counts = Counter(text[-window:])
    for i, n in counts.items():
        logits[i] -= np.float32(presence + frequency * n)
    return int(logits.argmax())


@pytest.mark.parametrize("window", [1, 8, 1000])
def test_penalties_see_the_prompt_and_what_was_generated(engine: Mixtral, window: int) -> None:
    text = engine.tokenize(PROMPT)
    options: dict[str, Any] = {"presence_penalty": 3.0, "frequency_penalty": 1.5, "penalty_window": window}
    completion = engine.generate(PROMPT, max_tokens=25, temperature=0, **options)
    for token in completion.tokens:
        assert token == greedy(engine.logits(text, last_only=True).copy(), text, window, 3.0, 1.5)
        text.append(token)


def test_a_repetition_penalty_makes_greedy_text_less_repetitive(engine: Mixtral) -> None:
    plain = engine.generate(PROMPT, max_tokens=150, temperature=0, ignore_eos=True)
    penalized = engine.generate(
        PROMPT, max_tokens=150, temperature=0, ignore_eos=True, repetition_penalty=1.3, penalty_window=0
    )
    assert len(set(penalized.tokens)) > 1.3 * len(set(plain.tokens))


def test_ignore_eos_goes_on_where_the_model_ends(engine: Mixtral) -> None:
    assert engine.core.factory.tokenizer is not None
    (eos,) = engine.core.factory.tokenizer.eos_ids
    ending: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "logit_bias": {eos: 1000.0}}
    completion = engine.generate(PROMPT, **ending)
    assert (completion.tokens, completion.finish_reason) == ([], "stop")
    completion = engine.generate(PROMPT, ignore_eos=True, **ending)
    assert (len(completion.tokens), completion.finish_reason) == (8, "length")
    assert completion.tokens == engine.generate(PROMPT, max_tokens=8, temperature=0).tokens


def test_min_tokens_holds_the_end_back(engine: Mixtral) -> None:
    assert engine.core.factory.tokenizer is not None
    (eos,) = engine.core.factory.tokenizer.eos_ids
    completion = engine.generate(PROMPT, min_tokens=5, max_tokens=8, temperature=0, logit_bias={eos: 1000.0})
    assert (len(completion.tokens), completion.finish_reason) == (5, "stop")


def test_a_bias_forces_and_bans(engine: Mixtral) -> None:
    assert engine.generate(PROMPT, max_tokens=3, logit_bias={FORCED: 1000.0}).tokens == [FORCED] * 3
    likeliest = engine.generate(PROMPT, max_tokens=1, temperature=0).tokens[0]
    assert likeliest not in engine.generate(PROMPT, max_tokens=20, logit_bias={likeliest: -math.inf}).tokens


@pytest.mark.parametrize(
    "options",
    [{"min_p": 2}, {"typical_p": -1}, {"repetition_penalty": 0}, {"logit_bias": {4096: 1.0}}, {"logit_bias": [1]}],
)
def test_values_out_of_range_are_refused_before_anything_is_computed(engine: Mixtral, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        engine.stream(PROMPT, **options)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("top_q", "did you mean 'top_p'?"),
        ("max_new_tokens", "did you mean 'max_tokens'?"),
        ("repeat_penalty", "did you mean 'repetition_penalty'?"),
        ("zzz", "pymixtral.Options lists the options"),
    ],
)
def test_an_unknown_argument_is_answered_with_the_nearest(engine: Mixtral, name: str, near: str) -> None:
    for call in (engine.generate, engine.stream):
        with pytest.raises(InvalidArgumentError) as error:
            call(PROMPT, **{name: 1})
        assert f"found '{name}': " in str(error.value)
        assert near in str(error.value)


# --- logits() -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_batch", [7, 512])
def test_logits_may_begin_anywhere(engine: Mixtral, tiny_q8_0: Path, n_batch: int) -> None:
    ids = engine.tokenize(PROMPT)
    expected = engine.logits(ids)
    with Mixtral(tiny_q8_0, n_ctx=64, n_batch=n_batch, n_threads=1) as fresh:
        for first in (5, 0, len(ids) - 1, 6, 7, 8, 11):  # before, in and after what the cache has
            assert (fresh.logits(ids, first=first) == expected[first:]).all()
    wrong: list[Any] = [-1, len(ids), 1.5]
    for value in wrong:
        with pytest.raises(InvalidArgumentError, match="first"):
            engine.logits(ids, first=value)


# --- Command line -------------------------------------------------------------------------------------------------


def test_options_reach_the_sampler(tiny_q8_0: Path, engine: Mixtral) -> None:
    base = ["generate", "-m", tiny_q8_0, "-p", PROMPT, "-n", 25, "--seed", 5]
    cases: list[tuple[list[object], dict[str, Any]]] = [
        (["--min-p", 0.3], {"min_p": 0.3}),
        (["--typical-p", 0.3], {"typical_p": 0.3}),
        (["--repetition-penalty", 2], {"repetition_penalty": 2.0}),
        (["--presence-penalty", 2], {"presence_penalty": 2.0}),
        (["--frequency-penalty", 2, "--penalty-window", 0], {"frequency_penalty": 2.0, "penalty_window": 0}),
        (["--logit-bias", f"{FORCED}=12", "--logit-bias", "265=-inf"], {"logit_bias": {FORCED: 12.0, 265: -math.inf}}),
        (["--dry-multiplier", 3, "--dry-allowed-length", 1], {"dry_multiplier": 3.0, "dry_allowed_length": 1}),
        (["--top-n-sigma", 0.5], {"top_n_sigma": 0.5}),
        (["--xtc-probability", 1], {"xtc_probability": 1.0}),
        (["--mirostat-tau", 1], {"mirostat_tau": 1.0}),
        (["--bad-words", "262", "--bad-words", "671,262"], {"bad_words": [[262], [671, 262]]}),
        (["--bad-words", " king", "--bad-words", "262"], {"bad_words": [" king", [262]]}),
        (["--allowed-token-ids", "262,671,500"], {"allowed_token_ids": [262, 671, 500]}),
        (["--ignore-eos", "--logit-bias", "2=1000"], {"ignore_eos": True}),
    ]
    plain = run(*base).stdout
    for arguments, options in cases:
        expected = engine.generate(PROMPT, max_tokens=25, seed=5, **options).text + "\n"
        assert run(*base, *arguments).stdout == expected
        assert expected != plain or "ignore_eos" in options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--min-p", "2"),
        ("--typical-p", "nan"),
        ("--repetition-penalty", "0"),
        ("--presence-penalty", "inf"),
        ("--frequency-penalty", "1000"),
        ("--penalty-window", "-1"),
        ("--logit-bias", "5"),
        ("--logit-bias", "x=1"),
        ("--logit-bias", "5=x"),
        ("--logit-bias", "5=nan"),
        ("--logit-bias", "-5=1"),
        ("--logit-bias", "4096=1"),
        ("--allowed-token-ids", "1,x"),
        ("--allowed-token-ids", "4096"),
        ("--bad-words", "1,,2"),
        ("--bad-words", "-1"),
        ("--dry-breakers", "4096"),
        ("--dry-base", "0"),
        ("--mirostat-tau", "nan"),
    ],
)
def test_wrong_values_are_refused_in_one_line(tiny_q8_0: Path, option: str, value: str) -> None:
    result = run("generate", "-m", tiny_q8_0, "-p", "a", option, value)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert "expected" in result.stderr
