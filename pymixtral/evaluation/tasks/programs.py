"""Programs: HumanEval (Chen et al., arXiv 2107.03374) and MBPP (Austin et al., arXiv 2108.07732).

HumanEval's file: `HumanEval.jsonl` or `HumanEval.jsonl.gz`, each line with `task_id`, `prompt`, `test`
and `entry_point`. The model goes on with the prompt, until it begins something else.

MBPP's file: `sanitized-mbpp.json` (the subset that was checked by hand), or `mbpp.jsonl`, with
`task_id`, `prompt` or `text`, `code` and `test_list`, and perhaps `test_imports`. Three tasks, 2, 3
and 4, stand with their programs before the one that is asked.

n programs are written for each task, and pass@k is the probability that one of k is right, from the
unbiased estimator of Chen et al.: 1 - C(n - c, k) / C(n, k), where c are right. Programs run in the
sandbox of pymixtral.evaluation.sandbox, and only if they are allowed to.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from pymixtral.arguments import integer, shown
from pymixtral.arrays import F64
from pymixtral.errors import InvalidArgumentError
from pymixtral.evaluation import sandbox
from pymixtral.evaluation.estimates import Estimate, mean
from pymixtral.evaluation.inquiries import Inquiry
from pymixtral.evaluation.tasks.sources import found, records
from pymixtral.evaluation.tasks.task import NO_SETTING, Answer, Item, Marks, Table, Task, drawn
from pymixtral.files.kinds import named
from pymixtral.mixtral import Mixtral
from pymixtral.questions import MAX_SAMPLES

KS = (1, 10, 100)
"""pass@k is computed for those that are at most n."""

_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""What begins something else than the function that is asked for."""


@dataclass(frozen=True)
class Programs(Task):
    """Tasks whose answers are programs.

    Attributes:
        n: programs for each task.
        temperature: of drawing them; with n = 1 the likeliest program, token by token, counts.
        top_p: of drawing them.
        max_tokens: of a program.
        allow_code_execution: whether the programs may run.
    """

    n: int = 1
    temperature: float = 0.8
    top_p: float = 0.95
    max_tokens: int = 512
    allow_code_execution: bool = field(default=False, metadata=NO_SETTING)

    headline: ClassVar[tuple[str, ...]] = tuple(f"pass@{k}" for k in KS)
    judged_slowly: ClassVar[bool] = True

    @abstractmethod
    def prompt(self, item: Item) -> str:
        """The text before the program."""

    @abstractmethod
    def program(self, item: Item, answer: str) -> str:
        """The program with its tests."""

    stops: ClassVar[tuple[str, ...]]
    """What ends a program."""

    def inquiry(self, model: Mixtral, item: Item) -> Inquiry[Answer]:
        """See Task."""
        return drawn(
            model,
            self.prompt(item),
            self.n,
            max_tokens=self.max_tokens,
            temperature=self.temperature if self.n > 1 else 0.0,
            top_p=self.top_p,
            seed=self.seed_of(item),
            stop=list(self.stops),
        )

    def marks(self, item: Item, answer: Answer) -> Marks:
        """See Task."""
        outcomes = [sandbox.run(self.program(item, text)) for text in answer]
        n_right = sum(outcome.passed for outcome in outcomes)
        failures = [outcome.detail for outcome in outcomes if not outcome.passed]
        return {
            "correct": float(outcomes[0].passed),
            "n": float(len(outcomes)),
            "right": float(n_right),
            "failure": failures[0] if failures else "",
        }

    def figures(self, table: Table) -> dict[str, Estimate]:
        """See Task."""
        n, right = table.column("n"), table.column("right")
        return {
            f"pass@{k}": mean(np.array([pass_at(k, int(a), int(b)) for a, b in zip(n, right, strict=True)], np.float64))
            for k in KS
            if k <= _least(n)
        }

    def check(self) -> None:
        """See Task.

        Raises:
            InvalidArgumentError: if the programs may not run.
            UnsupportedError: if the system has no sandbox.
        """
        integer(f"{self.name}.n", self.n, 1, MAX_SAMPLES)
        if not self.allow_code_execution:
            raise InvalidArgumentError(
                f"expected to be allowed to run programs that a model has written, as {self.name} does, found that "
                "this was not asked for: they run in a sandbox with allow_code_execution=True"
            )
        sandbox.check()


