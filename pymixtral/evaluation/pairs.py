"""MT-Bench in pairs: whose answers a judge prefers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pymixtral.errors import InvalidArgumentError
from pymixtral.evaluation.answers import Answers
from pymixtral.evaluation.estimates import Estimate, mean
from pymixtral.evaluation.evaluate import Result, marked, plain
from pymixtral.evaluation.tasks.mt_bench import MTBench
from pymixtral.evaluation.tasks.task import Table
from pymixtral.progress import progress_bar

TASK = "mt_bench_pairs"
"""What the first line of such a run calls itself in a file of answers."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """How two models' answers compare.

    Attributes:
        base: the one model's result.
        other: the other's.
        n_items: questions that both have answered.
        win_rate: of `other`, over both turns; ties count half.
    """

    base: Result
    other: Result
    n_items: int
    win_rate: Estimate

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "task": TASK,
            "base": self.base.run,
            "other": self.other.run,
            "items": self.n_items,
            "figures": {"win_rate": plain(self.win_rate)},
        }


def judge_pairs(base: Result, other: Result, answers: Answers, *, progress: bool = True) -> Pairs:
    """Let the judge compare the answers of two models.

    Args:
        base: the one model's result, of a task with a judge.
        other: the other's, of the same questions.
        answers: keeps the verdicts. What it has is not asked again.
        progress: show a bar where standard error is a terminal.

    Returns:
        How they compare.

    Raises:
        InvalidArgumentError: if no question was answered by both, or the judge does not answer.
        OutputError: if the file of answers cannot be written.
    """
    task = base.task
    assert isinstance(task, MTBench)
    of_base, of_other = (dict(zip(one.items, one.answers, strict=True)) for one in (base, other))
    items = [item for item in task.items if item.id in of_base and item.id in of_other]
    if not items:
        raise InvalidArgumentError("expected questions of mt_bench that both models have answered, found none")
    state = json.dumps([base.run, other.run, task.judge_model])
    run = hashlib.sha256(state.encode()).hexdigest()[:16]
    answers.begin(run, {"task": TASK, "base": base.run, "other": other.run, "judge_model": task.judge_model})
    there = answers.marks[run]
    missing = [item for item in items if item.id not in there]
    with progress_bar(
        total=len(items), initial=len(items) - len(missing), label=TASK, unit=" items", shown=progress
    ) as bar:
        texts = ((item, (of_base[item.id], of_other[item.id])) for item in missing)
        verdicts = marked(lambda item, pair: task.compare(item, *pair), texts)
        for item, marks, _ in verdicts:
            answers.add(run, item.id, item.group, marks, None)
            bar.update()
    table = Table([item.group for item in items], [there[item.id] for item in items])
    return Pairs(base, other, len(items), mean(table.column("win")))
