"""The command `pymixtral evaluate`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pymixtral import Mixtral, demo_chat_path
from pymixtral.evaluation import inquiries, sandbox
from pymixtral.evaluation.evaluate import evaluate
from pymixtral.evaluation.tasks.mmlu import MMLU
from support import tasks as files
from support.command_line import refused, run
from support.judge import judging


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files.write_all(tmp_path_factory.mktemp("data"))


def test_people_read_figures_with_errors_beside_those_of_the_paper(tiny_q8_0: Path, data: Path) -> None:
    result = run("evaluate", tiny_q8_0, "--tasks", "mmlu,hellaswag", "--data", data)
    assert (result.exit_code, result.stderr) == (0, "")
    with Mixtral(tiny_q8_0) as model:
        (expected,) = evaluate(model, [MMLU(data / "mmlu")], progress=False)
    accuracy = expected.figures["accuracy"]
    assert f"accuracy  {accuracy.value:.4f}  {accuracy.standard_error:.4f}     12         0.706" in result.stdout
    assert re.match(
        rf"mmlu: {tiny_q8_0.name}, q8_0, 8\.\d\d bits per weight\n12 items; seed 0, shots 5; ", result.stdout
    )
    assert "Mixtral 8x7B as arXiv 2401.04088 has it: 5-shot, table 2." in result.stdout
    assert "accuracy/wolves" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "accuracy/wolves" in run("evaluate", tiny_q8_0, "--tasks", "mmlu", "--data", data, "--groups").stdout


def test_one_item_is_no_items(tiny_q8_0: Path, data: Path) -> None:
    """One question is all that a limit of one for each group leaves of a task without groups."""
    shown = run("evaluate", tiny_q8_0, "--tasks", "hellaswag", "--data", data, "--limit", 1).stdout
    assert re.search(r"^1 item; ", shown, re.MULTILINE)


def test_programs_read_json_and_settings_reach_the_task(tiny_q8_0: Path, data: Path) -> None:
    arguments = ["--tasks", "mmlu", "--data", data, "--limit", 4, "--setting", "mmlu.shots=2", "-c", 1024, "-t", 1]
    (found,) = json.loads(run("evaluate", "-m", tiny_q8_0, *arguments, "--json").stdout)["results"]
    with Mixtral(tiny_q8_0, n_ctx=1024) as model:
        (result,) = evaluate(model, [MMLU(data / "mmlu", shots=2)], limit=4, progress=False)
    expected = json.loads(json.dumps(result.to_json()))
    timed = ("seconds", "items_per_second")
    assert {k: v for k, v in found.items() if k not in timed} == {k: v for k, v in expected.items() if k not in timed}
    assert found["settings"]["shots"] == 2


def test_models_are_compared(tiny_q8_0: Path, tiny_f16: Path, tmp_path: Path, data: Path) -> None:
    there = tmp_path / "there.jsonl"
    arguments = ["--tasks", "bbq,hellaswag", "--data", data, "--limit", 3]
    assert run("evaluate", tiny_q8_0, *arguments, "-o", there).exit_code == 0
    shown = run("evaluate", tiny_f16, *arguments, "--compare", tiny_q8_0).stdout
    assert f"bbq: {tiny_q8_0.name} minus {tiny_f16.name}\n6 items that both answered; right in" in shown
    found = [
        json.loads(run("evaluate", tiny_f16, *arguments, "--compare", other, "--json").stdout)["comparisons"]
        for other in (tiny_q8_0, there)
    ]
    assert found[0] == found[1]
    assert [one["task"] for one in found[0]] == ["bbq", "hellaswag"]
    accuracy = found[0][0]["differences"]["accuracy"]
    low, high = accuracy["interval"]
    assert low <= accuracy["value"] <= high
    refused(run("evaluate", tiny_f16, *arguments, "-o", there, "--compare", there), "read or written otherwise")


def test_one_file_that_answers_in_two_ways_is_named_twice(tiny_q8_0: Path, data: Path, tmp_path: Path) -> None:
    there, name = tmp_path / "there.jsonl", tiny_q8_0.name
    arguments = ["evaluate", tiny_q8_0, "--tasks", "hellaswag", "--data", data, "--limit", 1]
    run(*arguments, "-o", there)
    shown = run(*arguments, "--activations", "int16", "--experts-used", "1", "--compare", there).stdout
    words, chosen = " ".join(shown.split()), f"{name} (llama.expert_used_count 1, activations int16)"
    assert f"hellaswag: {name} minus {chosen} 1 item that" in words
    assert f"hellaswag: {chosen}, q8_0, 8." in words
    assert max(map(len, shown.splitlines())) <= 80


def test_the_command_goes_on_after_an_interrupt(
    tiny_q8_0: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "answers.jsonl"
    arguments = ["evaluate", tiny_q8_0, "--tasks", "hellaswag", "--data", data]
    genuine = inquiries.answers

    def interrupted(*given: Any) -> Iterator[Any]:
        answers = genuine(*given)
        yield next(answers)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(inquiries, "answers", interrupted)
        result = run(*arguments, "-o", output)
        assert (result.exit_code, result.stdout) == (130, "")
        assert result.stderr == f"{output} has the answers so far; the same command goes on from there.\n"
        assert run(*arguments).exit_code in (1, 130)  # click's runner tells an abort by 1
    (found,) = json.loads(run(*arguments, "-o", output, "--json").stdout)["results"]
    assert (found["items"], found["resumed"]) == (6, 1)
    (again,) = json.loads(run(*arguments, "-o", output, "--json").stdout)["results"]
    assert (again["resumed"], again["figures"], again["items_per_second"]) == (6, found["figures"], None)
    (anew,) = json.loads(run(*arguments, "-o", output, "--force", "--json").stdout)["results"]
    assert (anew["resumed"], anew["figures"]) == (0, found["figures"])


def test_programs_run_only_if_they_are_allowed(tiny_q8_0: Path, data: Path) -> None:
    arguments = ["evaluate", tiny_q8_0, "--tasks", "humaneval", "--data", data, "--setting", "humaneval.max_tokens=8"]
    refused(run(*arguments), "as humaneval does", "they run in a sandbox with --allow-code-execution")
    if not sandbox._problem():
        result = run(*arguments, "--allow-code-execution", "--json")
        assert json.loads(result.stdout)["results"][0]["figures"]["pass@1"]["value"] == 0


def test_a_judge_is_asked_for_scores_and_pairs(data: Path) -> None:
    chat = demo_chat_path()
    arguments = ["evaluate", chat, "--tasks", "mt_bench", "--data", data, "-c", 512]
    arguments += ["--setting", "mt_bench.max_tokens=8"]
    refused(run(*arguments), "expected a judge for mt_bench", "with --judge and --judge-model")
    with judging(lambda asked: "[[C]]" if "pair" in asked["messages"][0]["content"] else "[[4]]") as (url, asked):
        arguments += ["--judge", url, "--judge-model", "wise", "--compare", chat, "--judge-pairs"]
        result = run(*arguments, "--experts-used", 1, "--json")  # the same model is not compared with itself
        assert json.loads(result.stdout)["comparisons"] == []
        assert [one["figures"]["score"]["value"] for one in json.loads(result.stdout)["results"]] == [4, 4]
        assert {one["model"] for one in asked} == {"wise"}


def test_pairs_are_shown(data: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", demo_chat_path(), "--tasks", "mt_bench", "--data", data, "-c", 512]
    arguments += ["--setting", "mt_bench.max_tokens=8", "--judge-model", "wise"]
    there = tmp_path / "there.jsonl"
    with judging(lambda asked: "[[B]]" if "pair" in asked["messages"][0]["content"] else "[[4]]") as (url, _):
        assert run(*arguments, "--judge", url, "--experts-used", 1, "-o", there).exit_code == 0
        shown = run(*arguments, "--judge", url, "--compare", there, "--judge-pairs")
        assert shown.exit_code == 0, shown.stderr
        assert "mt_bench in pairs: " in shown.stdout
        assert "win_rate  0.5000" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--tasks"),
        (["--tasks", "mmlu,nothing"], "expected tasks of mmlu, hellaswag"),
        (["--tasks", ""], "found ''"),
        (["--tasks", "mmlu", "--setting", "shots=1"], "expected TASK.NAME=VALUE"),
        (["--tasks", "mmlu", "--setting", "mmlu.shots=x"], "expected a number for mmlu.shots, found 'x'"),
        (["--tasks", "mmlu", "--setting", "mmlu.shot=1"], "did you mean 'shots'?"),
        (["--tasks", "mmlu", "--setting", "mmlu.shots=-1"], "expected mmlu.shots to be an integer from 0"),
        (["--tasks", "mmlu", "--setting", "mmlu.shots=1.5"], "expected mmlu.shots to be an integer"),
        (["--tasks", "mmlu", "--limit", "0"], "--limit"),
        (
            ["--tasks", "mmlu", "--compare", "missing"],
            "missing: expected a model or a file of answers, found an error",
        ),
        (["--tasks", "mmlu", "--compare", __file__], "line 1: expected answers of an evaluation"),
        (["--tasks", "mmlu", "-o", "no/such/file"], "no/such"),
        (["--tasks", "mmlu", "-o", __file__], "line 1: expected answers of an evaluation"),
        (["--tasks", "mmlu", "--data", "nowhere"], "nowhere/mmlu: expected a file"),
        (["--tasks", "gsm8k", "--setting", "gsm8k.k=129"], "expected gsm8k.k to be an integer from 1 to 128"),
    ],
)
def test_wrong_input_is_one_line(tiny_q8_0: Path, data: Path, arguments: list[str], words: str) -> None:
    refused(run("evaluate", tiny_q8_0, *(["--data", data] if "--data" not in arguments else []), *arguments), words)
