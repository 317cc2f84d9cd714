"""Texts that match a grammar: each kind on a SentencePiece and a byte-level vocabulary, together and
alone, with and without forced tokens.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import regex
from jsonschema import validate

from pymixtral import AsyncMixtral, InvalidArgumentError, Mixtral
from pymixtral.demo import demo_path
from pymixtral.engine import generation
from pymixtral.quantize import quantize
from pymixtral.sampling.grammar import grammar_of
from support.bpe import tokenizer_json, trained
from support.checkpoints import Shape, make_checkpoint
from support.texts import same

PROMPT = "Once upon a time there was a king who had"
OTHER = "The wolf said to the little girl:"

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "dog", "wolf"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 5},
    {
        "type": "object",
        "properties": {
            "when": {"type": "string", "format": "date"},
            "who": {"type": "array", "items": PERSON, "minItems": 1, "maxItems": 2},
            "note": {"type": ["string", "null"], "maxLength": 9},
        },
        "required": ["when", "who"],
        "additionalProperties": False,
    },
    {
        "anyOf": [
            {"type": "null"},
            {"const": "the King"},
            {"type": "number", "minimum": -1, "maximum": 1, "maxLength": 3},
        ]
    },
    {"type": "string", "pattern": "^[A-Z][a-z]{2,8} [0-9]{1,3}$"},
    {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer", "minimum": 1, "maximum": 9},
                    "left": {"$ref": "#/$defs/leaf"},
                },
                "required": ["value"],
                "additionalProperties": False,
            },
            "leaf": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]},
        },
        "$ref": "#/$defs/tree",
    },
]

KINDS: dict[str, tuple[dict[str, Any], Callable[[str], object]]] = {
    "json_schema": ({"json_schema": PERSON}, lambda text: validate(json.loads(text), PERSON) is None),
    "text of a schema": ({"json_schema": json.dumps(SCHEMAS[1])}, lambda text: len(json.loads(text)) >= 2),
    "regex": ({"regex": r"[A-Z][a-z ]{5,30}\."}, lambda text: re.fullmatch(r"[A-Z][a-z ]{5,30}\.", text)),
    "choice": (
        {"choice": [" three sons", " a cat", " a cat and \u00e9\n"]},
        lambda text: text.startswith((" three", " a cat")),
    ),
    "lark": (
        {"lark": 'start: "<" w ("," w){1,3} ">"\nw: /[a-z]{1,5}/'},
        lambda text: re.fullmatch(r"<\w+(,\w+){1,3}>", text),
    ),
}


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights with a byte-level vocabulary."""
    directory = tmp_path_factory.mktemp("bytes")
    make_checkpoint(directory / "hf", Shape(n_layers=1, n_vocab=trained("smollm").get_vocab_size()), seed=1)
    (directory / "hf" / "tokenizer.model").unlink()
    (directory / "hf" / "tokenizer.json").write_text(json.dumps(tokenizer_json("smollm")), encoding="utf-8")
    quantize(directory / "hf", directory / "model.gguf", progress=False)
    return directory / "model.gguf"


@pytest.fixture(scope="module")
def demo() -> Iterator[Mixtral]:
    with Mixtral(n_ctx=512, n_threads=2) as model:
        yield model


@pytest.fixture(scope="module")
def bytes_model(byte_level: Path) -> Iterator[Mixtral]:
    with Mixtral(byte_level, n_ctx=512, n_threads=2) as model:
        yield model


@pytest.fixture(params=["demo", "bytes_model"])
def model(request: pytest.FixtureRequest) -> Mixtral:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Mixtral)
    return found


@pytest.fixture(scope="module")
def alone() -> Iterator[Mixtral]:
    with Mixtral(n_ctx=512, n_threads=1, max_batch=1) as model:
        yield model


# --- Kinds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_each_kind_gives_a_text_of_its_form(model: Mixtral, kind: str, temperature: float) -> None:
    options, matches = KINDS[kind]
    for seed in range(3):
        done = model.generate(PROMPT, seed=seed, temperature=temperature, max_tokens=300, **options)
        assert done.finish_reason == "stop"
        assert matches(done.text), done.text
        assert done.text == model.detokenize([*model.tokenize(PROMPT), *done.tokens]).removeprefix(PROMPT)


