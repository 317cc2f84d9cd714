"""HumanEval and MBPP: prompts, programs, pass@k."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from pymixtral import InvalidArgumentError, Mixtral
from pymixtral.evaluation import sandbox
from pymixtral.evaluation.evaluate import evaluate
from pymixtral.evaluation.tasks.programs import MBPP, HumanEval, pass_at
from pymixtral.evaluation.tasks.sources import json_of
from pymixtral.evaluation.tasks.task import Table
from support import tasks as files

needs_sandbox = pytest.mark.skipif(bool(sandbox._problem()), reason=f"no sandbox here: {sandbox._problem()}")


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_all_choices_of_k(n: int) -> None:
    for right, k in itertools.product(range(n + 1), range(1, n + 1)):
        choices = list(itertools.combinations([True] * right + [False] * (n - right), k))
        assert pass_at(k, n, right) == pytest.approx(np.mean([any(choice) for choice in choices]))


@needs_sandbox
def test_right_programs_pass_and_wrong_ones_do_not(tmp_path: Path) -> None:
    task = HumanEval(files.humaneval(tmp_path), n=2)
    marks = [task.marks(item, [f"    return x + {i}\n", "    return x - 7\n"]) for i, item in enumerate(task.items)]
    assert [(mark["correct"], mark["right"], mark["n"]) for mark in marks] == [(1, 1, 2)] * 2
    assert all(str(mark["failure"]).startswith("AssertionError") for mark in marks)
    figures = task.figures(Table(["", ""], marks))
    assert {name: figure.value for name, figure in figures.items()} == {"pass@1": 0.5}

    task = MBPP(files.mbpp(tmp_path / "mbpp"), n=1)
    tasks = json_of(tmp_path / "mbpp" / "sanitized-mbpp.json")[3:]
    assert [item.id for item in task.items] == ["mbpp/5", "mbpp/6"]
    for item, one in zip(task.items, tasks, strict=True):
        assert task.marks(item, [one["code"]])["correct"] == 1
        assert task.marks(item, ["def times(x):\n    return 0"])["correct"] == 0


def test_the_prompts(tmp_path: Path) -> None:
    task = HumanEval(files.humaneval(tmp_path))
    assert task.prompt(task.items[1]) == 'def add_1(x):\n    """Add 1 to x."""\n'
    assert task.program(task.items[1], "    return x") == (
        'def add_1(x):\n    """Add 1 to x."""\n    return x\ndef check(candidate):\n    assert candidate(1) == 2\n'
        "    assert candidate(-1) == 0\n\ncheck(add_1)"
    )
    mbpp = MBPP(files.mbpp(tmp_path / "mbpp"))
    question = (
        "You are an expert Python programmer, and here is your task: Write a function that multiplies by {i}. Your "
        "code should pass these tests:\n\nassert times(2) == {n}\nassert times(0) == 0\nassert math.pi > times(0)\n"
        "[BEGIN]\n"
    )
    shots = "".join(question.format(i=i, n=2 * i) + f"def times(x):\n    return {i} * x\n[DONE]\n\n" for i in (2, 3, 4))
    assert mbpp.prompt(mbpp.items[0]) == shots + question.format(i=5, n=10)


@needs_sandbox
def test_a_model_writes_programs_that_run(tmp_path: Path) -> None:
    task = HumanEval(files.humaneval(tmp_path), n=2, max_tokens=12, allow_code_execution=True)
    with Mixtral() as model:
        (result,) = evaluate(model, [task], progress=False)
        item = task.items[0]
        options = {"temperature": 0.8, "top_p": 0.95, "seed": task.seed_of(item), "stop": list(task.stops)}
        texts = model.generate(task.prompt(item), n=2, max_tokens=12, **options)  # type: ignore[call-overload]
    assert result.answers[result.items.index(item.id)] == [text.text for text in texts.choices]
    assert result.figures["pass@1"].value == 0  # a teller of tales


def test_nothing_runs_that_was_not_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_launched", lambda *_: pytest.fail("a program ran"))
    with Mixtral() as model:
        for task in (HumanEval(files.humaneval(tmp_path)), MBPP(files.mbpp(tmp_path / "mbpp"))):
            with pytest.raises(InvalidArgumentError, match="allow_code_execution=True"):
                evaluate(model, [task], progress=False)


def test_files_that_are_not_of_mbpp_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mbpp.jsonl"
    task = {"task_id": 2, "text": "a", "code": "b", "test_list": ["c"]}
    files.write_lines(path, [task])
    with pytest.raises(InvalidArgumentError, match=r"expected the tasks 2, 3, 4 as examples, found no task 3"):
        _ = MBPP(tmp_path).items
    files.write_lines(path, [task | {"text": None}])
    with pytest.raises(InvalidArgumentError, match='expected "prompt" or "text"'):
        _ = MBPP(tmp_path).items
    files.write_lines(path, [task | {"test_list": [1]}])
    with pytest.raises(InvalidArgumentError, match="expected tests of text"):
        _ = MBPP(tmp_path).items
