"""POST /v1/completions gives what Mixtral.generate() gives, whole and in pieces."""

from __future__ import annotations

import asyncio
import base64
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from pymixtral import Mixtral
from pymixtral.asynchronous import AsyncMixtral
from pymixtral.server.api.answers import merged
from pymixtral.server.api.completions import CompletionRequest, complete_chunks
from pymixtral.server.api.token_texts import Offsets, TokenTexts
from pymixtral.server.service import Service, Work
from pymixtral.server.settings import Settings
from support.api_servers import Served

PATH = "/v1/completions"
PROMPT = "Once upon a time there was a king"
OPENAI: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "penalty_window": 0}
"""Its defaults, as options of generate()."""


def joined(chunks: list[Any]) -> dict[int, dict[str, Any]]:
    """The choices that the chunks of a stream are."""
    choices: dict[int, dict[str, Any]] = defaultdict(lambda: {"text": "", "finish_reason": None, "token_ids": []})
    for chunk in chunks:
        for piece in chunk["choices"]:
            choice = choices[piece["index"]]
            assert choice["finish_reason"] is None
            choice["text"] += piece["text"]
            choice["finish_reason"] = piece["finish_reason"]
            choice["token_ids"] += piece.get("token_ids", [])
            for name, value in (piece["logprobs"] or {}).items():
                choice.setdefault(name, []).extend(value)
    return choices


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {"max_tokens": 16}),
        ({"seed": 3, "max_tokens": 20}, {"seed": 3, "max_tokens": 20}),
        ({"temperature": 0, "max_tokens": 12}, {"temperature": 0, "max_tokens": 12}),
        ({"seed": -1}, {"seed": (1 << 64) - 1, "max_tokens": 16}),
        ({"seed": 1, "stop": "the"}, {"seed": 1, "stop": "the", "max_tokens": 16}),
        ({"seed": 1, "stop": ["a", "e"], "max_tokens": 30}, {"seed": 1, "stop": ["a", "e"], "max_tokens": 30}),
        ({"seed": 1, "top_k": -1}, {"seed": 1, "max_tokens": 16}),
        ({"seed": 1, "top_k": 3, "min_p": 0.1}, {"seed": 1, "top_k": 3, "min_p": 0.1, "max_tokens": 16}),
        (
            {"seed": 1, "presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
            {"presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2, "seed": 1, "max_tokens": 16},
        ),
        ({"seed": 1, "logit_bias": {"300": 100}}, {"seed": 1, "logit_bias": {300: 100.0}, "max_tokens": 16}),
        ({"seed": 1, "allowed_token_ids": [300, 301]}, {"seed": 1, "allowed_token_ids": [300, 301], "max_tokens": 16}),
        ({"seed": 1, "bad_words": ["king", "the"]}, {"seed": 1, "bad_words": ["king", "the"], "max_tokens": 16}),
        ({"seed": 1, "stop_token_ids": [262, 300]}, {"seed": 1, "stop_token_ids": [262, 300], "max_tokens": 16}),
        (
            {"seed": 2, "ignore_eos": True, "min_tokens": 5},
            {"seed": 2, "ignore_eos": True, "min_tokens": 5, "max_tokens": 16},
        ),
        ({"seed": 1, "structured_outputs": {"regex": "[0-9]{4}"}}, {"seed": 1, "regex": "[0-9]{4}", "max_tokens": 16}),
        (
            {"seed": 1, "response_format": {"type": "json_object", "schema": {"enum": [1, 2]}}},
            {"seed": 1, "json_schema": {"enum": [1, 2]}, "max_tokens": 16},
        ),
        ({"seed": 1, "structured_outputs": {"choice": ["yes", "no"]}}, {"seed": 1, "choice": ["yes", "no"]}),
        ({"seed": 1, "prompt_lookup": 4, "priority": -2, "cache_salt": "x"}, {"seed": 1, "max_tokens": 16}),
    ],
)
def test_the_text_is_that_of_a_call_in_process(story: Served, fields: Any, options: Any) -> None:
    fields.setdefault("seed", 7)
    options.setdefault("seed", 7)
    expected = story.model.generate(PROMPT, **OPENAI | options)
    answer = story.ok(PATH, prompt=PROMPT, return_token_ids=True, **fields)
    (choice,) = answer["choices"]
    assert choice["text"] == expected.text
    assert choice["token_ids"] == expected.tokens
    assert choice["finish_reason"] == expected.finish_reason
    assert choice["stop_reason"] == expected.stop_reason
    assert choice["prompt_token_ids"] == story.model.tokenize(PROMPT)
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len(choice["prompt_token_ids"])
    assert usage["completion_tokens"] == len(expected.tokens)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    streamed = joined(story.chunks(PATH, prompt=PROMPT, return_token_ids=True, **fields))[0]
    assert (streamed["text"], streamed["token_ids"]) == (expected.text, expected.tokens)
    assert streamed["finish_reason"] == expected.finish_reason


