"""MMLU: multiple-choice questions of 57 subjects (Hendrycks et al., arXiv 2009.03300).

Files: `test/SUBJECT_test.csv` and `dev/SUBJECT_dev.csv`. A row is a question, four choices and the
answer, as a letter from A to D or a number from 0 to 3. A first row of names, which begins with
"question", is left out.

The prompt is that of the paper: a line that names the subject, five questions of `dev` with their
answers, and the question. The answer is the likeliest of " A", " B", " C" and " D".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pymixtral.arguments import shown
from pymixtral.errors import InvalidArgumentError
from pymixtral.evaluation.estimates import Estimate
from pymixtral.evaluation.inquiries import Inquiry
from pymixtral.evaluation.tasks.sources import found, rows
from pymixtral.evaluation.tasks.task import Answer, Item, Marks, Table, Task, best, by_group, choose
from pymixtral.files.kinds import named
from pymixtral.mixtral import Mixtral

LETTERS = "ABCD"


@dataclass(frozen=True)
class MMLU(Task):
    """The task.

    Attributes:
        shots: questions with answers before the question. Where the context is too short for all of
            them, the last ones are left out.
    """

    shots: int = 5

    name: ClassVar[str] = "mmlu"
    headline: ClassVar[tuple[str, ...]] = ("accuracy",)

    def read(self) -> list[Item]:
        """See Task."""
        items = []
        for path in found(self.data, "test/*_test.csv"):
            subject = path.name.removesuffix("_test.csv")
            for i, row in enumerate(_questions(path)):
                items.append(Item(f"{subject}/{i}", subject, row, begins=subject))
        return items

    def prompt(self, item: Item, shots: int) -> str:
        """The text before the answer.

        Args:
            item: the question.
            shots: questions with answers before it.
        """
        subject = item.group.replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        examples = self._examples[item.group][:shots]
        return head + "".join(f"{_shown(one)} {LETTERS[one['answer']]}\n\n" for one in examples) + _shown(item.fields)

    def inquiry(self, model: Mixtral, item: Item) -> Inquiry[Answer]:
        """See Task."""
        prompts = [self.prompt(item, shots) for shots in range(self.shots, -1, -1)]
        return (yield from choose(model, prompts, [f" {letter}" for letter in LETTERS]))

    def marks(self, item: Item, answer: Answer) -> Marks:
        """See Task."""
        chosen = best(answer)
        return {"correct": float(chosen == item.fields["answer"]), "chosen": LETTERS[chosen]}

    def figures(self, table: Table) -> dict[str, Estimate]:
        """See Task."""
        return by_group("accuracy", table, table.column("correct"))

    @cached_property
    def _examples(self) -> dict[str, list[dict[str, Any]]]:
        subjects = list(dict.fromkeys(item.group for item in self.items))
        if self.shots == 0:
            return {subject: [] for subject in subjects}
        examples = {subject: _questions(found(self.data, f"dev/{subject}_dev.csv")[0]) for subject in subjects}
        for subject, found_examples in examples.items():
            if len(found_examples) < self.shots:
                raise InvalidArgumentError(
                    f"{named(self.data)}: expected {self.shots} questions in dev/{subject}_dev.csv, found "
                    f"{len(found_examples)}: choose fewer shots"
                )
        return examples

    def beside(self) -> dict[str, list[dict[str, Any]]]:
        """See Task."""
        return self._examples

    def check(self) -> None:
        """See Task."""
        _ = self._examples


def _questions(path: Path) -> list[dict[str, Any]]:
    questions = []
    for i, (question, *choices, answer) in enumerate(rows(path, 6)):
        if i == 0 and question == "question":
            continue
        if answer in tuple(LETTERS):
            index = LETTERS.index(answer)
        elif answer in ("0", "1", "2", "3"):
            index = int(answer)
        else:
            raise InvalidArgumentError(
                f"{named(path)}, row {i + 1}: expected an answer from A to D or from 0 to 3, found {shown(answer)}"
            )
        questions.append({"question": question, "choices": choices, "answer": index})
    return questions


def _shown(fields: Mapping[str, Any]) -> str:
    choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, fields["choices"], strict=True))
    return f"{fields['question'].strip()}\n{choices}\nAnswer:"
