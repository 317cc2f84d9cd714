"""Models over the nodes of a real cluster."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from pymixtral import HostLostError, Mixtral
from pymixtral.cli.serve import serve
from pymixtral.cluster.messages import Done, Work
from pymixtral.cluster.pipeline import PipelinedMixtral, open_pipeline
from pymixtral.demo import demo_chat_path
from pymixtral.errors import CanceledError
from support.nodes import add_node
from support.serving import LONG, Server
from support.texts import lone, same

pytestmark = pytest.mark.ray

PROMPT = "Once upon a time there was a king who had three daughters"
ENDLESS: dict[str, Any] = {"max_tokens": 100_000, "context_shift": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(driver: Any, tiny_q8_0: Path) -> Iterator[PipelinedMixtral]:
    """Two stages on two nodes, with few pages."""
    assert driver
    with open_pipeline(tiny_q8_0, 2, n_ctx=256, n_threads=1, cache_bytes=2 * 9 * 64 * 2048) as model:
        yield model


@pytest.mark.usefixtures("driver")
def test_each_stage_is_on_a_node_of_its_own_with_its_own_bytes(tiny_q8_0: Path) -> None:
    before = n_groups()
    with open_pipeline(tiny_q8_0, 2, n_ctx=256, n_threads=1, prefault=True) as model:
        own, other = model.stages()
        assert n_groups() == before + 1
        assert other.pid != own.pid
        assert other.layers == model.stage_layers[1]
        # What neighbours on the disk add: a read maps 64 kB around it at once, and the header is read.
        slack = 1 << 20
        assert other.weight_bytes <= other.resident_bytes < other.weight_bytes + slack
        work = Work(10**9, runs=[(1, 0, np.zeros(1, np.int32))])
        model.chain.cancel(0, work.number)
        rows = Done(np.ones((1, model.config.hidden), np.float32))
        wait_for(lambda: isinstance(model.chain.run(0, work, rows).error, CanceledError))
    wait_for(lambda: n_groups() == before)  # its places are free again


def n_groups() -> int:
    """Places for stages that are reserved."""
    from ray.util import placement_group_table

    return sum(group["state"] != "REMOVED" for group in placement_group_table().values())


def test_texts_are_those_of_one_process(model: PipelinedMixtral, alone: Mixtral) -> None:
    wanted: list[tuple[Any, dict[str, Any]]] = [
        ([1, *range(300, 300 + n)], {"seed": n, "max_tokens": m, "logprobs": 1, "ignore_eos": True})
        for n, m in ((1, 70), (120, 60), (63, 30), (120, 60), (110, 70), (150, 40))
    ]
    wanted.append((PROMPT, {"seed": 3, "max_tokens": 20, "prompt_logprobs": 1}))
    streams = [model.stream(prompt, **options) for prompt, options in wanted]
    for stream, (prompt, options) in zip(streams, wanted, strict=True):
        list(stream)
        assert stream.completion
        same(stream.completion, lone(alone, prompt, **options))
    shifted: dict[str, Any] = {"seed": 1, "max_tokens": 300, "context_shift": 0, "ignore_eos": True}
    same(model.generate(PROMPT, **shifted), lone(alone, PROMPT, **shifted))


def test_three_nodes(driver: Any, tiny_q8_0: Path, alone: Mixtral) -> None:
    node = add_node(driver)
    try:
        with open_pipeline(tiny_q8_0, 3, n_ctx=256, n_threads=1, patience=120) as model:
            assert len({state.pid for state in model.stages()}) == 3
            prompts = [PROMPT[:n] for n in (3, 20, 40, 50)]
            for prompt, found in zip(prompts, model.generate(prompts, seed=1, max_tokens=20), strict=True):
                same(found, lone(alone, prompt, seed=1, max_tokens=20))
    finally:
        driver.remove_node(node)


def test_a_node_that_is_lost_is_waited_for(driver: Any, tiny_q8_0: Path, alone: Mixtral) -> None:
    node = add_node(driver)
    try:
        with open_pipeline(tiny_q8_0, 3, n_ctx=256, n_threads=1, patience=120) as model:
            stream = model.stream(PROMPT, **ENDLESS)
            next(stream)
            driver.remove_node(node, allow_graceful=False)
            with pytest.raises(HostLostError, match="is gone"):
                list(stream)
            with ThreadPoolExecutor() as pool:
                waiting = pool.submit(next, asked(model))
                node = add_node(driver)
                same(waiting.result(200), lone(alone, PROMPT, seed=1, max_tokens=9))
    finally:
        driver.remove_node(node)


def test_a_stage_that_is_killed_ends_its_texts_and_comes_back(model: PipelinedMixtral, alone: Mixtral) -> None:
    streams = [model.stream(PROMPT, seed=i, **ENDLESS) for i in range(4)]
    for stream in streams:
        next(stream)
    pid = model.stages()[1].pid
    os.kill(pid, signal.SIGKILL)
    for stream in streams:
        with pytest.raises(
            HostLostError, match=r"^expected all hosts of the model, found that the one with .* is gone"
        ):
            list(stream)
    found = next(asked(model))
    same(found, lone(alone, PROMPT, seed=1, max_tokens=9))
    assert model.stages()[1].pid != pid


def test_a_stage_that_is_killed_while_nobody_asks_is_replaced(model: PipelinedMixtral, alone: Mixtral) -> None:
    model.generate(PROMPT, seed=1, max_tokens=9)
    before = model.chain
    os.kill(model.stages()[1].pid, signal.SIGKILL)
    wait_for(lambda: current(model) not in (None, before))
    found = model.generate(PROMPT, seed=1, max_tokens=9)  # which waits for the new stage
    assert found.stats.cached_tokens == 0
    same(found, lone(alone, PROMPT, seed=1, max_tokens=9))


def current(model: PipelinedMixtral) -> Any:
    try:
        return model.chain
    except HostLostError:
        return None


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def asked(model: PipelinedMixtral) -> Iterator[Any]:
    """An answer, asked for again as long as the loss is being noticed."""
    while True:
        try:
            yield model.generate(PROMPT, seed=1, max_tokens=9)
        except HostLostError:
            continue


def test_a_pass_that_nobody_wants_ends(model: PipelinedMixtral, alone: Mixtral) -> None:
    stream = model.stream(PROMPT, **ENDLESS)
    next(stream)
    stream.cancel()
    list(stream)
    assert stream.finish_reason == "cancelled"
    same(model.generate(PROMPT, seed=1, max_tokens=9), lone(alone, PROMPT, seed=1, max_tokens=9))


@pytest.mark.usefixtures("driver")
def test_too_few_hosts(tiny_q8_0: Path) -> None:
    with pytest.raises(
        HostLostError, match="expected 3 other hosts in the cluster with 1 free CPUs each, found too few"
    ):
        open_pipeline(tiny_q8_0, 4, n_ctx=256, n_threads=1, patience=2)


def test_a_server_whose_engine_is_on_two_hosts(driver: Any) -> None:
    server = Server("--ray", driver.address, "--pipeline", "2", "-t", "1", "--name", "parts").ready()
    try:
        assert any("parts" in line and "1 replica" in line for line in server.lines)
        body = {"prompt": PROMPT, "seed": 1, "max_tokens": 9, "temperature": 0}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=LONG).json()
        with Mixtral(demo_chat_path(), n_threads=1) as alone:
            expected = alone.generate(PROMPT, seed=1, max_tokens=9, temperature=0)
        assert answer["choices"][0]["text"] == expected.text
    finally:
        server.send(signal.SIGTERM)
        server.wait()


@pytest.mark.parametrize("n_rows", [0, 1, 5, 6, 16, 131, 200])
@pytest.mark.parametrize("n", [None, 1, 7])
def test_messages_in_pieces(n_rows: int, n: int | None) -> None:
    from pymixtral.cluster.actors import joined, pieces  # which import Ray

    rows = np.random.default_rng(1).standard_normal((n_rows, 4096), np.float32)
    cut = pieces(Done(rows), n)
    found = joined(cut).rows
    assert found is not None
    assert np.array_equal(found, rows)
    assert n in (None, len(cut))
    if n is None:
        assert len(cut) == 1 or max(map(len, cut)) <= 90_000
        assert (len(cut) > 1) == (6 <= n_rows <= 131)


@pytest.mark.parametrize("arguments", [["--pipeline", "2"], ["--ray", "--pipeline", "2", "--adapter", "a=a.gguf"]])
def test_what_a_pipeline_needs(arguments: list[str]) -> None:
    found = CliRunner().invoke(serve, arguments)
    assert found.exit_code == 2
    assert "--pipeline" in found.output