def test_penalties_look_at_the_whole_text(story: Served) -> None:
    prompt = [300] + [301] * 100
    options = {"temperature": 0, "max_tokens": 5, "presence_penalty": 50.0}
    answer = story.ok(PATH, prompt=prompt, return_token_ids=True, logit_bias={"300": 45}, **options)
    with_window = story.model.generate(prompt, logit_bias={300: 45.0}, **options)  # type: ignore[arg-type]
    assert answer["choices"][0]["token_ids"] != with_window.tokens
    expected = story.model.generate(prompt, logit_bias={300: 45.0}, **OPENAI | options)  # type: ignore[arg-type]
    assert answer["choices"][0]["token_ids"] == expected.tokens


def test_several_prompts_and_texts_come_prompt_by_prompt(story: Served) -> None:
    prompts = ["The king", "A wolf"]
    expected = story.model.generate(prompts, n=3, seed=5, max_tokens=9, **OPENAI)
    texts = [choice.text for completion in expected for choice in completion.choices]
    body = {"prompt": prompts, "n": 3, "seed": 5, "max_tokens": 9}
    answer = story.ok(PATH, **body)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert answer["usage"]["prompt_tokens"] == sum(len(story.model.tokenize(prompt)) for prompt in prompts)
    chunks = story.chunks(PATH, **body)
    assert [joined(chunks)[i]["text"] for i in range(6)] == texts
    first = [chunk["choices"][0]["index"] for chunk in chunks]
    assert first[:3] != [0, 0, 0]  # interleaved
    assert len({chunk["id"] for chunk in chunks}) == len({chunk["created"] for chunk in chunks}) == 1
    ids = [story.model.tokenize(prompt) for prompt in prompts]
    assert [choice["text"] for choice in story.ok(PATH, **body | {"prompt": ids})["choices"]] == texts


def test_best_of_gives_the_best(story: Served) -> None:
    expected = story.model.generate(PROMPT, n=2, best_of=4, seed=5, max_tokens=6, **OPENAI)
    answer = story.ok(PATH, prompt=PROMPT, n=2, best_of=4, seed=5, max_tokens=6)
    assert [choice["text"] for choice in answer["choices"]] == [choice.text for choice in expected.choices]


@pytest.mark.parametrize("as_ids", [False, True])
def test_logprobs_are_those_of_the_model_to_the_last_digit(story: Served, as_ids: bool) -> None:
    expected = story.model.generate(PROMPT, seed=2, max_tokens=12, logprobs=3, prompt_logprobs=3, **OPENAI)
    body = {"prompt": PROMPT, "seed": 2, "max_tokens": 12, "logprobs": 3, "return_tokens_as_token_ids": as_ids}
    (choice,) = story.ok(PATH, echo=True, **body)["choices"]
    logprobs = choice["logprobs"]
    tokens = [*(expected.prompt_logprobs or []), *(expected.logprobs or [])]
    names = TokenTexts(story.model, as_ids)
    assert choice["text"] == PROMPT + expected.text
    assert logprobs["token_logprobs"] == [token and token.logprob for token in tokens]
    assert logprobs["tokens"] == [names.text(id) for id in [*story.model.tokenize(PROMPT), *expected.tokens]]
    for token, likely in zip(tokens[1:], logprobs["top_logprobs"][1:], strict=True):
        assert token
        assert likely[names.text(token.id)] <= token.top[0][1] == max(likely.values())
        assert set(likely) == {names.text(id) for id, _ in token.top} | {names.text(token.id)}
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    if not as_ids:
        for text, at in zip(logprobs["tokens"][2:], logprobs["text_offset"][2:], strict=True):
            assert choice["text"][at : at + len(text)] == text
    (alone,) = story.ok(PATH, **body)["choices"]
    assert alone["logprobs"]["token_logprobs"] == logprobs["token_logprobs"][-12:]
    streamed = joined(story.chunks(PATH, **body))[0]
    for name, value in alone["logprobs"].items():
        assert streamed[name] == value
    assert (
        story.ok(PATH, **body | {"logprobs": 0})["choices"][0]["logprobs"]["token_logprobs"]
        == (alone["logprobs"]["token_logprobs"])
    )