def test_fifty_sampled_answers_are_valid(model: Mixtral) -> None:
    n = 0
    for schema in SCHEMAS:
        done = model.generate(PROMPT, n=9, seed=3, json_schema=schema, max_tokens=400)
        for one in done.choices:
            if one.finish_reason == "stop":  # a tree can be of any depth
                validate(json.loads(one.text), schema)
                n += 1
    assert n >= 50


def test_any_json_object(demo: Mixtral) -> None:
    likes = {id: 9.0 for text in ('"', "}", '"}') for id in demo.tokenize(text, add_bos=False)}
    done = demo.generate(PROMPT, n=20, seed=1, json_object=True, max_tokens=120, logit_bias=likes)
    whole = [one.text for one in done.choices if one.finish_reason == "stop"]
    assert all(isinstance(json.loads(text), dict) for text in whole)
    assert all(one.text.startswith("{") for one in done.choices)
    assert len(set(whole)) > 3


def test_streams_give_the_text_in_pieces(demo: Mixtral) -> None:
    pieces = list(demo.stream(PROMPT, seed=1, json_schema=PERSON, max_tokens=200))
    assert len(pieces) > 3
    assert "".join(pieces) == demo.generate(PROMPT, seed=1, json_schema=PERSON, max_tokens=200).text


def test_tasks_get_what_threads_get(demo: Mixtral) -> None:
    async def main() -> None:
        model = AsyncMixtral(demo)
        done = await asyncio.gather(*(model.generate(PROMPT, seed=i, json_schema=PERSON) for i in range(4)))
        for i, one in enumerate(done):
            same(one, demo.generate(PROMPT, seed=i, json_schema=PERSON))
        stream = model.stream(PROMPT, seed=2, json_schema=PERSON)
        assert "".join([piece async for piece in stream]) == done[2].text
        with pytest.raises(InvalidArgumentError, match="hiccup"):
            await model.generate(PROMPT, json_schema={"type": "hiccup"})

    asyncio.run(main())


