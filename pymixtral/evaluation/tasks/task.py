"""What all tasks are: items, a question for each, marks for each answer, figures of the marks."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pymixtral.arguments import integer, number
from pymixtral.arrays import F64, Ids
from pymixtral.engine.asking import Question
from pymixtral.engine.completion import Completion
from pymixtral.errors import ContextLengthError
from pymixtral.evaluation.estimates import Estimate, mean
from pymixtral.evaluation.inquiries import Inquiry
from pymixtral.mixtral import Mixtral
from pymixtral.questions import Score, generations, scores

Answer = Any
"""What a model says to an item, as JSON has it."""

Marks = Mapping[str, float | str]
"""What an answer is worth: numbers, and what tells how they came about."""


NO_SETTING = {"setting": False}
"""Metadata of a field that does not change what is asked."""


@dataclass(frozen=True)
class Item:
    """One item of a task.

    Attributes:
        id: its name in the task.
        group: what it counts with, such as its subject; "" in a task without groups.
        fields: what the task's file says of it.
        begins: a name for the beginning that its prompt has in common with its neighbours'; None:
            there is none.
    """

    id: str
    group: str
    fields: Mapping[str, Any]
    begins: str | None = None


class Table:
    """The marks of items, in columns.

    Args:
        groups: the group of each item.
        marks: the marks of each item.
    """

    def __init__(self, groups: Sequence[str], marks: Sequence[Marks]) -> None:
        self.groups, self._marks = groups, marks

    def column(self, name: str) -> F64:
        """The marks of this name, float64 [n_items]; NaN for items without one."""
        found = [marks.get(name) for marks in self._marks]
        return np.array([value if isinstance(value, (int, float)) else np.nan for value in found], np.float64)

    def within(self, group: str) -> F64:
        """1 for the items of a group, NaN for the others, float64 [n_items]."""
        return np.array([1.0 if one == group else np.nan for one in self.groups])

    def rows(self, indices: Sequence[int]) -> Table:
        """The marks of these items alone, in this order."""
        return Table([self.groups[i] for i in indices], [self._marks[i] for i in indices])

    @cached_property
    def names(self) -> list[str]:
        """The groups, each once."""
        return list(dict.fromkeys(self.groups))


@dataclass(frozen=True)
class Task(ABC):
    """A task, whose items are in files of the user's.

    The fields of a subclass, after those here, are its settings: they stand in results, and results
    of different settings are not compared.

    Attributes:
        data: the folder with the task's files.
        seed: where texts are drawn, each item has a seed of its own, made of this one.
    """

    data: Path = field(metadata=NO_SETTING)
    seed: int = 0

    name: ClassVar[str]
    """As the command line and the results have it."""

    headline: ClassVar[tuple[str, ...]]
    """The figures that a short table shows; the others are of groups."""

    judged_slowly: ClassVar[bool] = False
    """Whether marks() waits for something outside this process, so that several are made at a time."""

    def __post_init__(self) -> None:
        for one in fields(self):
            name, value = f"{self.name}.{one.name}", getattr(self, one.name)
            if type(one.default) is int:
                integer(name, value, 0, (1 << 31) - 1)
            elif type(one.default) is float:
                number(name, value, 0, 1e6)

    @property
    def settings(self) -> dict[str, Any]:
        """The task's settings, as JSON has them."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.metadata != NO_SETTING}

    @cached_property
    def items(self) -> Sequence[Item]:
        """All items, in the order of the files.

        Raises:
            InvalidArgumentError: for files that are missing or not of the task's form.
        """
        return self.read()

    @abstractmethod
    def read(self) -> list[Item]:
        """Read the items."""

    @abstractmethod
    def inquiry(self, model: Mixtral, item: Item) -> Inquiry[Answer]:
        """Ask a model for its answer to an item."""

    @abstractmethod
    def marks(self, item: Item, answer: Answer) -> Marks:
        """Mark an answer. It may be called by several threads at the same time."""

    @abstractmethod
    def figures(self, table: Table) -> dict[str, Estimate]:
        """Compute the figures of marked items; those of a group are called "figure/group"."""

    def check(self) -> None:  # noqa: B027  # most need nothing
        """Check what marks() needs, before the work begins.

        Raises:
            UnsupportedError: if something is missing.
        """

    def beside(self) -> Any:
        """What stands beside the items in what is asked, such as examples, as JSON has it; None: nothing."""
        return None

    def seed_of(self, item: Item) -> int:
        """The item's own seed, which no other item changes."""
        text = f"{self.seed} {self.name} {item.id}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1

    def digest(self) -> str:
        """What tells the task's settings and files from others, as 16 hexadecimal digits."""
        found = hashlib.sha256(json.dumps([self.name, self.settings, self.beside()], sort_keys=True).encode())
        for item in self.items:
            found.update(json.dumps([item.id, item.group, item.fields], sort_keys=True).encode())
        return found.hexdigest()[:16]


def sample(task: Task, limit: int | None) -> list[Item]:
    """Choose items of a task.

    Args:
        task: the task.
        limit: the most items of each group; None: all.

    Returns:
        Items in the order of the files. They are chosen by the hashes of their names, so that they
        are the same on every machine, stand anywhere in the files, and a larger limit adds to them.
    """
    if limit is None:
        return list(task.items)
    groups: dict[str, list[Item]] = {}
    for item in task.items:
        groups.setdefault(item.group, []).append(item)
    chosen = {
        item.id
        for items in groups.values()
        for item in sorted(items, key=lambda item: hashlib.sha256(item.id.encode()).digest())[:limit]
    }
    return [item for item in task.items if item.id in chosen]


def by_group(name: str, table: Table, column: F64) -> dict[str, Estimate]:
    """The mean of a column, of all items and of each group."""
    found = {name: mean(column)}
    if len(table.names) > 1:
        found |= {f"{name}/{group}": mean(column * table.within(group)) for group in table.names}
    return found


def choose(model: Mixtral, prompts: Sequence[str], choices: Sequence[str]) -> Inquiry[list[float]]:
    """Ask how likely each of several texts is to follow a prompt.

    Args:
        model: is asked.
        prompts: the prompt, and shorter ones in its place where it is too long for the context.
        choices: the texts that may follow.

    Returns:
        The log-probability of each choice.

    Raises:
        ContextLengthError: if the shortest prompt is too long.
    """
    found: list[Score] = yield _question_that_fits(model, prompts, choices)
    return [score.logprob for score in found]


def drawn(model: Mixtral, prompt: str | Ids, n: int, **options: Any) -> Inquiry[list[str]]:
    """Ask for texts that follow a prompt.

    Args:
        model: is asked.
        prompt: a text, or token ids.
        n: how many.
        **options: of Mixtral.generate().

    Returns:
        The texts.

    Raises:
        ContextLengthError: if the prompt is too long.
    """
    completion: Completion = yield generations(model.core.factory, prompt, n, None, options)
    return [text.text for text in completion.choices]


def _question_that_fits(model: Mixtral, prompts: Sequence[str], choices: Sequence[str]) -> Question[list[Score]]:
    """The question of Mixtral.score() with the first prompt that fits the context."""
    for prompt in prompts[:-1]:
        try:
            return scores(model.core.factory, prompt, choices, {})
        except ContextLengthError:
            continue
    return scores(model.core.factory, prompts[-1], choices, {})


def best(values: Sequence[float]) -> int:
    """The index of the largest, the first of several that are equal."""
    return max(range(len(values)), key=lambda i: values[i])
