"""MT-Bench: conversations of two questions, judged by another model (Zheng et al., arXiv 2306.05685).

Files, as FastChat has them: `question.jsonl` with `question_id`, `category` and two `turns`;
`judge_prompts.jsonl` with `name`, `system_prompt` and `prompt_template`; and
`reference_answer/gpt-4.jsonl`, or another file there, with `question_id` and `choices`.

Each answer gets a score from 1 to 10; in the categories math, reasoning and coding the judge sees a
reference answer. In pairs, the judge says which of two models' answers is better, and is asked again
with the answers in the other order; a winner that changes with the order is a tie.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from pymixtral.arguments import shown
from pymixtral.chatting import Answer as Reply
from pymixtral.errors import ContextLengthError, InvalidArgumentError
from pymixtral.evaluation.estimates import Estimate, mean
from pymixtral.evaluation.inquiries import Inquiry
from pymixtral.evaluation.judge import Judge
from pymixtral.evaluation.tasks.sources import found, records
from pymixtral.evaluation.tasks.task import NO_SETTING, Answer, Item, Marks, Table, Task, by_group
from pymixtral.files.kinds import named
from pymixtral.mixtral import Mixtral

TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""Of the categories; 0 of the others."""

WITH_REFERENCE = ("math", "reasoning", "coding")
"""The categories whose answers are right or wrong."""

_SCORES = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))
_VERDICT = re.compile(r"\[\[([ABC])\]\]")


