"""A worker of a batch, without the cluster around it: what it makes, and what it refuses."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from pymixtral import Mixtral
from pymixtral.bulk.generate import Bulk
from pymixtral.cluster import chunks as module
from pymixtral.cluster.batch import ClusterBulk
from pymixtral.cluster.chunks import Chunk, Parts
from pymixtral.cluster.worker import Work, Worker

OPENING: dict[str, Any] = {"n_ctx": 128, "n_threads": 1}


@pytest.fixture(scope="module")
def model(tiny_q8_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0, **OPENING) as model:
        yield model


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"Once {i}", "seed": i, "max_tokens": 1 + i % 5} for i in range(20)]
    lines[13]["prompt"] = "long " * 200
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def work(model: Mixtral, prompts: Path, tmp_path: Path) -> Work:
    bulk = Bulk(model, prompts, tmp_path / "texts.jsonl", temperature=0.5)
    parts = Parts(tmp_path / "texts.jsonl")
    parts.make()
    parts.publish("ab")
    options = {"temperature": 0.5}
    return Work(
        model.path, OPENING, prompts, tmp_path / "texts.jsonl", options, bulk._key, "ab", 4, version("pymixtral")
    )


def chunks(model: Mixtral, work: Work) -> list[Chunk]:
    bulk = ClusterBulk(model, work.prompts, work.output, opening=OPENING, lines=8, **work.options)
    bulk.check()
    return bulk._chunks


def records(data: bytes) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in data.splitlines()]
    for record in found:
        record.get("usage", {}).pop("cached_tokens", None)
    return found


def test_parts_are_the_records_of_one_process(model: Mixtral, work: Work) -> None:
    Bulk(model, work.prompts, work.output, **work.options).run()
    worker = Worker(work)
    parts = Parts(work.output)
    made = b""
    for chunk in reversed(chunks(model, work)):  # in whatever order
        assert worker(chunk.row()) == {"chunk": chunk.number, "error": ""}
        made = b"".join(parts.lines(chunk)) + made
    assert records(made) == records(work.output.read_bytes())
    assert [record["index"] for record in records(made) if "error" in record] == [13]
    assert {path.name for path in parts.path.iterdir()} == {"shared-ab", *parts.names()}


def test_a_part_that_is_there_is_not_made_again(model: Mixtral, work: Work) -> None:
    first = chunks(model, work)[0]
    path = Parts(work.output).path / first.part
    path.write_bytes(b"something\n")
    assert Worker(work)(first.row())["error"] == ""
    assert path.read_bytes() == b"something\n"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"token": "cd"}, "put prompts, output and model into a folder that all nodes share"),
        ({"version": "0.0.1"}, "expected pymixtral 0.0.1, as where the job began"),
        ({"key": "other"}, "expected the same model, opened in the same way"),
        ({"opening": {**OPENING, "experts_used": 1}}, "expected the same model, opened in the same way"),
        ({"model": Path("missing.gguf")}, "missing.gguf"),
        ({"prompts": Path("missing.jsonl")}, "missing.jsonl"),
    ],
    ids=["folder", "version", "key", "opening", "model", "prompts"],
)
def test_a_node_that_lacks_something_says_so(
    model: Mixtral, work: Work, changed: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    first = chunks(model, work)[0]
    error = Worker(replace(work, **changed))(first.row())["error"]
    assert error.startswith(f"node {socket.gethostname()}: ")
    assert words in error
    assert "\n" not in error
    assert Parts(work.output).names() == set()


def test_prompts_that_changed_meanwhile(model: Mixtral, work: Work) -> None:
    first, *_, last = chunks(model, work)
    worker = Worker(work)
    work.prompts.write_text(work.prompts.read_text().replace("Once 0", "Ever 0"))
    assert "expected the prompts from 0 on as they were when the job began" in worker(first.row())["error"]
    assert worker(last.row())["error"] == ""
    work.prompts.write_text("")
    assert "found others" in worker(first.row())["error"]


def test_a_chunk_that_kills_its_workers_ends_the_job(model: Mixtral, work: Work) -> None:
    first, second, _ = chunks(model, work)
    parts = Parts(work.output)
    (parts.path / "tries-00000000").write_bytes(b"." * 7)  # of workers that were killed
    with parts.trying(first):
        assert (parts.path / "tries-00000000").read_bytes() == b"." * 8
    (parts.path / "tries-00000000").write_bytes(b"." * 8)
    error = Worker(work)(first.row())["error"]
    assert "expected workers to survive the prompts from 0 to 7, found that 8 were killed" in error
    assert Worker(work)(second.row())["error"] == ""
    parts.publish("ab")  # another job
    assert Worker(work)(first.row())["error"] == ""