def test_other_tasks_go_on_while_a_grammar_is_compiled(demo: Mixtral) -> None:
    patterns = [{"type": "string", "pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(1, 14)]

    async def main() -> None:
        question = asyncio.create_task(AsyncMixtral(demo).generate(PROMPT, json_schema={"allOf": patterns}))
        turns = 0
        while not question.done():
            await asyncio.sleep(0.01)
            turns += 1
        assert turns > 1  # it ran beside the compiler
        with pytest.raises(InvalidArgumentError, match="json_schema"):
            await question

    asyncio.run(main())


def test_conversations_have_it_too(demo: Mixtral) -> None:
    answer = demo.chat(
        [{"role": "user", "content": "Who is it?"}], chat_format="mistral-v1", json_schema=PERSON, seed=1
    )
    validate(json.loads(answer.content), PERSON)
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize(
    "form",
    [
        {"regex": " [a-z]{3,9}"},
        {"regex": "[^a-z]{4}"},
        {"regex": " {0,2}[a-z]{3}"},
        {"choice": [" yes", "  no"]},
        {"lark": 'start: " " /[a-z]{2}/ " "'},
        {"json_schema": {"enum": [1, "one", None]}},
    ],
    ids=str,
)
def test_the_space_before_a_text_is_none_of_its_form(demo: Mixtral, form: dict[str, Any]) -> None:
    """A SentencePiece model begins a text with a space, which is not shown; what is shown has the form."""
    chat: dict[str, Any] = {"chat_format": "mistral-v1"}
    grammar = grammar_of(form)
    assert grammar
    pattern = grammar.text if "regex" in form else None
    for seed in range(5):
        for text in (
            demo.chat([{"role": "user", "content": "Who is it?"}], seed=seed, **form, **chat).content,
            demo.generate("", seed=seed, **form).text,
            "".join(demo.stream_chat([{"role": "user", "content": "Who is it?"}], seed=seed, **form, **chat)),
            demo.generate("Who is it?", seed=seed, **form).text,  # no text begins here
        ):
            if pattern:
                assert regex.fullmatch(pattern, text), text
            elif "choice" in form:
                assert text in form["choice"]
            elif "lark" in form:
                assert regex.fullmatch(" [a-z]{2} ", text), text
            else:
                assert json.loads(text) in (1, "one", None)


def test_an_answer_begins_with_the_space_that_the_model_was_trained_with(demo: Mixtral) -> None:
    messages = [{"role": "user", "content": "Who is it?"}]
    form = {"choice": ["yes"], "chat_format": "mistral-v1", "temperature": 0}
    answer = demo.chat(messages, **form)
    assert (answer.content, answer.finish_reason) == ("yes", "stop")
    assert answer.completion.tokens == demo.tokenize("yes", add_bos=False)
    same = asyncio.run(AsyncMixtral(demo).chat(messages, **form))
    assert same.completion.tokens == answer.completion.tokens


# --- The same bits ------------------------------------------------------------------------------------------------

MIXED: list[dict[str, Any]] = [
    {"json_schema": PERSON},
    {"json_schema": SCHEMAS[2], "temperature": 1.5},
    {},
    {"regex": r"[A-Z][a-z ]{5,60}\.", "min_p": 0.1},
    {"choice": [" three sons", " a cat"]},
    {"lark": 'start: w ("," w)+\nw: /[a-z]{1,5}/', "prompt_lookup": 4},
    {"json_object": True, "logprobs": 2},
]


def test_different_grammars_in_one_batch_give_what_each_gives_alone(demo: Mixtral, alone: Mixtral) -> None:
    demo.forget()
    streams = [demo.stream(PROMPT[: 9 + i], seed=i, max_tokens=60, **options) for i, options in enumerate(MIXED)]
    threads = [threading.Thread(target=lambda s=stream: list(s)) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, options in enumerate(MIXED):
        alone.forget()
        done = streams[i].completion
        assert done
        same(done, alone.generate(PROMPT[: 9 + i], seed=i, max_tokens=60, **options))


def test_several_texts_of_a_prompt(demo: Mixtral, alone: Mixtral) -> None:
    options: dict[str, Any] = {"seed": 5, "json_schema": PERSON, "max_tokens": 150}
    done = demo.generate([PROMPT, OTHER], n=5, **options)
    again = alone.generate([PROMPT, OTHER], n=5, **options)
    for one, other in zip(done, again, strict=True):
        assert len({choice.text for choice in one.choices}) > 2
        for a, b in zip(one.choices, other.choices, strict=True):
            same(a, b)
    best = demo.generate(PROMPT, n=2, best_of=5, **options)
    assert {choice.text for choice in best.choices} <= {choice.text for choice in done[0].choices}


def test_forced_tokens_change_the_passes_alone(model: Mixtral, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"json_schema": SCHEMAS[2], "max_tokens": 200, "logprobs": 3}
    chunks = [model.generate(PROMPT, seed=seed, **options) for seed in range(4)]
    monkeypatch.setattr(generation, "_MOST_FORCED", 0)
    singles = [model.generate(PROMPT, seed=seed, **options) for seed in range(4)]
    for chunk, single in zip(chunks, singles, strict=True):
        same(chunk, single)
        assert single.stats.drafted_tokens == 0
        assert single.stats.passes == len(single.tokens) - 1
        assert chunk.stats.accepted_tokens > 10
        assert chunk.stats.passes + chunk.stats.accepted_tokens == len(chunk.tokens) - 1


def test_prompt_lookup_changes_the_passes_alone(demo: Mixtral) -> None:
    line = "the king and the wolf and the king and the wolf"
    options: dict[str, Any] = {"regex": "(the (king|wolf|cat)( and )?){8}", "temperature": 0, "max_tokens": 80}
    plain, guessed = (demo.generate(line, prompt_lookup=n, **options) for n in (0, 8))
    same(plain, guessed)
    assert guessed.stats.passes < plain.stats.passes


def test_preemption_changes_nothing(alone: Mixtral) -> None:
    page = 64 * 2 * alone.config.n_layers * alone.config.n_kv_heads * alone.config.head_dim * 2
    prompts = [[1, *range(300 + i, 360 + i)] for i in range(5)]
    options: dict[str, Any] = {"max_tokens": 150, "seed": 1, "json_schema": {"type": "array", "minItems": 60}}
    with Mixtral(demo_path(), n_ctx=256, cache_bytes=7 * page) as model:
        completions = model.generate(prompts, **options)
        assert model.stats().preempted > 0
    for completion, prompt in zip(completions, prompts, strict=True):
        alone.forget()
        same(completion, alone.generate(prompt, **options))


# --- Ends, and other options --------------------------------------------------------------------------------------


def test_a_complete_text_ends_whatever_else_is_said(demo: Mixtral) -> None:
    for more in ({"ignore_eos": True}, {"min_tokens": 100}):
        done = demo.generate(PROMPT, choice=[" a cat", " a dog"], **more)  # type: ignore[call-overload]
        assert (done.text[:3], done.finish_reason, done.stop_reason) == (" a ", "stop", None)
        assert demo.generate(PROMPT, regex="(ab){1,30}", max_tokens=200, **more).text == "ab" * 30  # type: ignore[call-overload]
    ended = demo.generate(PROMPT, regex="(ab){2,30}", logit_bias={2: 100.0})  # the model ends it where it may
    assert (ended.text, ended.stop_reason) == ("abab", 2)


def test_an_end_with_a_text_is_no_text(bytes_model: Mixtral) -> None:
    """The file says that token 2 ends a text, and it is a character of texts."""
    character = bytes_model.token_bytes(2).decode()
    assert (2 in bytes_model.eos_ids, len(character)) == (True, 1)
    options: dict[str, Any] = {"max_tokens": 60, "logit_bias": {2: 100.0}}
    done = bytes_model.generate(PROMPT, regex=f"[{character}x]{{20}}", **options)
    assert (len(done.text), done.finish_reason, done.stop_reason) == (20, "stop", None)
    assert bytes_model.generate(PROMPT, regex=f"xx[{character}x]{{0,20}}", **options).text == "xx"
    with pytest.raises(InvalidArgumentError, match="no text of the vocabulary"):
        bytes_model.generate(PROMPT, choice=[character])


def test_max_tokens_and_stop_strings_cut_it(demo: Mixtral) -> None:
    cut = demo.generate(PROMPT, json_schema=PERSON, max_tokens=5)
    assert (cut.finish_reason, len(cut.tokens)) == ("length", 5)
    whole = demo.generate(PROMPT, json_schema=PERSON, seed=1)
    assert demo.generate(PROMPT, json_schema=PERSON, seed=1, max_tokens=len(whole.tokens)).finish_reason == "stop"
    stopped = demo.generate(PROMPT, json_schema=PERSON, seed=1, stop='"age"')
    assert stopped.stop_reason == '"age"'
    assert whole.text.startswith(stopped.text + '"age"')


def test_a_processor_and_a_bias_choose_among_what_is_allowed(demo: Mixtral) -> None:
    (dog,) = demo.tokenize(" dog", add_bos=False)[-1:]
    choice = [" cat", " dog", " wolf"]
    biased = demo.generate(PROMPT, choice=choice, logit_bias={dog: 100.0})

    def likes_dogs(_: Any, logits: Any) -> None:
        logits[dog] = 100

    assert biased.text == demo.generate(PROMPT, choice=choice, logits_processor=likes_dogs).text == " dog"
    with pytest.raises(InvalidArgumentError, match="found all banned"):
        demo.generate(PROMPT, choice=choice, allowed_token_ids=[5])
    assert demo.generate(PROMPT, choice=choice, seed=1).text in choice


def test_a_grammar_beyond_the_limits_ends_its_text_alone(demo: Mixtral) -> None:
    rules = "".join(f's{i}: s{i + 1} | "b"\n' for i in range(2500))
    lark = f'start: " a" s0\n{rules}s2500: "c"'
    other = demo.stream(OTHER, seed=1, max_tokens=200, ignore_eos=True)
    with pytest.raises(InvalidArgumentError, match="lark to be a grammar that can be followed"):
        demo.generate(PROMPT, lark=lark, max_tokens=400)
    text = "".join(other)
    assert text == demo.generate(OTHER, seed=1, max_tokens=200, ignore_eos=True).text


def test_errors_come_before_anything_is_computed(demo: Mixtral) -> None:
    before = demo.stats()
    for options in (
        {"json_schema": {"type": "hiccup"}},
        {"regex": "a("},
        {"lark": "x"},
        {"regex": "a", "choice": ["b"]},
    ):
        with pytest.raises(InvalidArgumentError):
            demo.generate(PROMPT, **options)  # type: ignore[call-overload]
        with pytest.raises(InvalidArgumentError):
            demo.stream(PROMPT, **options)  # type: ignore[arg-type]
    assert demo.stats() == before