@dataclass(frozen=True)
class MTBench(Task):
    """The task.

    Attributes:
        max_tokens: of an answer.
        judge_model: the judge's name at its server.
        judge_url: where the judge is; see Judge.
    """

    max_tokens: int = 1024
    judge_model: str = ""
    judge_url: str = field(default="", metadata=NO_SETTING)

    name: ClassVar[str] = "mt_bench"
    headline: ClassVar[tuple[str, ...]] = ("score", "score_turn_1", "score_turn_2")
    judged_slowly: ClassVar[bool] = True

    def read(self) -> list[Item]:
        """See Task."""
        references = self._references
        items = []
        for path in found(self.data, "question.jsonl"):
            for record in records(path, question_id=int, category=str, turns=list):
                id, turns = record["question_id"], record["turns"]
                if len(turns) != 2 or not all(isinstance(turn, str) for turn in turns):
                    raise InvalidArgumentError(
                        f"{named(path)}, question {id}: expected two turns of text, found {shown(turns)}"
                    )
                reference = references.get(id)
                if record["category"] in WITH_REFERENCE and reference is None:
                    raise InvalidArgumentError(
                        f"{named(self.data)}: expected a reference answer to question {id}, found none"
                    )
                fields = {"turns": turns, "reference": reference if record["category"] in WITH_REFERENCE else None}
                items.append(Item(f"question/{id}", record["category"], fields))
        return items

    def inquiry(self, model: Mixtral, item: Item) -> Inquiry[Answer]:
        """See Task. Where the second question does not fit the context, its answer is empty."""
        messages: list[dict[str, Any]] = []
        answers: list[str] = []
        for turn in item.fields["turns"]:
            messages.append({"role": "user", "content": turn})
            options: Any = {
                "max_tokens": self.max_tokens,
                "temperature": TEMPERATURES.get(item.group, 0.0),
                "seed": self.seed_of(item),
            }
            try:
                question = model.core.conversation(messages, options, "chat()").question(1, None)
            except ContextLengthError:
                if not answers:
                    raise
                answers.append("")
                break
            reply: Reply = yield question
            answers.append(reply.content)
            messages.append({"role": "assistant", "content": reply.content})
        return answers

    def marks(self, item: Item, answer: Answer) -> Marks:
        """See Task. A judgement without a score has no mark."""
        marks: dict[str, float | str] = {}
        scores = []
        for turn in (1, 2):
            judgement = self._judge.ask(self.messages("single", item, turn, {"answer": answer}))
            marks[f"judgement_{turn}"] = judgement
            score = score_of(judgement)
            if score is not None:
                marks[f"score_{turn}"] = score
                scores.append(score)
        if scores:
            marks["score"] = sum(scores) / len(scores)
        return marks

    def compare(self, item: Item, base: Answer, other: Answer) -> Marks:
        """Ask which of two models' answers is better.

        Args:
            item: the question.
            base: the answers of one model.
            other: those of another one.

        Returns:
            Of each turn 1 if `other` wins, 0 if `base` does, 0.5 for a tie, and the mean of both.
        """
        marks: dict[str, float | str] = {}
        for turn in (1, 2):
            first = self._judge.ask(self.messages("pair", item, turn, {"answer_a": base, "answer_b": other}))
            second = self._judge.ask(self.messages("pair", item, turn, {"answer_a": other, "answer_b": base}))
            marks[f"judgement_{turn}"], marks[f"judgement_{turn}_swapped"] = first, second
            verdicts = (verdict_of(first), verdict_of(second))
            marks[f"win_{turn}"] = {("B", "A"): 1.0, ("A", "B"): 0.0}.get(verdicts, 0.5)
        marks["win"] = (float(marks["win_1"]) + float(marks["win_2"])) / 2
        return marks

    def messages(self, kind: str, item: Item, turn: int, answers: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
        """Write what the judge reads.

        Args:
            kind: "single" or "pair".
            item: the question.
            turn: 1, or 2, for which the judge sees both.
            answers: of each name in the template, the answers to both questions.
        """
        reference = item.fields["reference"]
        version = "v1" if kind == "single" or reference else "v2"
        name = f"{kind}-{'math-' if reference else ''}{version}{'-multi-turn' if turn == 2 else ''}"
        prompt = self._prompts.get(name)
        if prompt is None:
            raise InvalidArgumentError(
                f"{named(self.data)}: expected the prompt '{name}' in judge_prompts.jsonl, found none"
            )
        questions = item.fields["turns"]
        values = {"question": questions[0], "question_1": questions[0], "question_2": questions[1]}
        for slot, texts in answers.items():
            values |= {slot: texts[0], f"{slot}_1": texts[0], f"{slot}_2": texts[1]}
        if reference:
            values |= {"ref_answer_1": reference[0], "ref_answer_2": reference[1]}
        # Not str.format(), which would obey braces in the template's own text.
        text = re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), prompt["prompt_template"])
        return [{"role": "system", "content": prompt["system_prompt"]}, {"role": "user", "content": text}]

    def figures(self, table: Table) -> dict[str, Estimate]:
        """See Task."""
        return by_group("score", table, table.column("score")) | {
            f"score_turn_{turn}": mean(table.column(f"score_{turn}")) for turn in (1, 2)
        }

    def beside(self) -> dict[str, dict[str, Any]]:
        """See Task: the judge's prompts."""
        return self._prompts

    def check(self) -> None:
        """See Task.

        Raises:
            InvalidArgumentError: if no judge is named, or its prompts are missing.
        """
        _ = self._judge, self._prompts

    @cached_property
    def _judge(self) -> Judge:
        if not self.judge_url or not self.judge_model:
            raise InvalidArgumentError(
                "expected a judge for mt_bench, found none: name a server with OpenAI's interface and its model, with "
                "judge_url and judge_model"
            )
        return Judge(self.judge_url, self.judge_model)

    @cached_property
    def _prompts(self) -> dict[str, dict[str, Any]]:
        path = found(self.data, "judge_prompts.jsonl")[0]
        return {record["name"]: record for record in records(path, name=str, system_prompt=str, prompt_template=str)}

    @cached_property
    def _references(self) -> dict[int, list[str]]:
        references = {}
        for path in found(self.data, "reference_answer/gpt-4.jsonl", "reference_answer/*.jsonl")[:1]:
            for record in records(path, question_id=int, choices=list):
                try:
                    turns = record["choices"][0]["turns"]
                except (LookupError, TypeError):
                    turns = None
                if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(turn, str) for turn in turns):
                    raise InvalidArgumentError(
                        f"{named(path)}, question {record['question_id']}: expected answers to two turns, found "
                        f"{shown(turns)}"
                    )
                references[record["question_id"]] = turns
        return references


def score_of(judgement: str) -> float | None:
    """Find the score in a judgement, such as 7 in "Rating: [[7]]"; None if there is none."""
    for pattern in _SCORES:
        match = pattern.search(judgement)
        if match:
            return float(np.clip(float(match[1]), 1, 10))
    return None


def verdict_of(judgement: str) -> str:
    """Find the verdict in a judgement: "A", "B", "C" for a tie, "" if there is none."""
    match = _VERDICT.search(judgement)
    return match[1] if match else ""
