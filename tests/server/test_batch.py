"""A file of requests becomes a file of answers, which another run goes on with."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pymixtral import InvalidArgumentError, Mixtral, OutputError, demo_chat_path
from pymixtral.server.batch import Batch
from support.command_line import refused, run

USER = [{"role": "user", "content": "Who are you?"}]
OPENAI: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "penalty_window": 0}


def request(id: str, url: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    return {"custom_id": id, "method": "POST", "url": url, "body": body}


REQUESTS = [
    request("a", prompt="Once upon", max_tokens=9, seed=1),
    request("b", "/v1/chat/completions", messages=USER, max_tokens=7, seed=2, model="x"),
    request("c", prompt="Once", temperature=-1),
    request("d", "/v1/responses", input="Who are you?", max_output_tokens=5),
    request("e", "/v1/embeddings", input="The wolf", encoding_format="float"),
    request("f", "/v1/score", context="Once upon", continuations=[" a time"]),
    request("g", prompt="a", stream=True),
    request("h", prompt="word " * 5000),
    *[request(f"n{i}", prompt=f"Once upon {i}", max_tokens=i, seed=i) for i in range(20)],
]


@pytest.fixture(scope="module")
def model() -> Iterator[Mixtral]:
    with Mixtral(demo_chat_path(), n_threads=1) as model:
        yield model


def write(path: Path, requests: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in requests))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_request_has_its_answer_in_order(model: Mixtral, tmp_path: Path) -> None:
    requests, output = write(tmp_path / "in.jsonl", REQUESTS), tmp_path / "out.jsonl"
    before = set(threading.enumerate())  # servers of other tests have logs
    batch = Batch(model, requests, output)
    batch.run(4, progress=False)
    assert "pymixtral-log" not in [thread.name for thread in set(threading.enumerate()) - before]
    answers = read(output)
    assert [answer["custom_id"] for answer in answers] == [one["custom_id"] for one in REQUESTS]
    assert (batch.n_lines, batch.n_done, batch.n_failed, batch.n_resumed) == (len(REQUESTS), len(REQUESTS), 3, 0)
    assert all(set(answer) == {"id", "custom_id", "response", "error"} for answer in answers)
    found = {answer["custom_id"]: answer["response"] for answer in answers}
    assert {id for id, response in found.items() if response["status_code"] != 200} == {"c", "g", "h"}
    assert found["c"]["body"]["error"]["param"] == "temperature"
    assert found["g"]["body"]["error"]["param"] == "stream"
    assert found["h"]["body"]["error"]["code"] == "context_length_exceeded"
    expected = model.generate("Once upon", max_tokens=9, seed=1, **OPENAI)
    assert found["a"]["body"]["choices"][0]["text"] == expected.text
    answer = model.chat(USER, max_tokens=7, seed=2, **OPENAI)
    assert found["b"]["body"]["choices"][0]["message"]["content"] == answer.content
    assert found["d"]["body"]["object"] == "response"
    assert found["e"]["body"]["data"][0]["embedding"] == model.embed(["The wolf"], normalize=True)[0].tolist()
    assert found["f"]["body"]["data"][0]["logprob"] == model.score("Once upon", [" a time"])[0].logprob


def test_a_record_has_its_fields_in_the_order_of_files_that_are_there(model: Mixtral, tmp_path: Path) -> None:
    """So they are gone on with, and failures are counted again."""
    requests, output = write(tmp_path / "in.jsonl", [REQUESTS[0], REQUESTS[2]]), tmp_path / "out.jsonl"
    Batch(model, requests, output).run(progress=False)
    fine, failed = output.read_text().splitlines()
    id = r'"(batch_req_[0-9a-f]{32})"'
    body = r'"response": {"status_code": %d, "request_id": "\1", "body": {.*}}'
    assert re.fullmatch(rf'{{"id": {id}, "custom_id": "a", {body % 200}, "error": null}}', fine)
    assert re.fullmatch(rf'{{"id": {id}, "custom_id": "c", "error": null, {body % 400}}}', failed)
    again = Batch(model, requests, output)
    again.run(progress=False)
    assert (again.n_resumed, again.n_failed, output.read_text()) == (2, 1, f"{fine}\n{failed}\n")


def test_a_byte_order_mark_at_the_beginning_is_left_out(model: Mixtral, tmp_path: Path) -> None:
    requests, output = write(tmp_path / "in.jsonl", REQUESTS[:1]), tmp_path / "out.jsonl"
    Batch(model, requests, output).run(progress=False)
    requests.write_bytes(b"\xef\xbb\xbf" + requests.read_bytes())
    batch = Batch(model, requests, output)
    batch.run(progress=False)
    assert (batch.n_done, batch.n_resumed) == (1, 1)


def test_what_cannot_be_read_twice_is_refused(model: Mixtral, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (
        os.fdopen(os.open(tmp_path / "pipe", os.O_RDWR)),
        pytest.raises(InvalidArgumentError, match="a file of requests that can be read twice"),
    ):
        Batch(model, tmp_path / "pipe", tmp_path / "out.jsonl").run()


@pytest.mark.parametrize("cut", [0, 1, 7, -1])
def test_another_run_goes_on_where_one_ended(model: Mixtral, tmp_path: Path, cut: int) -> None:
    requests, output = write(tmp_path / "in.jsonl", REQUESTS), tmp_path / "out.jsonl"
    Batch(model, requests, output).run(progress=False)
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    kept = b"".join(lines[:cut]) if cut >= 0 else whole[:-30]  # the last is incomplete
    output.write_bytes(kept)
    batch = Batch(model, requests, output)
    batch.run(progress=False)
    assert batch.n_resumed == (cut if cut >= 0 else len(lines) - 1)
    assert (batch.n_done, batch.n_failed) == (len(REQUESTS), 3)
    assert output.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    texts = [answer["response"]["body"].get("choices") for answer in read(output)]
    assert texts == [json.loads(line)["response"]["body"].get("choices") for line in lines]
    again = Batch(model, requests, output)
    again.run(progress=False)
    assert again.n_resumed == len(REQUESTS)


def test_answers_of_other_requests_are_not_gone_on_with(model: Mixtral, tmp_path: Path) -> None:
    requests, output = write(tmp_path / "in.jsonl", REQUESTS[:2]), tmp_path / "out.jsonl"
    Batch(model, requests, output).run(progress=False)
    write(requests, [request("a", prompt="Another"), *REQUESTS[1:2]])
    with pytest.raises(OutputError, match="force"):
        Batch(model, requests, output).run(progress=False)
    Batch(model, requests, output, force=True).run(progress=False)
    assert len(read(output)) == 2
    with pytest.raises(OutputError):
        Batch(model, requests, requests)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("[1]", "expected an object"),
        ("{", "an error"),
        ('{"custom_id": "a", "url": "/v1/completions"}', "expected body to be an object, found None"),
        ('{"custom_id": "", "url": "/v1/completions", "body": {}}', "custom_id"),
        ('{"url": "/v1/completions", "body": {}}', "custom_id"),
        ('{"custom_id": "a", "url": "/v1/files", "body": {}}', "expected url to be one of /v1/completions"),
        ('{"custom_id": "a", "method": "GET", "url": "/v1/completions", "body": {}}', "expected the method POST"),
        ('{"custom_id": "a", "url": "/v1/completions", "body": {}, "x": 1}', "found 'x'"),
        ('{"custom_id": "ok", "url": "/v1/completions", "body": {}}', "found 'ok' as in line 1"),
    ],
)
def test_a_line_that_is_no_request_is_named(model: Mixtral, tmp_path: Path, line: str, found: str) -> None:
    requests = write(tmp_path / "in.jsonl", [request("ok", prompt="a")])
    requests.write_text(requests.read_text() + "\n" + line + "\n")
    with pytest.raises(InvalidArgumentError) as caught:
        Batch(model, requests, tmp_path / "out.jsonl").run(progress=False)
    assert "line 3: " in str(caught.value)
    assert found in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_line_that_is_too_long_is_named(model: Mixtral, tmp_path: Path) -> None:
    requests = write(tmp_path / "in.jsonl", [request("a", prompt="a" * (1 << 24))])
    with pytest.raises(
        InvalidArgumentError, match=r"line 1: expected a line of at most 16777216 bytes.* cut the request"
    ):
        Batch(model, requests, tmp_path / "out.jsonl").check()


def test_the_command(tmp_path: Path) -> None:
    requests, output = write(tmp_path / "in.jsonl", REQUESTS[:2]), tmp_path / "out.jsonl"
    result = run("batch", requests, output)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{output}: 2 requests in ")
    assert len(read(output)) == 2
    write(requests, REQUESTS)
    result = run("batch", requests, output, "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert (told["requests"], told["done"], told["resumed"], told["failed"]) == (len(REQUESTS), len(REQUESTS), 2, 3)
    assert list(told) == ["output", "requests", "done", "resumed", "failed", "seconds"]
    result = run("batch", requests, output)
    assert result.exit_code == 1
    first, last = result.stdout.splitlines()
    assert re.fullmatch(rf"{re.escape(str(output))}: 28 requests in [\d.]+ s, 28 of them from before", first)
    assert last == "refused: 3 of them, whose records say why"
    requests.write_text("{}\n")
    refused(run("batch", "-m", demo_chat_path(), requests, output), "line 1: expected custom_id")
