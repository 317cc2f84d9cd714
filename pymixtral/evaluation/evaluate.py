"""What a model's answers are worth: tasks, their items answered together, and the figures.

from pathlib import Path

from pymixtral import Mixtral
from pymixtral.evaluation.evaluate import evaluate
from pymixtral.evaluation.tasks.mmlu import MMLU

with Mixtral("mixtral-q4_0.gguf") as model:
    (result,) = evaluate(model, [MMLU(Path("data/mmlu"))], limit=10, answers=Path("answers.jsonl"))
print(result.figures["accuracy"].value)
"""

from __future__ import annotations

import hashlib
import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pymixtral import ops
from pymixtral.arguments import integer
from pymixtral.engine.adapters import identity
from pymixtral.evaluation import inquiries
from pymixtral.evaluation.answers import Answers
from pymixtral.evaluation.estimates import Estimate
from pymixtral.evaluation.inquiries import Asking
from pymixtral.evaluation.tasks.task import Answer, Item, Marks, Table, Task, sample
from pymixtral.files.types import show_type
from pymixtral.mixtral import Mixtral
from pymixtral.progress import progress_bar
from pymixtral.threads import starting_threads

_MARKERS = 8
"""Threads that mark answers where that means to wait."""


_DIGITS = 16
"""Of an adapter's digest, enough that no two have the same by chance."""


@dataclass(frozen=True)
class Card:
    """Which model answered.

    Attributes:
        name: the file's name.
        digest: what tells the model from others (GGUFFile.digest), 64 hexadecimal digits.
        type: the type of most weights, such as "q4_k".
        bits_per_weight: of the whole file.
        parameters: the number of weights.
        experts_used: experts for each token.
        kv_type: the type of cached keys and values.
        n_ctx: most tokens of prompt and answer.
        overrides: metadata that replaced the file's, and other choices of when it was opened; of each
            adapter the scale, under the beginning of its digest.
    """

    name: str
    digest: str
    type: str
    bits_per_weight: float
    parameters: int
    experts_used: int
    kv_type: str
    n_ctx: int
    overrides: Mapping[str, Any]

    @classmethod
    def of(cls, model: Mixtral) -> Card:
        """The card of an open model."""
        weights: dict[str, int] = {}
        n_bytes = 0
        for tensor in model.core.file.tensors.values():
            name = show_type(tensor.type)
            weights[name] = weights.get(name, 0) + math.prod(tensor.shape)
            n_bytes += tensor.data.nbytes
        total = sum(weights.values())
        adapters = identity(model.core.factory.adapters.chosen(None))
        return cls(
            name=model.path.name,
            digest=model.core.file.digest().hex(),
            type=max(weights, key=lambda name: weights[name]),
            bits_per_weight=round(8 * n_bytes / total, 4),
            parameters=total,
            experts_used=model.config.n_experts_used,
            kv_type=model.kv_type,
            n_ctx=model.n_ctx,
            overrides={
                **model.core.different,
                **model.config.choices,
                **{f"adapter {digest[:_DIGITS]}": scale for digest, scale in adapters},
            },
        )


@dataclass(frozen=True, eq=False)
class Result:
    """What a model's answers to a task are worth.

    Attributes:
        task: the task, with its settings.
        questions: a digest of the task's files and settings: results with the same one compare.
        limit: the most items of each group; None: all.
        model: which model answered.
        version: of pymixtral.
        run: the run's ID in a file of answers.
        items: the items' IDs.
        answers: what the model said to them.
        table: their marks.
        figures: by name; those of groups are called "figure/group".
        n_resumed: answers that were there before.
        seconds: time of this run.
    """

    task: Task
    questions: str
    limit: int | None
    model: Card
    version: str
    run: str
    items: Sequence[str]
    answers: Sequence[Answer]
    table: Table
    figures: Mapping[str, Estimate]
    n_resumed: int
    seconds: float

    @property
    def items_per_second(self) -> float | None:
        """Items answered a second in this run; None if all were there before."""
        n = len(self.items) - self.n_resumed
        return n / self.seconds if n else None

    def to_json(self) -> dict[str, Any]:
        """Everything but the marks, as plain values; None stands for what is not known."""
        return {
            "task": self.task.name,
            "questions": self.questions,
            "settings": self.task.settings,
            "limit": self.limit,
            "model": asdict(self.model),
            "version": self.version,
            "run": self.run,
            "items": len(self.items),
            "resumed": self.n_resumed,
            "seconds": self.seconds,
            "items_per_second": self.items_per_second,
            "figures": {name: plain(figure) for name, figure in self.figures.items()},
        }


def plain(estimate: Estimate) -> dict[str, float | int | None]:
    """A figure as JSON has it.

    Args:
        estimate: the figure.

    Returns:
        Its value, standard error and number of items; None stands for NaN.
    """
    value, error = estimate.value, estimate.standard_error
    return {
        "value": None if math.isnan(value) else value,
        "standard_error": None if math.isnan(error) else error,
        "items": estimate.n,
    }