def test_scoring_by_echo_needs_no_token(story: Served) -> None:
    expected = story.model.generate(PROMPT, max_tokens=1, prompt_logprobs=1)
    (choice,) = story.ok(PATH, prompt=PROMPT, max_tokens=0, echo=True, logprobs=1)["choices"]
    assert choice["text"] == PROMPT
    assert choice["logprobs"]["token_logprobs"][1:] == [
        token.logprob for token in expected.prompt_logprobs or [] if token
    ]
    (choice,) = story.ok(PATH, prompt=PROMPT, max_tokens=1, prompt_logprobs=1)["choices"]
    for token, entry in zip(expected.prompt_logprobs or [], choice["prompt_logprobs"], strict=True):
        assert (entry is None) == (token is None)
        if token:
            assert entry[str(token.id)]["logprob"] == token.logprob
            assert entry[str(token.top[0][0])]["rank"] == 1


def test_echo_streams_the_prompt_first(story: Served) -> None:
    chunks = story.chunks(PATH, prompt=PROMPT, echo=True, max_tokens=4, seed=1)
    assert chunks[0]["choices"][0]["text"] == PROMPT
    whole = story.ok(PATH, prompt=PROMPT, echo=True, max_tokens=4, seed=1)["choices"][0]["text"]
    assert joined(chunks)[0]["text"] == whole


def test_usage_in_streams(story: Served) -> None:
    body = {"prompt": ["a", "b c"], "max_tokens": 5, "ignore_eos": True, "seed": 1}
    assert all("usage" not in chunk for chunk in story.chunks(PATH, **body))
    chunks = story.chunks(PATH, stream_options={"include_usage": True}, **body)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 10
    assert all(chunk["choices"] for chunk in chunks[:-1])
    chunks = story.chunks(PATH, stream_options={"continuous_usage_stats": True}, **body)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 10


def test_prompts_that_begin_alike_come_from_the_cache(story: Served) -> None:
    story.ok(PATH, prompt=PROMPT * 5, max_tokens=1)
    usage = story.ok(PATH, prompt=PROMPT * 5 + " x", max_tokens=1)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 20


def test_prompts_are_cut_and_taken_as_they_are(story: Served) -> None:
    ids = story.model.tokenize(PROMPT)
    answer = story.ok(PATH, prompt=PROMPT, truncate_prompt_tokens=3, return_token_ids=True, max_tokens=1)
    assert answer["choices"][0]["prompt_token_ids"] == ids[-3:]
    answer = story.ok(PATH, prompt=PROMPT, add_special_tokens=False, return_token_ids=True, max_tokens=1)
    assert answer["choices"][0]["prompt_token_ids"] == ids[1:]
    answer = story.ok(PATH, prompt=PROMPT * 200, truncate_prompt_tokens=-1, max_tokens=1)
    assert answer["usage"]["prompt_tokens"] == story.model.n_ctx - 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_a_400_with_both_numbers(story: Served, stream: bool) -> None:
    ids = [300] * (story.model.n_ctx + 5)
    for prompt in (ids, ["a", story.model.detokenize(ids)], "a" * 100_000):
        error = story.refused(PATH, prompt=prompt, stream=stream)
        assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
        assert error["n_ctx"] == story.model.n_ctx < error["n_prompt_tokens"]


