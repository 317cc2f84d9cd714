"""MT-Bench: conversations, what the judge reads, scores and pairs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pymixtral import InvalidArgumentError, Mixtral, demo_chat_path
from pymixtral.evaluation.answers import Answers
from pymixtral.evaluation.evaluate import evaluate
from pymixtral.evaluation.pairs import judge_pairs
from pymixtral.evaluation.tasks.mt_bench import MTBench, score_of, verdict_of
from support import tasks as files
from support.judge import judging


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Good. Rating: [[7]]", 7),
        ("[[8.5]] and [[3]]", 8.5),
        ("Rating: [6]", 6),
        ("[[70]]", 10),
        ("[[0]]", 1),
        ("Rating: 5", None),
        ("", None),
    ],
)
def test_scores(text: str, score: float | None) -> None:
    assert score_of(text) == score


def test_verdicts() -> None:
    found = [verdict_of(text) for text in ("[[A]]", "so [[B]] and [[A]]", "[[C]]", "A", "[[D]]")]
    assert found == ["A", "B", "C", "", ""]


def test_what_the_judge_reads(tmp_path: Path) -> None:
    task = MTBench(files.mt_bench(tmp_path))
    writing, math = task.items
    answer = {"answer": ["one {question_2}", "two"]}
    system, user = task.messages("single", writing, 1, answer)
    assert system == {"role": "system", "content": "Judge single-v1."}
    assert user == {"role": "user", "content": "Q: First {question} of writing?\nA: one {question_2}"}
    assert task.messages("single", writing, 2, answer)[1]["content"] == (
        "1: First {question} of writing? one {question_2}\n2: And 0? two"
    )
    assert task.messages("single", math, 2, answer)[1]["content"].startswith("R: Four. Five.\n1: First ")
    pair = {"answer_a": ["a1", "a2"], "answer_b": ["b1", "b2"]}
    assert task.messages("pair", math, 2, pair)[0]["content"] == "Judge pair-math-v1-multi-turn."
    assert task.messages("pair", writing, 1, pair)[1]["content"].endswith("\nA: a1\nB: b1")
    assert task.messages("pair", writing, 2, pair)[1]["content"] == "And 0?\nA: a1 a2\nB: b1 b2"


def test_conversations_are_judged(tmp_path: Path) -> None:
    data = files.mt_bench(tmp_path)

    def opinion(asked: dict[str, Any]) -> str:
        name = asked["messages"][0]["content"]
        return {"Judge single-v1.": "[[6]]", "Judge single-math-v1-multi-turn.": "none"}.get(name, "[[9]]")

    with judging(opinion) as (url, asked), Mixtral(demo_chat_path(), n_ctx=512) as model:
        task = MTBench(data, max_tokens=10, judge_model="wise", judge_url=url)
        (result,) = evaluate(model, [task], progress=False)
        for item, answer in zip(task.items, result.answers, strict=True):
            temperature = {"writing": 0.7, "math": 0.0}[item.group]
            messages = [{"role": "user", "content": item.fields["turns"][0]}]
            options: Any = {"max_tokens": 10, "temperature": temperature, "seed": task.seed_of(item)}
            first = model.chat(messages, **options)
            messages += [first.message, {"role": "user", "content": item.fields["turns"][1]}]
            assert answer == [first.content, model.chat(messages, **options).content]
    assert len(asked) == 4
    values = {name: figure.value for name, figure in result.figures.items()}
    assert values["score/writing"] == 7.5
    assert values["score/math"] == 9  # the second judgement has no score
    assert (values["score_turn_1"], values["score_turn_2"], values["score"]) == (7.5, 9, 8.25)
    assert result.task.settings["judge_model"] == "wise"
    assert "judge_url" not in result.task.settings


def test_a_second_question_without_room_has_no_answer(tmp_path: Path) -> None:
    data = files.mt_bench(tmp_path)
    long = {"question_id": 82, "category": "writing", "turns": ["Who?", "Why? " * 200]}
    files.write_lines(data / "question.jsonl", [long])
    with judging(lambda _: "[[1]]") as (url, _), Mixtral(demo_chat_path(), n_ctx=128) as model:
        task = MTBench(data, max_tokens=4, judge_model="wise", judge_url=url)
        (result,) = evaluate(model, [task], progress=False)
    assert result.answers[0][1] == ""


def test_pairs_are_asked_in_both_orders(tmp_path: Path) -> None:
    data = files.mt_bench(tmp_path / "data")

    def opinion(asked: dict[str, Any]) -> str:
        """In writing the one with the longer first answer is better; in mathematics the first one."""
        system, user = (message["content"] for message in asked["messages"])
        if "single" in system:
            return "[[5]]"
        if "math" in system:
            return "[[A]]"
        a, b = (len(found) for found in re.findall(r"^[AB]: (.*)", user, re.M))
        return "[[A]]" if a > b else "[[B]]"

    def model_of(n: int, url: str) -> MTBench:
        return MTBench(data, max_tokens=10, judge_model="wise", judge_url=url, seed=n)

    path = tmp_path / "answers.jsonl"
    with judging(opinion) as (url, asked), Mixtral(demo_chat_path(), n_ctx=512) as model, Answers(path) as kept:
        task = model_of(0, url)
        (base,) = evaluate(model, [task], answers=kept, progress=False)
        (other,) = evaluate(model, [model_of(1, url)], answers=kept, progress=False)
        for result, text in ((base, "short"), (other, "much longer")):
            for answer in result.answers:
                answer[:] = [text, text]
        found = judge_pairs(base, other, kept, progress=False)
        assert (found.n_items, found.win_rate.value) == (2, 0.75)  # one won, one tied
        n = len(asked)
        again = judge_pairs(base, other, kept, progress=False)
        assert (again.win_rate.value, len(asked)) == (0.75, n)
        assert judge_pairs(other, base, kept, progress=False).win_rate.value == 0.25


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    data = files.mt_bench(tmp_path)
    with pytest.raises(InvalidArgumentError, match="expected a judge for mt_bench"):
        MTBench(data).check()
    files.write_lines(data / "judge_prompts.jsonl", [{"name": "a", "system_prompt": "b", "prompt_template": "c"}])
    task = MTBench(data)
    with pytest.raises(InvalidArgumentError, match="expected the prompt 'single-v1'"):
        task.messages("single", task.items[0], 1, {"answer": ["", ""]})
    files.write_lines(
        data / "reference_answer" / "gpt-4.jsonl", [{"question_id": 1, "choices": [{"turns": ["a", "b"]}]}]
    )
    with pytest.raises(InvalidArgumentError, match="expected a reference answer to question 81"):
        _ = MTBench(data).items
    files.write_lines(data / "reference_answer" / "gpt-4.jsonl", [{"question_id": 81, "choices": []}])
    with pytest.raises(InvalidArgumentError, match="question 81: expected answers to two turns"):
        _ = MTBench(data).items
