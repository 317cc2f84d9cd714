"""Many prompts on a cluster: each gets one record, that of one process, whoever is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pymixtral import Mixtral, OutputError
from support.command_line import COMMAND, refused, run
from support.nodes import add_node

pytestmark = pytest.mark.ray

N = 600
SECONDS = 240.0


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts that take some seconds."""
    path = tmp_path_factory.mktemp("batch") / "prompts.jsonl"
    lines = [{"prompt": f"Once upon a time {i}", "id": i, "seed": i, "max_tokens": 20 + i % 30} for i in range(N)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def expected(tiny_q8_0: Path, prompts: Path) -> list[dict[str, Any]]:
    """The records of one process."""
    output = prompts.with_name("expected.jsonl")
    assert run("generate", "-m", tiny_q8_0, "--prompts", prompts, "-o", output, "-c", 128).exit_code == 0
    return read(output)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "texts.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    """The records, without what depends on the moment."""
    records = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    for record in records:
        record.get("usage", {}).pop("cached_tokens", None)
    return records


def n_done(output: Path) -> int:
    """Records of the output, and of the parts that are not in it."""
    heads: set[bytes] = set()
    for path in (*output.parent.glob("texts.jsonl.parts/part-*"), output):
        with suppress(FileNotFoundError):
            heads |= {line[:60] for line in path.read_bytes().split(b"\n")[:-1]}
    return len(heads)


class Batch:
    """The command, in a process of its own."""

    def __init__(self, cluster: Any, model: Path, prompts: Path, output: Path, *more: object) -> None:
        self.output = output
        self._tokens = self._shared()
        arguments = ["generate", "-m", model, "--prompts", prompts, "-o", output, "-c", 128]
        line = [*COMMAND, *map(str, [*arguments, "--ray", cluster.address, *more])]
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def _shared(self) -> set[Path]:
        return set(self.output.parent.glob("texts.jsonl.parts/shared-*"))

    def wait(self, come: Callable[[], object]) -> None:
        """Waits for something to be true, while the work is not over."""
        deadline = time.monotonic() + SECONDS
        while not come():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def reach(self, n: int) -> None:
        """Waits until the work has begun and so many prompts have records."""
        self.wait(lambda: self._shared() - self._tokens and n_done(self.output) >= n)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, out, err

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def raylet(node: Any) -> int:
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


def workers(node: Any) -> Iterator[int]:
    """The processes of a node that have a model open."""
    for path in Path("/proc").iterdir():
        with suppress(OSError):
            if path.name.isdigit() and b"MapWorker" in (path / "cmdline").read_bytes():
                parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == raylet(node):
                    yield int(path.name)


def test_a_worker_and_a_node_are_killed(
    cluster: Any, tiny_q8_0: Path, prompts: Path, expected: list[dict[str, Any]], output: Path
) -> None:
    third = add_node(cluster)
    try:
        with Batch(cluster, tiny_q8_0, prompts, output, "--json") as batch:
            batch.reach(1)
            others = [node for node in cluster.list_all_nodes() if node is not third]
            batch.wait(lambda: any(list(workers(node)) for node in others) and list(workers(third)))
            os.kill(next(pid for node in others for pid in workers(node)), signal.SIGKILL)
            (lost,) = workers(third)
            batch.reach(100)
            assert n_done(output) < N
            os.kill(raylet(third), signal.SIGKILL)
            with suppress(ProcessLookupError):
                os.kill(lost, signal.SIGKILL)
            code, out, err = batch.end()
    finally:
        cluster.remove_node(third, allow_graceful=False)
    assert code == 0, err
    found = json.loads(out)
    assert (found["prompts"], found["done"], found["resumed"], found["failed"]) == (N, N, 0, 0)
    assert found["generated_tokens"] == sum(len(record["tokens"]) for record in expected)
    assert read(output) == expected
    assert not output.with_name("texts.jsonl.parts").exists()


def test_the_program_is_killed_and_interrupted_and_goes_on(
    cluster: Any, tiny_q8_0: Path, prompts: Path, expected: list[dict[str, Any]], output: Path
) -> None:
    with Batch(cluster, tiny_q8_0, prompts, output) as batch:
        batch.reach(1)
        batch.process.kill()
        assert batch.end()[0] == -signal.SIGKILL
    before = n_done(output)
    assert 0 < before < N
    with Batch(cluster, tiny_q8_0, prompts, output) as batch:
        batch.reach(before + 1)
        batch.process.send_signal(signal.SIGINT)
        code, out, err = batch.end()
    assert (code, out) == (130, "")
    said = re.search(rf"^(\d+) of {N} prompts are done; the same command goes on from there\.$", err, re.M)
    assert said
    assert before < int(said[1]) <= n_done(output) < N
    before = n_done(output)
    with Batch(cluster, tiny_q8_0, prompts, output, "--json") as batch:
        code, out, err = batch.end()
    assert (code, json.loads(out)["done"]) == (0, N), err
    assert json.loads(out)["resumed"] >= before
    assert read(output) == expected
    assert not output.with_name("texts.jsonl.parts").exists()


def test_one_process_begins_and_a_cluster_goes_on_with_parquet(cluster: Any, tiny_q8_0: Path, output: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    texts = [f"Once upon a time {i}" for i in range(150)]
    texts[140] = "long " * 500
    table = {"id": list(range(150)), "prompt": texts, "seed": [i if i % 2 else None for i in range(150)]}
    prompts = output.with_name("prompts.parquet")
    parquet.write_table(pyarrow.table(table), prompts, row_group_size=40)
    line: list[object] = ["generate", "-m", tiny_q8_0, "--prompts", prompts, "-o", output, "-c", 128, "-n", 5]
    assert run(*line, "--temperature", 0).exit_code == 1  # for one prompt that is too long
    data, expected = output.read_bytes(), read(output)
    output.write_bytes(b"".join(data.splitlines(keepends=True)[:70]) + data.splitlines()[70][:50])
    with Batch(cluster, tiny_q8_0, prompts, output, "-n", 5, "--temperature", 0, "--json") as batch:
        code, out, err = batch.end()
    found = json.loads(out)
    assert (code, found["done"], found["resumed"], found["failed"]) == (1, 150, 70, 1), err
    assert read(output) == expected
    assert found["generated_tokens"] == sum(len(record.get("tokens", ())) for record in expected[70:])


def test_more_cpus_than_a_node_has(cluster: Any, tiny_q8_0: Path, prompts: Path, output: Path) -> None:
    with Batch(cluster, tiny_q8_0, prompts, output, "-t", 64) as batch:
        code, out, err = batch.end()
    assert (code, out) == (2, "")
    assert re.fullmatch(
        r"Error: expected a node of the cluster with 64 CPUs for a worker, found \d+ at most: .*\n", err
    )
    assert "--threads" in err
    assert not output.with_name("texts.jsonl.parts").exists()


@pytest.mark.parametrize("damage", [b"\xff", b'{"a": 1, ', b"[" * 100_000])
def test_a_part_that_was_tampered_with(tiny_q8_0: Path, output: Path, damage: bytes) -> None:
    """Its records begin and end as they should. No cluster is asked, as all parts are there."""
    from pymixtral.cluster.batch import ClusterBulk

    prompts = output.with_name("prompts.jsonl")
    prompts.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    with Mixtral(tiny_q8_0, n_ctx=128) as model:
        bulk = ClusterBulk(model, prompts, output, opening={}, lines=1, max_tokens=1)
        bulk.check()
        bulk._parts.make()
        for chunk, line in zip(bulk._chunks, bulk._read(), strict=True):
            (bulk._parts.path / chunk.part).write_bytes(line.head.encode() + b', "text": "' + damage + b'"x}\n')
        with pytest.raises(OutputError, match=r"part-.*: expected the record of prompt 0, found something else"):
            bulk.run(progress=False)
    assert output.read_bytes() == b""


def test_the_context_is_that_of_no_host(tiny_q8_0: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this one has little memory the records are the same; no cluster is asked, as they are all there."""
    from pymixtral import memory as module

    prompts = output.with_name("prompts.jsonl")
    prompts.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    with Mixtral(tiny_q8_0) as model:
        longest = model.config.n_ctx_train
        assert model.n_ctx == longest
    line: list[object] = ["generate", "-m", tiny_q8_0, "--prompts", prompts, "-o", output, "-n", 1, "--json"]
    assert run(*line, "-c", longest).exit_code == 0
    little = replace(module.memory(), available=tiny_q8_0.stat().st_size * 11 // 10)
    monkeypatch.setattr(module, "memory", lambda: little)
    with Mixtral(tiny_q8_0) as model:
        assert model.n_ctx < longest
    found = run(*line, "--ray")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["resumed"] == 2


@pytest.mark.parametrize("address", ["nowhere", ":1", "host:port", "host:99999", "host:\u00b2"])
def test_an_address_that_is_none_leaves_no_folder(tiny_q8_0: Path, prompts: Path, output: Path, address: str) -> None:
    line = ["generate", "-m", tiny_q8_0, "--prompts", prompts, "-o", output, "-c", 128, "--ray", address]
    refused(run(*line), "expected the address of a cluster as HOST:PORT", address)
    assert not output.with_name("texts.jsonl.parts").exists()