def test_a_full_context_and_a_deadline_are_lengths_with_a_reason(story: Served) -> None:
    (choice,) = story.ok(PATH, prompt=[300] * 510, max_tokens=50, ignore_eos=True)["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "context")
    (choice,) = story.ok(PATH, prompt=[300] * 9, max_tokens=400, ignore_eos=True, timeout=0)["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "deadline")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"prompt": ["a"] * 17, "n": 128, "max_tokens": 1}, "n"),
        ({"prompt": ["a"] * 17, "best_of": 128, "max_tokens": 1}, "best_of"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"echo": True, "logprobs": 1, "stream": True}, "echo"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"allowed_token_ids": [99999]}, "allowed_token_ids"),
        ({"stop_token_ids": [99999]}, "stop_token_ids"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"response_format": {"type": "json_object", "schema": {"type": "king"}}}, "response_format"),
        ({"context_shift": 100_000}, "context_shift"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_names_its_field(story: Served, fields: Any, param: str, stream: bool) -> None:
    if stream and param == "stream_options":
        return
    error = story.refused(PATH, **{"prompt": "a", "stream": stream, **fields})
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_the_experts_of_each_token(story: Served) -> None:
    expected = story.model.generate(PROMPT, seed=1, max_tokens=6, routing=True, **OPENAI).routing
    assert expected
    body = {"prompt": PROMPT, "seed": 1, "max_tokens": 6, "return_routing": True}
    (choice,) = story.ok(PATH, **body)["choices"]

    def numbers(routing: Any) -> tuple[Any, Any]:
        shape = (len(routing["tokens"]), routing["n_layers"], routing["k"])
        experts = np.frombuffer(base64.b64decode(routing["experts"]), np.uint8).reshape(shape)
        return experts, np.frombuffer(base64.b64decode(routing["weights"]), "<f2").reshape(shape)

    experts, weights = numbers(choice["routing"])
    assert (experts == expected.experts).all()
    assert (weights == expected.weights).all()
    assert choice["routing"]["tokens"] == expected.ids[: expected.n_tokens].tolist()
    assert (choice["routing"]["n_prompt"], choice["routing"]["n_experts"]) == (expected.n_prompt, expected.n_experts)
    pieces = [chunk["choices"][0].get("routing") for chunk in story.chunks(PATH, **body)]
    pieces = [piece for piece in pieces if piece]
    assert len(pieces) > 2
    assert [id for piece in pieces for id in piece["tokens"]] == choice["routing"]["tokens"]
    assert (np.concatenate([numbers(piece)[0] for piece in pieces]) == experts).all()
    assert [piece["n_prompt"] for piece in pieces] == [expected.n_prompt, *[0] * (len(pieces) - 1)]


@pytest.mark.parametrize("text", ["Once upon", " two spaces", "Voil\u00e0 \u4f60\u597d", "\u20ac\U0001f600x", "a\nb"])
def test_offsets_are_those_of_the_characters(story: Served, text: str) -> None:
    model: Mixtral = story.model
    ids = model.tokenize(text)
    offsets = Offsets(model, True)
    assert [offsets.take(id) for id in ids] == [
        len(model.detokenize(ids[:i]).rstrip("\ufffd")) for i in range(len(ids))
    ]


def test_what_lm_eval_asks_for_gives_the_scores_in_process(story: Served) -> None:
    model = story.model
    context, continuations = PROMPT, [" who had three sons", " of the wolves"]
    expected = model.score(context, continuations)
    ids = [model.tokenize(context + continuation) for continuation in continuations]
    answer = story.ok(PATH, prompt=ids, max_tokens=1, logprobs=1, echo=True, temperature=0, seed=1234)
    for choice, score in zip(answer["choices"], expected, strict=True):
        logprobs = choice["logprobs"]
        mine = slice(-1 - len(score.tokens), -1)
        assert logprobs["token_logprobs"][mine] == score.tokens
        greedy = [
            max(likely, key=likely.__getitem__) == token
            for token, likely in zip(logprobs["tokens"][mine], logprobs["top_logprobs"][mine], strict=True)
        ]
        assert all(greedy) == score.greedy


def test_too_many_texts_are_refused_before_the_queue_counts_them(
    story: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story.service, "n_admitted", 1)  # a second request might be told to try again later
    for stream in (True, False):
        body = {"prompt": ["a"] * 1024, "n": 128, "max_tokens": 1, "stream": stream}
        assert "at most 2048 texts of all prompts, found 131072" in story.refused("/v1/completions", **body)["message"]


def test_others_have_turns_while_a_thousand_prompts_are_taken(story: Served) -> None:
    body = CompletionRequest.read({"prompt": ["a"] * 1000, "max_tokens": 1, "stream": True})

    async def turns() -> int:
        service = Service(Settings(), AsyncMixtral(story.model))
        first = asyncio.ensure_future(complete_chunks(service, body, Work(service)))
        n = 0
        while not first.done():
            await asyncio.sleep(0)
            n += 1
        await first.result().aclose()
        service.log.close()
        return n

    assert asyncio.run(turns()) > 500


def test_what_is_ready_at_once_comes_in_order() -> None:
    async def two(i: int) -> AsyncIterator[int]:
        yield i
        yield -i

    async def read() -> list[int]:
        return [value async for value in merged([two(i) for i in range(1, 20_001)])]

    values = asyncio.run(read())
    assert values[:20_000] == list(range(1, 20_001))
    assert sorted(values) == [*range(-20_000, 0), *range(1, 20_001)]