def pass_at(k: int, n: int, right: int) -> float:
    """Estimate the probability that one of k programs is right.

    Args:
        k: at most n.
        n: programs that were tried.
        right: how many of them are right.

    Returns:
        1 - C(n - right, k) / C(n, k).
    """
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def _least(n: F64) -> int:
    return int(n.min()) if len(n) else 0


@dataclass(frozen=True)
class HumanEval(Programs):
    """HumanEval."""

    name: ClassVar[str] = "humaneval"
    stops: ClassVar[tuple[str, ...]] = _STOPS

    def read(self) -> list[Item]:
        """See Task."""
        path = found(self.data, "HumanEval.jsonl", "HumanEval.jsonl.gz", "*.jsonl", "*.jsonl.gz")[0]
        return [
            Item(record["task_id"], "", {name: record[name] for name in ("prompt", "test", "entry_point")})
            for record in records(path, task_id=str, prompt=str, test=str, entry_point=str)
        ]

    def prompt(self, item: Item) -> str:
        """See Programs."""
        return str(item.fields["prompt"])

    def program(self, item: Item, answer: str) -> str:
        """See Programs."""
        return f"{item.fields['prompt']}{answer}\n{item.fields['test']}\ncheck({item.fields['entry_point']})"


@dataclass(frozen=True)
class MBPP(Programs):
    """MBPP."""

    name: ClassVar[str] = "mbpp"
    stops: ClassVar[tuple[str, ...]] = ("[DONE]",)

    examples: ClassVar[tuple[int, ...]] = (2, 3, 4)
    """The tasks that stand before the others."""

    def read(self) -> list[Item]:
        """See Task."""
        path = found(self.data, "sanitized-mbpp.json", "mbpp.jsonl", "*.json", "*.jsonl")[0]
        shots: dict[int, str] = {}
        tasks: list[dict[str, Any]] = []
        for i, record in enumerate(records(path, task_id=int, code=str, test_list=list)):
            text = record.get("prompt", record.get("text"))
            if not isinstance(text, str):
                raise InvalidArgumentError(f'{named(path)}, object {i + 1}: expected "prompt" or "text", found neither')
            tests, imports = record["test_list"], record.get("test_imports", [])
            if not all(isinstance(line, str) for line in [*tests, *imports]):
                raise InvalidArgumentError(
                    f"{named(path)}, object {i + 1}: expected tests of text, found {shown(tests)}"
                )
            question = (
                f"You are an expert Python programmer, and here is your task: {text} Your code should pass these "
                "tests:\n\n" + "\n".join(tests) + "\n[BEGIN]\n"
            )
            if record["task_id"] in self.examples:
                shots[record["task_id"]] = f"{question}{record['code']}\n[DONE]\n\n"
            else:
                setup = "\n".join([*imports, record.get("test_setup_code", "")])
                tasks.append({"id": record["task_id"], "question": question, "setup": setup, "tests": "\n".join(tests)})
        missing = [id for id in self.examples if id not in shots]
        if missing:
            raise InvalidArgumentError(
                f"{named(path)}: expected the tasks {', '.join(map(str, self.examples))} as examples, found no task "
                f"{missing[0]}: take the whole file"
            )
        head = "".join(shots[id] for id in self.examples)
        return [
            Item(
                f"mbpp/{task['id']}",
                "",
                {"prompt": head + task["question"], "setup": task["setup"], "tests": task["tests"]},
                begins="mbpp",
            )
            for task in tasks
        ]

    def prompt(self, item: Item) -> str:
        """See Programs."""
        return str(item.fields["prompt"])

    def program(self, item: Item, answer: str) -> str:
        """See Programs."""
        return f"{item.fields['setup']}\n{answer}\n{item.fields['tests']}"
