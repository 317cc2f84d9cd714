"""Two models on the same items: which is better, and how sure that is.

Items that are hard for one model are mostly hard for the other, so the difference on each item tells
more than two figures with an error each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from pymixtral.arguments import shown
from pymixtral.errors import InvalidArgumentError
from pymixtral.evaluation.answers import Answers
from pymixtral.evaluation.estimates import Estimate
from pymixtral.evaluation.evaluate import Card, Result, plain
from pymixtral.evaluation.pairs import TASK as PAIRS
from pymixtral.evaluation.tasks.catalogue import TASKS
from pymixtral.evaluation.tasks.task import Table


@dataclass(frozen=True, eq=False)
class Comparison:
    """What changes from one model to another.

    Attributes:
        base: the model that is compared with, its result.
        other: the other one's.
        n_items: items that both have answered.
        differences: of each figure, other - base, over those items. Their standard errors are those
            of paired samples.
        gained: items that only `other` has right; None for tasks without right answers.
        lost: items that only `base` has right.
    """

    base: Result
    other: Result
    n_items: int
    differences: Mapping[str, Estimate]
    gained: int | None
    lost: int | None

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values; None stands for what is not known."""
        return {
            "task": self.base.task.name,
            "base": self.base.run,
            "other": self.other.run,
            "items": self.n_items,
            "gained": self.gained,
            "lost": self.lost,
            "differences": {
                name: plain(figure) | {"interval": list(figure.interval) if figure.n > 1 else None}
                for name, figure in self.differences.items()
            },
        }


def compare(base: Result, other: Result) -> Comparison:
    """Compare two models' results of one task.

    Args:
        base: the result to compare with.
        other: the result of another model, with the same files and settings.

    Returns:
        The differences, over the items that both have.

    Raises:
        InvalidArgumentError: for results of other questions, or without a common item.
    """
    if base.questions != other.questions:
        raise InvalidArgumentError(
            f"expected two results of the same task, files and settings, found {base.task.name} ({base.questions}) and "
            f"{other.task.name} ({other.questions})"
        )
    theirs = {item: i for i, item in enumerate(other.items)}
    pairs = [(i, theirs[item]) for i, item in enumerate(base.items) if item in theirs]
    if not pairs:
        raise InvalidArgumentError(f"expected items of {base.task.name} that both models have answered, found none")
    if any(base.table.groups[i] != other.table.groups[j] for i, j in pairs):
        raise InvalidArgumentError(
            f"expected items of {base.task.name} in the same groups in both results, found others: ask again"
        )
    tables = [result.table.rows([pair[k] for pair in pairs]) for k, result in enumerate((base, other))]
    before, after = (base.task.figures(table) for table in tables)
    right, now_right = (table.column("correct") for table in tables)
    marked = not (np.isnan(right).all() or np.isnan(now_right).all())
    return Comparison(
        base=base,
        other=other,
        n_items=len(pairs),
        differences={name: figure - before[name] for name, figure in after.items()},
        gained=int((now_right > right).sum()) if marked else None,
        lost=int((now_right < right).sum()) if marked else None,
    )


def results(answers: Answers) -> list[Result]:
    """Make the results of answers that are there.

    Args:
        answers: of a file, perhaps of an unfinished run.

    Returns:
        A result for each run that has an answer.

    Raises:
        InvalidArgumentError: for a task or settings that this version does not know.
    """
    found = []
    for run, head in answers.runs.items():
        marks = answers.marks[run]
        if not marks or head["task"] == PAIRS:
            continue
        try:
            task = TASKS[head["task"]](Path(), **head["settings"])
            card = _card(head["model"])
            questions, version = str(head["questions"]), str(head["version"])
            table = Table(list(answers.groups[run].values()), list(marks.values()))
            figures = task.figures(table)
            questions, version = head["questions"], head["version"]
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidArgumentError(
                f"expected answers that this version of pymixtral can read, found others in run {run} ({error}): "
                "ask again"
            ) from None
        found.append(
            Result(
                task=task,
                questions=questions,
                limit=None,
                model=card,
                version=version,
                run=run,
                items=list(marks),
                answers=list(answers.texts[run].values()),
                table=table,
                figures=figures,
                n_resumed=len(marks),
                seconds=0.0,
            )
        )
    return found


_KINDS: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "Mapping[str, Any]": Mapping}


def _card(model: Mapping[str, Any]) -> Card:
    """The card that a file has.

    Raises:
        TypeError: for other fields or values than those of a card.
    """
    card = Card(**model)
    for field in fields(card):
        if not isinstance(getattr(card, field.name), _KINDS[str(field.type)]):
            raise TypeError(f"the model's {field.name} is {shown(getattr(card, field.name))}")
    return card
