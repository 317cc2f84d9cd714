"""GSM8K and BOLD: answers of text, by brute force."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pymixtral import ContextLengthError, InvalidArgumentError, Mixtral, UnsupportedError
from pymixtral.evaluation.evaluate import evaluate
from pymixtral.evaluation.tasks.bold import BOLD
from pymixtral.evaluation.tasks.gsm8k import GSM8K, majority, number_of
from pymixtral.evaluation.tasks.task import Table
from support import tasks as files


@pytest.fixture(scope="module")
def model() -> Iterator[Mixtral]:
    with Mixtral() as model:
        yield model


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("6*3=18.\n#### 18", "18"),
        ("#### 1,234.50 and 7", "1234.5"),
        ("He has $5 and then -3.", "-3"),
        ("So it is 12.", "12"),
        ("#### $70", "70"),
        ("3.0", "3"),
        ("100", "100"),
        ("none", None),
        ("", None),
        ("####", None),
    ],
)
def test_the_number_of_an_answer(text: str, number: str | None) -> None:
    assert number_of(text) == number


@pytest.mark.parametrize(
    ("numbers", "chosen"),
    [(["1", "2", "2"], "2"), (["1", "2"], "1"), ([None, None, "3"], "3"), ([None], None), (["2", "1", "1", "2"], "2")],
)
def test_most_answers_count(numbers: list[str | None], chosen: str | None) -> None:
    assert majority(numbers) == chosen


def test_gsm8k_marks_by_brute_force(tmp_path: Path) -> None:
    task = GSM8K(files.gsm8k(tmp_path), k=3)
    answers = [["#### 2", "#### 2", "9"], ["#### 4", "1", "1"], ["6", "7", "8"], ["", "", ""]]
    marks = [task.marks(item, answer) for item, answer in zip(task.items, answers, strict=True)]
    assert [mark["correct"] for mark in marks] == [1, 0, 1, 0]
    figures = task.figures(Table([""] * 4, marks))
    assert figures["accuracy"].value == 0.5
    assert figures["accuracy_of_one"].value == pytest.approx((2 / 3 + 1 / 3 + 1 / 3 + 0) / 4)


def test_gsm8k_draws_answers_that_do_not_depend_on_their_company(model: Mixtral, tmp_path: Path) -> None:
    task = GSM8K(files.gsm8k(tmp_path), shots=2, k=2, max_tokens=16)
    (all_of_them,) = evaluate(model, [task], progress=False)
    (one,) = evaluate(model, [task], limit=1, progress=False)
    assert one.answers[0] == all_of_them.answers[all_of_them.items.index(one.items[0])]
    item = task.items[0]
    prompt = task.prompt(item, 2)
    assert prompt.count("Question: ") == 3
    assert prompt.startswith("Question: A wolf eats 1 sheep a day. How many in 2 days?\nAnswer: 1*2 = 2.\n#### 2\n\n")
    assert prompt.endswith("\nAnswer:")
    options = {"temperature": 0.7, "top_p": 1.0, "seed": task.seed_of(item), "stop": ["Question:"], "max_tokens": 16}
    drawn = model.generate(prompt, n=2, **options)  # type: ignore[call-overload]
    assert all_of_them.answers[0] == [text.text for text in drawn.choices]
    assert len(set(map(tuple, all_of_them.answers))) > 1


def test_gsm8k_has_fewer_shots_where_the_context_is_short(tmp_path: Path) -> None:
    task = GSM8K(files.gsm8k(tmp_path), k=1, max_tokens=8)
    with Mixtral(n_ctx=128) as model:
        (result,) = evaluate(model, [task], limit=1, progress=False)
        (item,) = (item for item in task.items if item.id == result.items[0])
        fits = [i for i in range(9) if len(model.tokenize(task.prompt(item, i))) + 8 <= 128]
        assert 0 < max(fits) < 8
        text = model.generate(task.prompt(item, max(fits)), temperature=0, max_tokens=8, stop=["Question:"]).text
        assert result.answers == [[text]]
    with Mixtral(n_ctx=16) as model, pytest.raises(ContextLengthError, match=r"item test/\d of gsm8k"):
        evaluate(model, [task], progress=False)


def test_files_that_are_not_of_gsm8k_are_refused(tmp_path: Path) -> None:
    files.gsm8k(tmp_path)
    with pytest.raises(InvalidArgumentError, match="expected 9 problems, found 8"):
        GSM8K(tmp_path, shots=9).check()
    files.write_lines(tmp_path / "test.jsonl", [{"question": "a", "answer": "none"}])
    with pytest.raises(InvalidArgumentError, match="expected an answer with a number"):
        _ = GSM8K(tmp_path).items
    with pytest.raises(InvalidArgumentError, match=r"gsm8k\.k to be an integer from 1"):
        _ = GSM8K(tmp_path, k=0).items
    with pytest.raises(InvalidArgumentError, match=r"gsm8k\.temperature"):
        GSM8K(tmp_path, temperature=float("nan"))


def test_bold_leaves_groups_of_few_prompts_out(tmp_path: Path) -> None:
    task = BOLD(files.bold(tmp_path))
    assert {item.group for item in task.items} == {
        *("gender/actors", "gender/actresses"),
        *("religious_ideology/islam", "religious_ideology/sikhism"),
    }
    assert len(task.items) == 16


def test_bold_leaves_empty_prompts_out(tmp_path: Path) -> None:
    (tmp_path / "gender_prompt.json").write_text(json.dumps({"actors": {"a": ["", "He was ", " "]}}))
    (item,) = BOLD(tmp_path).items
    assert (item.id, item.fields) == ("gender/actors/a/1", {"prompt": "He was "})


def test_bold_means_and_spreads_by_brute_force(tmp_path: Path) -> None:
    task = BOLD(files.bold(tmp_path))
    values = np.random.default_rng(3).uniform(-1, 1, len(task.items))
    figures = task.figures(Table([i.group for i in task.items], [{"sentiment": float(value)} for value in values]))
    for domain in ("gender", "religious_ideology"):
        groups = sorted({item.group for item in task.items if item.group.startswith(domain)})
        means = [np.mean([v for v, item in zip(values, task.items, strict=True) if item.group == g]) for g in groups]
        assert figures[f"sentiment/{domain}"].value == pytest.approx(np.mean(means))
        assert figures[f"spread/{domain}"].value == pytest.approx(np.std(means))
        assert figures[f"sentiment/{groups[0]}"].value == pytest.approx(means[0])


def test_bold_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'pymixtral\[eval\]'"):
        BOLD(files.bold(tmp_path)).check()


def test_bold_asks_for_texts_and_gives_them_a_sentiment(model: Mixtral, tmp_path: Path) -> None:
    vader = pytest.importorskip("vaderSentiment.vaderSentiment").SentimentIntensityAnalyzer()
    task = BOLD(files.bold(tmp_path), max_tokens=12)
    (result,) = evaluate(model, [task], progress=False)
    item = task.items[1]
    prompt = item.fields["prompt"].rstrip()
    text = model.generate(prompt, max_tokens=12, temperature=0.1, top_p=0.9, seed=task.seed_of(item)).text
    assert result.answers[1] == [text]
    assert result.table.column("sentiment")[1] == vader.polarity_scores(prompt + text)["compound"]


@pytest.mark.parametrize("value", [[], {"actors": 3}, {"actors": {"a": [1]}}])
def test_files_that_are_not_of_bold_are_refused(tmp_path: Path, value: object) -> None:
    (tmp_path / "gender_prompt.json").write_text(json.dumps(value))
    with pytest.raises(InvalidArgumentError, match=r"gender_prompt\.json: expected"):
        _ = BOLD(tmp_path).items
