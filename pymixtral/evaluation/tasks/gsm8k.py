"""GSM8K: word problems of grade-school mathematics (Cobbe et al., arXiv 2110.14168).

Files: `test.jsonl` and `train.jsonl`, each line with `question` and `answer`, which ends with
"#### NUMBER".

The prompt is the first problems of `train` with their answers, and the problem. k answers are drawn,
and the number that most of them end with counts: maj@k (Wang et al., arXiv 2203.11171). Of numbers
that are as frequent, the one that came first counts. The number of an answer is the one after "####",
or else the last one in it.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from pymixtral.arguments import integer, shown
from pymixtral.errors import ContextLengthError, InvalidArgumentError
from pymixtral.evaluation.estimates import Estimate, mean
from pymixtral.evaluation.inquiries import Inquiry
from pymixtral.evaluation.tasks.sources import found, records
from pymixtral.evaluation.tasks.task import Answer, Item, Marks, Table, Task, drawn
from pymixtral.files.kinds import named
from pymixtral.mixtral import Mixtral
from pymixtral.questions import MAX_SAMPLES

_MARKED = re.compile(r"####\s*(-?\$?[0-9.,]+)")
_NUMBER = re.compile(r"-?\$?[0-9][0-9.,]*")


@dataclass(frozen=True)
class GSM8K(Task):
    """The task.

    Attributes:
        shots: problems with answers before the problem; fewer where the context is too short.
        k: answers that are drawn.
        temperature: of drawing; with k = 1 the likeliest answer, token by token, counts.
        top_p: of drawing.
        max_tokens: of an answer.
    """

    shots: int = 8
    k: int = 8
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 256

    name: ClassVar[str] = "gsm8k"
    headline: ClassVar[tuple[str, ...]] = ("accuracy", "accuracy_of_one")

    def read(self) -> list[Item]:
        """See Task."""
        integer("gsm8k.k", self.k, 1, MAX_SAMPLES)
        items = []
        for path in found(self.data, "test.jsonl", "test.jsonl.gz"):
            for i, record in enumerate(records(path, question=str, answer=str)):
                number = number_of(record["answer"])
                if number is None:
                    raise InvalidArgumentError(
                        f"{named(path)}, item {i + 1}: expected an answer with a number, found "
                        f"{shown(record['answer'])}"
                    )
                fields = {"question": record["question"], "number": number}
                items.append(Item(f"test/{i}", "", fields, begins="gsm8k"))
        return items

    def prompt(self, item: Item, shots: int) -> str:
        """The text before the answer.

        Args:
            item: the problem.
            shots: problems with answers before it.
        """
        examples = [f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in self._examples[:shots]]
        return "".join(examples) + f"Question: {item.fields['question']}\nAnswer:"

    def inquiry(self, model: Mixtral, item: Item) -> Inquiry[Answer]:
        """See Task."""
        options = {
            "temperature": self.temperature if self.k > 1 else 0.0,
            "top_p": self.top_p,
            "seed": self.seed_of(item),
            "stop": ["Question:"],
        }
        for shots in range(self.shots, -1, -1):
            ids = model.tokenize(self.prompt(item, shots))
            if len(ids) + self.max_tokens <= model.n_ctx:
                return (yield from drawn(model, ids, self.k, max_tokens=self.max_tokens, **options))
        raise ContextLengthError(
            f"expected item {item.id} of gsm8k and {self.max_tokens} tokens of answer to fit {model.n_ctx} tokens "
            "(n_ctx), found that they do not: choose a longer context, or a smaller max_tokens"
        )

    def marks(self, item: Item, answer: Answer) -> Marks:
        """See Task."""
        numbers = [number_of(text) for text in answer]
        right = item.fields["number"]
        chosen = majority(numbers)
        return {
            "correct": float(chosen == right),
            "correct_of_one": sum(number == right for number in numbers) / len(numbers),
            "chosen": chosen or "",
        }

    def figures(self, table: Table) -> dict[str, Estimate]:
        """See Task. `accuracy_of_one` is the mean over all answers, as if k were 1 at this temperature."""
        return {"accuracy": mean(table.column("correct")), "accuracy_of_one": mean(table.column("correct_of_one"))}

    def beside(self) -> list[tuple[str, str]]:
        """See Task."""
        return self._examples

    def check(self) -> None:
        """See Task."""
        _ = self._examples

    @cached_property
    def _examples(self) -> list[tuple[str, str]]:
        if self.shots == 0:
            return []
        path = found(self.data, "train.jsonl", "train.jsonl.gz")[0]
        examples = [(record["question"], record["answer"]) for record in records(path, question=str, answer=str)]
        if len(examples) < self.shots:
            raise InvalidArgumentError(
                f"{named(path)}: expected {self.shots} problems, found {len(examples)}: choose fewer shots"
            )
        return examples[: self.shots]


def number_of(text: str) -> str | None:
    """Find the number that an answer ends with.

    Args:
        text: the answer.

    Returns:
        The number, without "$", commas and zeros that say nothing; None if there is none.
    """
    marked = _MARKED.search(text)
    numbers = [marked[1]] if marked else _NUMBER.findall(text)
    if not numbers:
        return None
    number = numbers[-1].replace(",", "").replace("$", "").rstrip(".")
    if number.count(".") == 1:
        number = number.rstrip("0").rstrip(".")
    return number or None


def majority(numbers: list[str | None]) -> str | None:
    """Choose the most frequent number, the first of several that are as frequent.

    Args:
        numbers: of all answers; None: an answer has none.
    """
    counts = Counter(number for number in numbers if number is not None)
    return counts.most_common(1)[0][0] if counts else None
