"""The measure of speed: what it counts and how it is shown. The figures themselves are not tested."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pymixtral import Mixtral, ops
from pymixtral.cli import main
from pymixtral.errors import ContextLengthError, InvalidArgumentError
from pymixtral.evaluation.bench import Bench, bench
from pymixtral.model.forward import Model
from support.adapter_files import write_adapter


@pytest.fixture(scope="module")
def result() -> Bench:
    with Mixtral(n_ctx=24, n_threads=1) as model:
        return bench(model, n_prompt=16, n_generate=8, repetitions=1, time_line=True)


def test_rates_and_limits_belong_together(result: Bench) -> None:
    with Mixtral(n_ctx=24) as model:
        assert result.prompt_gmacs == pytest.approx(result.prompt_rate * model.prompt_weights / 1e9)
        assert result.generation_bandwidth == pytest.approx(result.generation_rate * model.active_bytes / 1e9)
    assert result.prompt_limit == pytest.approx(result.prompt_gmacs / result.int8_gmacs)
    assert result.generation_limit == pytest.approx(result.generation_bandwidth / result.read_bandwidth)
    assert (result.n_threads, result.n_prompt, result.n_generate) == (1, 16, 8)
    assert min(result.prompt_rate, result.generation_rate) > 0


def test_rates_are_medians_of_tokens_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, generations = iter([9.0, 2.0, 1.0, 4.0]), iter([8.0, 4.0, 2.0])  # the first prompt pages the weights in
    monkeypatch.setattr("pymixtral.evaluation.bench._prompt", lambda *_: next(prompts))
    monkeypatch.setattr("pymixtral.evaluation.bench._generate", lambda *_: next(generations))
    with Mixtral(n_ctx=24, n_threads=1) as model:
        found = bench(model, n_prompt=16, n_generate=8, repetitions=3)
    assert (found.prompt_rate, found.generation_rate) == (8, 2)


def test_each_pass_of_a_generation_computes_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    with Mixtral(n_ctx=24, n_threads=1) as model:
        sizes: list[int] = []
        inner = model.core.engine._loop._model
        forward = inner.forward
        monkeypatch.setattr(
            inner, "forward", lambda ids, *rest, **more: (sizes.append(len(ids)), forward(ids, *rest, **more))[1]
        )
        bench(model, n_prompt=16, n_generate=8, repetitions=1)
    assert sizes == [16, 16, *[1] * 8]


def test_the_time_line_is_that_of_the_tokens(result: Bench) -> None:
    line = result.time_line
    assert line is not None
    assert line.microseconds == pytest.approx(1e6 / result.generation_rate)
    assert line.read_bandwidth == result.read_bandwidth
    assert line.limit == pytest.approx(result.generation_limit)
    with Mixtral() as model:
        assert line.n_bytes == model.active_bytes
    assert line.limit + sum(asdict(line.loss).values()) == pytest.approx(1)
    assert {part.name for part in line.parts if part.microseconds == 0} <= {"sampling"}
    assert 0 < line.loss.python < 1


def test_nobody_times_what_was_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mixtral, "timed", None)
    with Mixtral(n_ctx=24, n_threads=1) as model:
        assert bench(model, n_prompt=2, n_generate=2, repetitions=1).time_line is None


def test_the_demo_model_multiplies_two_experts_of_eight() -> None:
    with Mixtral() as model:  # 4 layers: q, k, v, output, router; 2 experts of 3 matrices, but in the last one
        attention, experts = 256 * 256 * 2 + 64 * 256 * 2 + 8 * 256, 2 * 3 * 512 * 256
        assert model.prompt_weights == 4 * attention + 3 * experts


def test_wrong_numbers_are_refused() -> None:
    with Mixtral(n_ctx=24) as model:
        with pytest.raises(ContextLengthError, match="24 tokens"):
            bench(model, n_prompt=20, n_generate=5)
        wrong: list[tuple[str, object]] = [("repetitions", 0), ("n_prompt", 2.5), ("n_generate", "2"), ("seed", -1)]
        for name, value in wrong:
            numbers = {"n_prompt": 2, "n_generate": 2, name: value}
            with pytest.raises(InvalidArgumentError, match=f"expected {name} to be an integer of at least [01], found"):
                bench(model, **numbers)  # type: ignore[arg-type]


def test_the_command_prints_a_table_or_json(result: Bench) -> None:
    args = ["bench", "--prompt-tokens", "16", "-n", "8", "-r", "1", "-t", "1"]
    shown = CliRunner().invoke(main, args)
    assert shown.exit_code == 0
    assert "tokens/s" in shown.stdout
    assert "generate 8" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    read = json.loads(CliRunner().invoke(main, [*args, "--json"]).stdout)
    assert read.keys() == asdict(result).keys()
    assert read["n_generate"] == 8
    assert read["time_line"] is None


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_command_shows_the_time_line(n_threads: int) -> None:
    args = ["bench", "--prompt-tokens", "16", "-n", "8", "-r", "1", "-t", str(n_threads), "--trace"]
    shown = CliRunner().invoke(main, args)
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    first = next(i for i, line in enumerate(lines) if line.startswith("  a token"))
    end = lines.index("", first)
    names = [line[:23].strip() for line in lines[first + 1 : end]]
    assert names[:3] == ["embedding", "norm", "queries, keys, values"]
    assert names[-3:] == ["between (C)", "Python", "sum"]
    percents = [float(line.split("%")[0].split()[-1]) for line in lines[first + 1 : end]]
    assert sum(percents[:-1]) == pytest.approx(percents[-1], abs=0.05 * len(percents))
    assert percents[-1] == 100
    words = " ".join(lines[end + 1 :])
    parts = [float(number) for number in re.findall(r"([-\d.]+)%", words)]
    assert sum(parts) == pytest.approx(100, abs=0.05 * len(parts))
    line = json.loads(CliRunner().invoke(main, [*args, "--json"]).stdout)["time_line"]
    assert [part["name"] for part in line["parts"]] == list(ops.PARTS)
    assert all(len(part["busy"]) in (0, n_threads) for part in line["parts"])
    assert line["limit"] + sum(line["loss"].values()) == pytest.approx(1)


def test_adapters_are_used_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Mixtral(n_ctx=24) as model:
        paths = {name: write_adapter(tmp_path / f"{name}.gguf", model.config, i) for i, name in enumerate("ab")}
    seen = []
    forward = Model.forward

    def noted(*arguments: Any, **more: Any) -> Any:
        seen.append([dict(adapted) for adapted in more["adapters"]] if more.get("adapters") else None)
        return forward(*arguments, **more)

    monkeypatch.setattr(Model, "forward", noted)
    args = ["bench", "--prompt-tokens", "16", "-n", "8", "-r", "1", "-t", "1"]
    adapters = ["--adapter", str(paths["a"]), "--adapter", f"x={paths['b']}:0.5"]
    shown = CliRunner().invoke(main, [*args, *adapters])
    assert shown.exit_code == 0, shown.stderr
    first, second, *_ = shown.stdout.splitlines()
    assert "median of 1" in first
    assert second in ("with the adapters a times 1 and x times 0.5", "with the adapters x times 0.5 and a times 1")
    assert len(seen) == 10
    for (adapted,) in seen:
        assert {adapter.source: scale for adapter, scale in adapted.items()} == {
            str(paths["a"]): 1,
            str(paths["b"]): 0.5,
        }
    read = json.loads(CliRunner().invoke(main, [*args, *adapters[:2], "--json"]).stdout)
    assert read["adapters"] == {"a": 1.0}
    assert json.loads(CliRunner().invoke(main, [*args, "--json"]).stdout)["adapters"] == {}


def test_a_prompt_beyond_the_model_s_context_names_the_options() -> None:
    shown = CliRunner().invoke(main, ["bench", "--prompt-tokens", "4000"])
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert "--prompt-tokens and -n of at most 2048 tokens together" in shown.stderr
    assert "found 4000 and 128" in shown.stderr