def evaluate(
    model: Mixtral,
    tasks: Sequence[Task],
    *,
    limit: int | None = None,
    answers: Path | Answers | None = None,
    force: bool = False,
    n_in_flight: int = 32,
    progress: bool = True,
) -> list[Result]:
    """Ask a model the items of tasks, and mark its answers.

    Args:
        model: is asked. Its answers do not depend on its batches, threads and machine.
        tasks: what to ask.
        limit: the most items of each group of a task, such as a subject; see tasks.task.sample.
            None: all.
        answers: a file for the answers. What it has already is not asked again, so the same call
            goes on where an earlier one was interrupted.
        force: begin anew, whatever the file holds.
        n_in_flight: how many items the engine has at a time.
        progress: show a bar where standard error is a terminal.

    Returns:
        A result for each task.

    Raises:
        InvalidArgumentError: for files of tasks that are missing or not of their form, and arguments
            out of range.
        ContextLengthError: for an item that is longer than the model's context.
        UnsupportedError: if something that a task needs is missing, or the model has no tokenizer.
        OutputError: if the file of answers cannot be written, or is something else.
        NonFiniteError: if the model's weights lead to NaN or infinity.
        ClosedError: if the model is closed.
    """
    limit = None if limit is None else integer("limit", limit, 1)
    n_in_flight = integer("n_in_flight", n_in_flight, 1)
    for task in tasks:
        task.check()
        _ = task.items
    with ExitStack() as stack:
        kept = answers if isinstance(answers, Answers) else stack.enter_context(Answers(answers, force=force))
        card = Card.of(model)
        return [_evaluated(model, card, task, limit, kept, n_in_flight, progress) for task in tasks]


def _evaluated(
    model: Mixtral, card: Card, task: Task, limit: int | None, kept: Answers, n_in_flight: int, progress: bool
) -> Result:
    questions = task.digest()
    state = json.dumps([asdict(card) | {"name": ""}, ops.NUMERICS_VERSION, questions], sort_keys=True)
    run = hashlib.sha256(state.encode()).hexdigest()[:16]
    head = {"task": task.name, "questions": questions, "settings": task.settings, "model": asdict(card)}
    kept.begin(run, head | {"version": version("pymixtral")})
    items = sample(task, limit)
    there = kept.marks[run]
    missing = [item for item in items if item.id not in there]
    begin = time.perf_counter()
    with progress_bar(
        total=len(items), initial=len(items) - len(missing), label=task.name, unit=" items", shown=progress
    ) as bar:
        answered = _answered(model, task, missing, n_in_flight)
        for item, marks, answer in (
            marked(task.marks, answered)
            if task.judged_slowly
            else ((item, task.marks(item, answer), answer) for item, answer in answered)
        ):
            kept.add(run, item.id, item.group, marks, answer)
            bar.update()
    seconds = time.perf_counter() - begin
    table = Table([item.group for item in items], [kept.marks[run][item.id] for item in items])
    result = Result(
        task=task,
        questions=questions,
        limit=limit,
        model=card,
        version=version("pymixtral"),
        run=run,
        items=[item.id for item in items],
        answers=[kept.texts[run][item.id] for item in items],
        table=table,
        figures=task.figures(table),
        n_resumed=len(items) - len(missing),
        seconds=seconds,
    )
    if missing:
        summary = result.to_json()
        kept.end(run, {name: summary[name] for name in ("items", "limit", "seconds", "version", "figures")})
    return result


def _answered(model: Mixtral, task: Task, items: Sequence[Item], n_in_flight: int) -> Iterator[tuple[Item, Answer]]:
    askings = (Asking(item, task.inquiry(model, item), item.begins) for item in items)
    return inquiries.answers(model, askings, n_in_flight)


def marked(
    mark: Callable[[Item, Answer], Marks], answered: Iterable[tuple[Item, Answer]]
) -> Iterator[tuple[Item, Marks, Answer]]:
    """Mark answers by several threads, where to mark means to wait.

    Args:
        mark: marks an answer.
        answered: items and answers.

    Yields:
        Items, marks and answers, as they become ready. The threads are daemons: an exception here, such
        as KeyboardInterrupt, does not wait for them.
    """
    work: queue.SimpleQueue[tuple[Item, Answer] | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Item, Marks, Answer] | BaseException] = queue.SimpleQueue()

    def run() -> None:
        while (one := work.get()) is not None:
            try:
                done.put((one[0], mark(*one), one[1]))
            except BaseException as error:
                done.put(error)

    with starting_threads():
        for _ in range(_MARKERS):
            threading.Thread(target=run, name="pymixtral-marks", daemon=True).start()
    try:
        waiting = 0
        for one in answered:
            work.put(one)
            waiting += 1
            while not done.empty():
                waiting -= 1
                yield _raised(done.get())
        for _ in range(waiting):
            yield _raised(done.get())
    finally:
        for _ in range(_MARKERS):
            work.put(None)


def _raised(found: tuple[Item, Marks, Answer] | BaseException) -> tuple[Item, Marks, Answer]:
    if isinstance(found, BaseException):
        raise found
    return found
