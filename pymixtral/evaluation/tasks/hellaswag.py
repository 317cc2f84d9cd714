"""HellaSwag: which of four endings goes on with a text (Zellers et al., arXiv 1905.07830).

File: `hellaswag_val.jsonl`, or another one of JSON lines, each with `activity_label`, `ctx_a`,
`ctx_b` (or `ctx`, the whole text), `endings` (four) and `label` (0 to 3).

The answer is the likeliest ending, by the sum of its tokens' log-probabilities, and, as
`normalized_accuracy`, by that sum divided by the number of its characters. Texts are cleaned as
EleutherAI's harness cleans them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from pymixtral.arguments import shown
from pymixtral.errors import InvalidArgumentError
from pymixtral.evaluation.estimates import Estimate, mean
from pymixtral.evaluation.inquiries import Inquiry
from pymixtral.evaluation.tasks.sources import found, records
from pymixtral.evaluation.tasks.task import Answer, Item, Marks, Table, Task, best, choose
from pymixtral.files.kinds import named
from pymixtral.mixtral import Mixtral


@dataclass(frozen=True)
class HellaSwag(Task):
    """The task."""

    name: ClassVar[str] = "hellaswag"
    headline: ClassVar[tuple[str, ...]] = ("accuracy", "normalized_accuracy")

    def read(self) -> list[Item]:
        """See Task."""
        items = []
        for path in found(self.data, "hellaswag_val.jsonl", "*.jsonl", "*.jsonl.gz"):
            for i, record in enumerate(records(path, activity_label=str, endings=list, label=(int, str))):
                place = f"{named(path)}, item {i + 1}"
                n_endings = len(record["endings"])
                if n_endings < 2 or not all(isinstance(ending, str) and ending for ending in record["endings"]):
                    raise InvalidArgumentError(
                        f"{place}: expected two endings or more, found {shown(record['endings'])}"
                    )
                if str(record["label"]) not in map(str, range(n_endings)):
                    raise InvalidArgumentError(
                        f"{place}: expected a label from 0 to {n_endings - 1}, found {shown(record['label'])}"
                    )
                fields = {
                    "prompt": cleaned(f"{record['activity_label']}: {_context(record, place)}"),
                    "endings": [cleaned(ending) for ending in record["endings"]],
                    "label": int(record["label"]),
                }
                items.append(Item(f"{path.name}/{i}", "", fields))
        return items

    def inquiry(self, model: Mixtral, item: Item) -> Inquiry[Answer]:
        """See Task."""
        endings = [f" {ending}" for ending in item.fields["endings"]]
        return (yield from choose(model, [item.fields["prompt"]], endings))

    def marks(self, item: Item, answer: Answer) -> Marks:
        """See Task."""
        label = item.fields["label"]
        normalized = [value / len(ending) for value, ending in zip(answer, item.fields["endings"], strict=True)]
        return {
            "correct": float(best(answer) == label),
            "correct_normalized": float(best(normalized) == label),
        }

    def figures(self, table: Table) -> dict[str, Estimate]:
        """See Task."""
        return {
            "accuracy": mean(table.column("correct")),
            "normalized_accuracy": mean(table.column("correct_normalized")),
        }


def cleaned(text: str) -> str:
    """Take the marks of WikiHow out of a text.

    Args:
        text: as the file has it.
    """
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _context(record: dict[str, Any], place: str) -> str:
    if isinstance(record.get("ctx_a"), str) and isinstance(record.get("ctx_b"), str):
        return f"{record['ctx_a']} {record['ctx_b'].capitalize()}"
    if isinstance(record.get("ctx"), str):
        return str(record["ctx"])
    raise InvalidArgumentError(f'{place}: expected "ctx_a" and "ctx_b", or "ctx", found neither')
