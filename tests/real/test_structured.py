"""A real model's answers match their grammars, and what that costs."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from pymixtral import Mixtral
from pymixtral.sampling.grammar import grammar_of
from pymixtral.sampling.matcher import Matcher

pytestmark = pytest.mark.real

OfType = Callable[[str], Path]

TEXT = {"type": "string", "maxLength": 40}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
PRICE = {"type": "number", "minimum": 0, "exclusiveMaximum": 100, "multipleOf": 0.25}


def an_object(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


SCHEMAS: dict[str, tuple[str, dict[str, Any]]] = {
    "person": (
        "Invent a person.",
        an_object(name=TEXT, age={"type": "integer", "minimum": 0, "maximum": 120}, likes={"enum": ["tea", "coffee"]}),
    ),
    "list": ("List some fruits.", {"type": "array", "items": TEXT, "minItems": 2, "maxItems": 4}),
    "nested": (
        "Describe a shop and what it sells.",
        an_object(
            shop=an_object(name=TEXT, open={"type": "boolean"}),
            goods={"type": "array", "items": an_object(["what"], what=TEXT, price=PRICE), "minItems": 1, "maxItems": 3},
        ),
    ),
    "one of several": (
        "Answer with a word, a number, or nothing.",
        {
            "anyOf": [
                {"type": "null"},
                {"type": "integer", "minimum": -999, "maximum": 999},
                {"type": "string", "pattern": "^[A-Z][a-z]{1,12}$"},
            ]
        },
    ),
    "sixteen fields": (
        "Fill in the form.",
        an_object(**{f"field_{i}": {"enum": ["yes", "no", None]} if i % 3 else DIGIT for i in range(16)}),
    ),
    "formats": (
        "When and where was it?",
        an_object(**{form: {"type": "string", "format": form} for form in ("date", "ipv4", "uuid")}),
    ),
}


def test_three_hundred_sampled_answers_are_valid(of_type: OfType) -> None:
    counts: Counter[str] = Counter()
    with Mixtral(of_type("q8_0"), n_ctx=1024) as model:
        for name, (question, schema) in SCHEMAS.items():
            validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
            for seed in range(2):
                messages = [{"role": "user", "content": question}]
                answers = model.chat(messages, json_schema=schema, n=25, seed=seed, max_tokens=700).choices
                for answer in answers:
                    assert answer.finish_reason == "stop", answer.content
                    validator.validate(json.loads(answer.content))
                    counts[name] += 1
                    counts["passes"] += answer.completion.stats.passes
                    counts["tokens"] += len(answer.completion.tokens)
            print(f"{name}: {answers[0].content}")
    print(counts)
    assert sum(counts[name] for name in SCHEMAS) == 300
    assert counts["passes"] < 0.8 * counts["tokens"]


def test_a_choice_is_the_likeliest_of_the_texts(of_type: OfType) -> None:
    """At temperature 0, where the first tokens of the choices differ."""
    prompt = (
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\nThe capital of France is"
    )
    choice = [" London", " Paris", " Berlin", " Rome"]
    with Mixtral(of_type("q8_0"), n_ctx=128) as model:
        done = model.generate(prompt, choice=choice, temperature=0, parse_special=True)
    assert (done.text, done.finish_reason) == (" Paris", "stop")


def test_what_a_mask_costs(of_type: OfType) -> None:
    """The figures are for the book; the bounds are far above them."""
    with Mixtral(of_type("q8_0"), n_ctx=1024) as model:
        factory = model.core.factory

        def matcher(**form: Any) -> Matcher:
            grammar = grammar_of(form)
            assert grammar
            return factory._grammars.matcher(grammar, model.eos_ids)

        begin = time.perf_counter()
        matcher(regex="a")
        print(f"{model.config.n_vocab} tokens: first grammar after {time.perf_counter() - begin:.3f} s")
        forms: dict[str, dict[str, Any]] = {name: {"json_schema": schema} for name, (_, schema) in SCHEMAS.items()}
        forms |= {"json_object": {"json_object": True}, "regex": {"regex": r"[A-Z][a-z ]{5,200}\."}}
        for name, form in forms.items():
            begin = time.perf_counter()
            one = matcher(**form)
            compiled = time.perf_counter() - begin
            tokens = model.generate("Answer: ", seed=1, max_tokens=300, **form).tokens
            times = np.empty((len(tokens), 4))
            for i, token in enumerate(tokens):
                times[i, 0] = time.perf_counter()
                one.forced()
                times[i, 1] = time.perf_counter()
                one.mask()
                times[i, 2] = time.perf_counter()
                one.accept(token)
                times[i, 3] = time.perf_counter()
            forced, mask, accept = np.diff(times, axis=1).T * 1e6
            print(
                f"{name}: compiled in {compiled * 1e3:.1f} ms; {len(tokens)} tokens; microseconds, median and most: "
                f"mask {np.median(mask):.0f}, {mask.max():.0f}; forced {np.median(forced):.0f}, {forced.max():.0f}; "
                f"accept {np.median(accept):.0f}, {accept.max():.0f}"
            )
            assert np.median(mask) < 5e3
            assert mask.max() < 1e6
        options: dict[str, Any] = {"seed": 1, "max_tokens": 200, "temperature": 0, "ignore_eos": True}
        bare = model.generate("Answer: ", **options)
        bound = model.generate("Answer: ", regex=r"(.|\n)*", **options)
        print(
            f"tokens/s: {bare.stats.tokens_per_second:.1f} without, {bound.stats.tokens_per_second:.1f} with a grammar"
        )
        assert bare.tokens == bound.tokens
