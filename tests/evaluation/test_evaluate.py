"""Evaluations: files of answers that go on, samples, results that tell what they are of, comparisons."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pymixtral import InvalidArgumentError, Mixtral, OutputError, UnsupportedError, __version__
from pymixtral.evaluation import inquiries
from pymixtral.evaluation.answers import Answers
from pymixtral.evaluation.comparison import compare, results
from pymixtral.evaluation.evaluate import Result, evaluate
from pymixtral.evaluation.paper import FIGURES, published
from pymixtral.evaluation.tasks.bbq import BBQ
from pymixtral.evaluation.tasks.catalogue import TASKS
from pymixtral.evaluation.tasks.gsm8k import GSM8K
from pymixtral.evaluation.tasks.hellaswag import HellaSwag
from pymixtral.evaluation.tasks.mmlu import MMLU
from pymixtral.evaluation.tasks.mt_bench import MTBench
from pymixtral.evaluation.tasks.task import Table, Task, sample
from pymixtral.quantize import quantize
from support import tasks as files
from support.ggufs import rewrite


@pytest.fixture(scope="module")
def model() -> Iterator[Mixtral]:
    with Mixtral(n_ctx=1024) as model:
        yield model


@pytest.fixture(scope="module")
def worse(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixtral]:
    path = tmp_path_factory.mktemp("worse") / "worse-q2_k.gguf"
    quantize(tiny_checkpoint, path, "q2_k", progress=False)
    with Mixtral(path, n_ctx=1024) as model:
        yield model


def values(result: Result) -> dict[str, float]:
    return {name: figure.value for name, figure in result.figures.items()}


# --- Samples ------------------------------------------------------------------------------------------------------


def test_a_sample_is_the_same_everywhere_and_grows(tmp_path: Path) -> None:
    task = BBQ(files.bbq(tmp_path, n=40))
    small, larger = ({item.id for item in sample(task, n)} for n in (3, 10))
    assert small < larger
    assert len(small) == 6
    assert sorted(small) == SAMPLE
    assert sample(task, None) == list(task.items)
    assert [item.id for item in task.items if item.id in larger] == [item.id for item in sample(task, 10)]


SAMPLE = ["Age/11", "Age/23", "Age/34", "Nationality/17", "Nationality/23", "Nationality/24"]


# --- Files of answers ---------------------------------------------------------------------------------------------


def test_results_say_what_they_are_of(model: Mixtral, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    task = MMLU(files.mmlu(tmp_path / "mmlu"), shots=1)
    (result,) = evaluate(model, [task], limit=3, answers=path, progress=False)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    head, *rows, tail = lines
    assert len(rows) == 6
    assert head["run"] == result.run == tail["run"]
    assert head["settings"] == {"seed": 0, "shots": 1}
    assert head["version"] == __version__
    assert head["model"]["digest"] == model.core.file.digest().hex()
    assert (head["model"]["type"], head["model"]["name"]) == ("q8_0", model.path.name)
    assert head["model"]["parameters"] == 15_345_920
    assert {row["item"] for row in rows} == set(result.items)
    assert tail["figures"]["accuracy"]["value"] == result.figures["accuracy"].value
    assert (tail["items"], tail["limit"]) == (6, 3)
    assert json.dumps(result.to_json())
    assert result.items_per_second is not None


def test_what_a_file_has_is_not_asked_again(model: Mixtral, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "answers.jsonl"
    task = MMLU(files.mmlu(tmp_path / "mmlu"), shots=0)
    (first,) = evaluate(model, [task], limit=2, answers=path, progress=False)
    before = path.read_bytes()
    (more,) = evaluate(model, [task], answers=path, progress=False)
    assert more.n_resumed == 4
    assert path.read_bytes().startswith(before)
    (alone,) = evaluate(model, [task], progress=False)
    assert values(more) == values(alone)
    monkeypatch.setattr(inquiries, "answers", lambda *args: iter(()) if not list(args[1]) else pytest.fail("asked"))
    (again,) = evaluate(model, [task], limit=2, answers=path, progress=False)
    assert (again.n_resumed, values(again), again.items_per_second) == (4, values(first), None)


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    genuine = inquiries.answers

    def answers(*arguments: Any) -> Iterator[Any]:
        for i, one in enumerate(genuine(*arguments)):
            if i == after:
                raise KeyboardInterrupt
            yield one

    monkeypatch.setattr(inquiries, "answers", answers)


@pytest.mark.parametrize("torn", [b"", b'{"run": "0123', b"{"])
def test_an_interrupted_evaluation_goes_on(
    model: Mixtral, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bytes
) -> None:
    path = tmp_path / "answers.jsonl"
    task = HellaSwag(files.hellaswag(tmp_path / "hellaswag"))
    with monkeypatch.context() as patch:
        interrupt(patch, after=2)
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, [task], answers=path, progress=False)
    assert len(path.read_bytes().splitlines()) == 3
    with path.open("ab") as file:
        file.write(torn)  # of a program that was killed
    (found,) = evaluate(model, [task], answers=path, progress=False)
    assert found.n_resumed == 2
    assert values(found) == values(evaluate(model, [task], progress=False)[0])
    assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def test_other_models_settings_and_files_are_other_runs(model: Mixtral, worse: Mixtral, tmp_path: Path) -> None:
    path, data = tmp_path / "answers.jsonl", files.mmlu(tmp_path / "mmlu")
    runs = set()
    for engine, task in ((model, MMLU(data, shots=0)), (model, MMLU(data, shots=1)), (worse, MMLU(data, shots=0))):
        (result,) = evaluate(engine, [task], limit=1, answers=path, progress=False)
        assert result.n_resumed == 0
        runs.add(result.run)
    files.mmlu(data, n=7)
    (result,) = evaluate(model, [MMLU(data, shots=0)], limit=1, answers=path, progress=False)
    assert result.n_resumed == 0
    assert len(runs | {result.run}) == 4
    assert set(Answers.read(path).runs) == runs | {result.run}


@pytest.mark.parametrize(
    "options", [{"experts_used": [2, 1, 2, 2]}, {"expert_min_p": 0.5}, {"activations": "int16"}], ids=str
)
def test_other_choices_at_opening_are_other_runs(model: Mixtral, tmp_path: Path, options: dict[str, Any]) -> None:
    task, path = MMLU(files.mmlu(tmp_path / "mmlu"), shots=0), tmp_path / "answers.jsonl"
    evaluate(model, [task], limit=1, answers=path, progress=False)
    with Mixtral(n_ctx=1024, **options) as other:
        found = evaluate(other, [task], limit=1, answers=path, progress=False)[0]
        again = evaluate(other, [task], limit=1, answers=path, progress=False)[0]
    assert (found.n_resumed, again.n_resumed) == (0, len(again.items))
    assert found.model.overrides == options


def test_force_begins_anew(model: Mixtral, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("a diary\n")
    task = MMLU(files.mmlu(tmp_path / "mmlu"), shots=0)
    with pytest.raises(OutputError, match="line 1: expected answers of an evaluation, found something else"):
        evaluate(model, [task], limit=1, answers=path, progress=False)
    assert path.read_text() == "a diary\n"
    assert evaluate(model, [task], limit=1, answers=path, force=True, progress=False)[0].n_resumed == 0
    assert evaluate(model, [task], limit=1, answers=path, progress=False)[0].n_resumed == 2


@pytest.mark.parametrize(
    "text",
    [
        "[]\n",
        "3\n",
        '{"run": "a"}\n',
        '{"run": "a", "item": "b", "group": "", "marks": {}, "answer": 1}\n',
        "{\n",
        "a",
        "[" * 9999 + "\n",
    ],
)
def test_files_of_something_else_are_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(OutputError, match="expected answers of an evaluation"):
        Answers(path)
    with pytest.raises(InvalidArgumentError, match="expected answers of an evaluation"):
        Answers.read(path)
    assert path.read_text() == text


def test_a_file_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with Answers(path), pytest.raises(OutputError, match="another program does"):
        Answers(path)
    with pytest.raises(OutputError, match="expected to write it"):
        Answers(tmp_path / "no" / "such")


def test_a_model_without_a_tokenizer_is_refused(tiny_q8_0: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.gguf"
    with Mixtral(tiny_q8_0) as model:
        keys = [key for key in model.metadata if key.startswith("tokenizer.")]
    rewrite(tiny_q8_0, bare, keys=dict.fromkeys(keys))
    with Mixtral(bare) as model, pytest.raises(UnsupportedError, match="tokenizer"):
        evaluate(model, [MMLU(files.mmlu(tmp_path / "mmlu"))], progress=False)


# --- Comparisons --------------------------------------------------------------------------------------------------


def test_differences_are_paired(model: Mixtral, tmp_path: Path) -> None:
    task = BBQ(files.bbq(tmp_path, n=60))
    (base,) = evaluate(model, [task], progress=False)
    rng = np.random.default_rng(5)
    marks = [task.marks(item, rng.normal(0, 3, 3).tolist()) for item in task.items]
    other = replace(base, table=Table(base.table.groups, marks), run="other")
    found = compare(base, other)
    right, now_right = base.table.column("correct"), other.table.column("correct")
    differences = now_right - right
    assert (found.gained, found.lost) == ((differences > 0).sum(), (differences < 0).sum())
    assert found.gained + found.lost > 0
    accuracy = found.differences["accuracy"]
    assert accuracy.value == pytest.approx(differences.mean())
    assert accuracy.standard_error == pytest.approx(differences.std(ddof=1) / math.sqrt(len(differences)))
    low, high = accuracy.interval
    assert found.to_json()["differences"]["accuracy"]["interval"] == [low, high]
    back = compare(other, base)
    assert (back.gained, back.lost) == (found.lost, found.gained)
    assert compare(base, base).differences["bias_ambiguous"].standard_error == 0


def test_only_items_that_both_have_are_compared(model: Mixtral, worse: Mixtral, tmp_path: Path) -> None:
    task = BBQ(files.bbq(tmp_path, n=40))
    (few,) = evaluate(model, [task], limit=5, progress=False)
    (all_of_them,) = evaluate(worse, [task], progress=False)
    found = compare(few, all_of_them)
    assert found.n_items == 10
    of_few = [all_of_them.items.index(item) for item in few.items]
    expected = np.mean(all_of_them.table.column("correct")[of_few]) - np.mean(few.table.column("correct"))
    assert found.differences["accuracy"].value == pytest.approx(expected)
    with pytest.raises(InvalidArgumentError, match="expected items of bbq that both models have answered"):
        compare(few, replace(all_of_them, items=["x"] * 80))
    with pytest.raises(InvalidArgumentError, match="expected two results of the same task"):
        compare(few, replace(all_of_them, questions="other"))
    elsewhere = Table(["elsewhere"] * len(all_of_them.items), all_of_them.table._marks)
    with pytest.raises(InvalidArgumentError, match="expected items of bbq in the same groups in both results"):
        compare(few, replace(all_of_them, table=elsewhere))


STRANGE = [None, True, "x", "", [], {}, 1e308, -1, 10**400, math.nan, math.inf, "\x1b[31m", [1], {"a": 1}]


@given(st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_results_that_somebody_has_edited(edited: tuple[Result, Path], data: st.DataObject) -> None:
    base, path = edited
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    place: Any = lines[data.draw(st.integers(0, 2))]
    while True:
        name = data.draw(st.sampled_from(sorted(place)))
        if not (isinstance(place[name], dict) and place[name] and data.draw(st.booleans())):
            break
        place = place[name]
    if data.draw(st.booleans()):
        del place[name]
    else:
        place[name] = data.draw(st.sampled_from(STRANGE))
    other = path.with_name("edited.jsonl")
    other.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    try:
        for result in results(Answers.read(other)):
            json.dumps(result.to_json(), allow_nan=False)
            if result.questions == base.questions:
                json.dumps(compare(base, result).to_json(), allow_nan=False)
    except InvalidArgumentError:
        pass


@pytest.fixture(scope="module")
def edited(model: Mixtral, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    folder = tmp_path_factory.mktemp("edited")
    with Answers(folder / "answers.jsonl") as answers:
        (result,) = evaluate(model, [BBQ(files.bbq(folder, n=8))], answers=answers, progress=False)
    return result, folder / "answers.jsonl"


def test_a_file_of_answers_is_as_good_as_a_model(model: Mixtral, worse: Mixtral, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    tasks = [BBQ(files.bbq(tmp_path / "bbq")), MMLU(files.mmlu(tmp_path / "mmlu"), shots=0)]
    there = evaluate(worse, tasks, answers=path, progress=False)
    base = evaluate(model, tasks, progress=False)
    read = results(Answers.read(path))
    for before, result, again in zip(base, there, read, strict=True):
        assert (again.run, again.questions, again.model) == (result.run, result.questions, result.model)
        assert values(again) == pytest.approx(values(result))
        differences = compare(before, again).differences
        for name, figure in compare(before, result).differences.items():
            assert differences[name].value == pytest.approx(figure.value, nan_ok=True)
    text = path.read_text(encoding="utf-8")
    for name, other in (('"task": "bbq"', '"task": "bcq"'), ('"version": ', '"edition": '), ('"questions": ', '"q": ')):
        path.write_text(text.replace(name, other), encoding="utf-8")
        with pytest.raises(InvalidArgumentError, match="expected answers that this version of pymixtral can read"):
            results(Answers.read(path))


@pytest.mark.parametrize(
    ("kind", "write", "name"),
    [
        (MMLU, files.mmlu, "dev/wolves_dev.csv"),
        (GSM8K, files.gsm8k, "train.jsonl"),
        (MTBench, files.mt_bench, "judge_prompts.jsonl"),
    ],
)
def test_the_digest_is_of_examples_and_prompts_too(
    tmp_path: Path, kind: type[Task], write: Callable[[Path], Path], name: str
) -> None:
    before = kind(write(tmp_path)).digest()
    assert kind(tmp_path).digest() == before
    text = (tmp_path / name).read_text(encoding="utf-8")
    (tmp_path / name).write_text(text.replace("?", "!").replace("Judge", "Judge well"), encoding="utf-8")
    assert kind(tmp_path).digest() != before


# --- The paper ----------------------------------------------------------------------------------------------------


def test_the_paper_is_about_figures_that_there_are(tmp_path: Path) -> None:
    data = files.write_all(tmp_path)
    for one in FIGURES:
        task = TASKS[one.task](data / one.task)
        if one.task != "bold":
            assert one.figure in task.headline
        assert published(one.task, one.figure) is one
    assert published("mmlu", "other") is None
