"""Tiny files of tasks, in the forms in which the real ones are published."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SUBJECTS = ("high_school_tales", "wolves")


def write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def mmlu_row(subject: str, i: int) -> list[object]:
    size = "big" if i % 2 else "small"
    question = f' Who is number {i} of {subject}, "the {size} one"?\n'
    return [question, "a king", "a wolf", "a fox, or two", f"{i}", i % 4]


def mmlu(folder: Path, *, header: bool = True, letters: bool = False, n: int = 6) -> Path:
    for subject in SUBJECTS:
        for split, count in (("dev", 5), ("test", n)):
            rows = [mmlu_row(subject, i + (100 if split == "dev" else 0)) for i in range(count)]
            if letters:
                rows = [[*row[:-1], "ABCD"[int(str(row[-1]))]] for row in rows]
            head = [["question", "choice0", "choice1", "choice2", "choice3", "answer"]] if header else []
            write_csv(folder / split / f"{subject}_{split}.csv", [*head, *rows])
    return folder


def hellaswag(folder: Path, n: int = 6) -> Path:
    write_lines(
        folder / "hellaswag_val.jsonl",
        [
            {
                "activity_label": "Telling tales",
                "ctx_a": f"[header] The king had {i} sons.",
                "ctx_b": "the youngest",
                "endings": [
                    "went into the  wood.",
                    "[title] ate a telephone.",
                    "was a wolf.",
                    "slept. [x] He woke.",
                ],
                "label": str(i % 4),
            }
            for i in range(n)
        ],
    )
    return folder


def gsm8k(folder: Path, n: int = 4) -> Path:
    for split, count in (("train", 8), ("test", n)):
        write_lines(
            folder / f"{split}.jsonl",
            [
                {
                    "question": f"A wolf eats {i} sheep a day. How many in 2 days?",
                    "answer": f"{i}*2 = {2 * i}.\n#### {2 * i:,}",
                }
                for i in range(1, count + 1)
            ],
        )
    return folder


def humaneval(folder: Path, n: int = 2) -> Path:
    write_lines(
        folder / "HumanEval.jsonl",
        [
            {
                "task_id": f"HumanEval/{i}",
                "prompt": f'def add_{i}(x):\n    """Add {i} to x."""\n',
                "canonical_solution": f"    return x + {i}\n",
                "test": f"def check(candidate):\n    assert candidate(1) == {1 + i}\n    assert candidate(-{i}) == 0\n",
                "entry_point": f"add_{i}",
            }
            for i in range(n)
        ],
    )
    return folder


def mbpp(folder: Path, n: int = 5) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [
        {
            "task_id": i,
            "prompt": f"Write a function that multiplies by {i}.",
            "code": f"def times(x):\n    return {i} * x",
            "test_imports": ["import math"],
            "test_list": [f"assert times(2) == {2 * i}", f"assert times(0) == {0 * i}", "assert math.pi > times(0)"],
        }
        for i in range(2, 2 + n)
    ]
    (folder / "sanitized-mbpp.json").write_text(json.dumps(tasks, indent=2), encoding="utf-8")
    return folder


def bbq_item(i: int, *, ambiguous: bool, negative: bool, nationality: bool = False) -> dict[str, Any]:
    """Answer 0 is the stereotyped group, 1 the other one, 2 unknown."""
    return {
        "example_id": i,
        "question_index": "1",
        "question_polarity": "neg" if negative else "nonneg",
        "context_condition": "ambig" if ambiguous else "disambig",
        "category": "Nationality" if nationality else "Age",
        "answer_info": {
            "ans0": ["British", "Europe"] if nationality else ["grandfather", "old"],
            "ans1": ["Japanese", "AsiaPacific"] if nationality else ["grandson", "nonOld"],
            "ans2": ["Can't answer", "unknown"],
        },
        "additional_metadata": {"stereotyped_groups": ["British"] if nationality else ["old"], "version": "a"},
        "context": f"I saw number {i} in the wood.",
        "question": "Who was lost?" if negative else "Who knew the way?",
        "ans0": "The British one" if nationality else "The grandfather",
        "ans1": "The Japanese one" if nationality else "The grandson",
        "ans2": "Can't answer",
        "label": 2 if ambiguous else i % 2,
    }


def bbq(folder: Path, n: int = 8) -> Path:
    for nationality, name in ((False, "Age"), (True, "Nationality")):
        write_lines(
            folder / f"{name}.jsonl",
            [bbq_item(i, ambiguous=i % 4 < 2, negative=i % 2 == 0, nationality=nationality) for i in range(n)],
        )
    return folder


def bold(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    domains = {"gender": ("actors", "actresses"), "religious_ideology": ("islam", "hinduism", "sikhism")}
    for domain, groups in domains.items():
        prompts = {
            group: {f"{group}_{i}": [f"The {group} number {i} was ", f"Once {group} "] for i in range(2)}
            for group in groups
        }
        (folder / f"{domain}_prompt.json").write_text(json.dumps(prompts), encoding="utf-8")
    return folder


def mt_bench(folder: Path) -> Path:
    categories = ("writing", "math")
    write_lines(
        folder / "question.jsonl",
        [
            {"question_id": 80 + i, "category": category, "turns": [f"First {{question}} of {category}?", f"And {i}?"]}
            for i, category in enumerate(categories)
        ],
    )
    write_lines(
        folder / "reference_answer" / "gpt-4.jsonl",
        [{"question_id": 81, "choices": [{"index": 0, "turns": ["Four.", "Five."]}]}],
    )
    single, both = "Q: {question}\nA: {answer}", "1: {question_1} {answer_1}\n2: {question_2} {answer_2}"
    pair = "Q: {question}\nA: {answer_a}\nB: {answer_b}"
    pairs = "{question_2}\nA: {answer_a_1} {answer_a_2}\nB: {answer_b_1} {answer_b_2}"
    reference, references = "R: {ref_answer_1}\n", "R: {ref_answer_1} {ref_answer_2}\n"
    prompts = {
        "single-v1": single,
        "single-v1-multi-turn": both,
        "single-math-v1": reference + single,
        "single-math-v1-multi-turn": references + both,
        "pair-v2": pair,
        "pair-v2-multi-turn": pairs,
        "pair-math-v1": reference + pair,
        "pair-math-v1-multi-turn": references + pairs,
    }
    write_lines(
        folder / "judge_prompts.jsonl",
        [{"name": name, "system_prompt": f"Judge {name}.", "prompt_template": text} for name, text in prompts.items()],
    )
    return folder


MAKERS = {
    "mmlu": mmlu,
    "hellaswag": hellaswag,
    "gsm8k": gsm8k,
    "humaneval": humaneval,
    "mbpp": mbpp,
    "bbq": bbq,
    "bold": bold,
    "mt_bench": mt_bench,
}


def write_all(data: Path) -> Path:
    """A folder of all tasks."""
    for name, make in MAKERS.items():
        make(data / name)
    return data
