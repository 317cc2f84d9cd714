"""The command `pymixtral evaluate`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pymixtral.cli.choices import TASKS
from pymixtral.cli.model import model_path, opened, same_model
from pymixtral.cli.options import (
    context_option,
    force_option,
    json_option,
    model_argument,
    model_option,
    opening_options,
    optional_output_option,
    path_type,
)
from pymixtral.cli.text import counted, note, shorten, table, wrap, write, write_json
from pymixtral.errors import InvalidArgumentError
from pymixtral.escapes import escaped

if TYPE_CHECKING:
    from pymixtral.evaluation.comparison import Comparison
    from pymixtral.evaluation.estimates import Estimate
    from pymixtral.evaluation.evaluate import Card, Result
    from pymixtral.evaluation.pairs import Pairs
    from pymixtral.evaluation.tasks.task import Task


def _names(ctx: click.Context, param: click.Parameter, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        raise click.BadParameter(
            f"expected tasks of {', '.join(TASKS)}, with commas between, found {unknown[0]!r}", ctx, param
        )
    return list(dict.fromkeys(names))


def _settings(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """`TASK.NAME=VALUE` as {TASK: {NAME: VALUE}}."""
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        task, dot, name = key.partition(".")
        if not equals or not dot or task not in TASKS:
            raise click.BadParameter(f"expected TASK.NAME=VALUE, such as mmlu.shots=0, found {text!r}", ctx, param)
        try:
            number: int | float = int(value) if value.lstrip("+-").isdecimal() else float(value)
        except ValueError:
            raise click.BadParameter(f"expected a number for {key}, found {value!r}", ctx, param) from None
        found.setdefault(task, {})[name] = number
    return found


@click.command(
    epilog="""\b
Examples:
  pymixtral evaluate mixtral-q4_0.gguf --tasks mmlu,hellaswag --limit 20
  pymixtral evaluate mixtral-q4_0.gguf --tasks mmlu --data data --limit 2 \\
    --setting mmlu.shots=0 -o answers.jsonl --json

\b
Does q4_0 cost answers?
  pymixtral evaluate mixtral-f16.gguf --tasks mmlu --limit 5 \\
    --compare mixtral-q4_0.gguf -o mmlu.jsonl""",
)
@model_argument
@model_option
@click.option(
    "--tasks",
    "names",
    metavar="NAMES",
    required=True,
    callback=_names,
    help=f"What to ask, with commas between: {', '.join(TASKS)}.",
)
@click.option(
    "--data",
    type=path_type(),
    metavar="DIR",
    default=Path("data"),
    show_default=True,
    help="The folder of the data: each task reads the folder of its name there.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="At most N items of each group, such as a subject."
)
@click.option(
    "--compare",
    "others",
    type=path_type(),
    metavar="FILE",
    multiple=True,
    help="Compare with another model, or with answers of -o; may be repeated.",
)
@click.option(
    "--setting",
    "settings",
    metavar="TASK.NAME=VALUE",
    multiple=True,
    callback=_settings,
    help="Change a number of a task, such as mmlu.shots=0; may be repeated.",
)
@click.option("--allow-code-execution", is_flag=True, help="Run the programs of humaneval and mbpp, in a sandbox.")
@click.option("--judge", "judge_url", metavar="URL", help="The judge of mt_bench, such as http://localhost:8000/v1.")
@click.option("--judge-model", metavar="NAME", help="The judge's name at that server.")
@click.option("--judge-pairs", is_flag=True, help="Let the judge compare the answers of --compare too.")
@click.option("--groups", is_flag=True, help="Show the figures of groups too.")
@optional_output_option
@force_option
@context_option(runs=True)
@opening_options()
@json_option
@click.pass_context
def evaluate(
    ctx: click.Context,
    /,
    subject: Path | None,
    model: Path | None,
    names: list[str],
    data: Path,
    limit: int | None,
    others: tuple[Path, ...],
    settings: dict[str, dict[str, Any]],
    allow_code_execution: bool,
    judge_url: str | None,
    judge_model: str | None,
    judge_pairs: bool,
    groups: bool,
    output: Path | None,
    force: bool,
    opening: dict[str, Any],
    as_json: bool,
) -> None:
    """Ask a model the questions of well-known tasks.

    The questions are in files that you have, in the form in which they were published; the chapter
    "Evaluation" of the book describes them. Each figure has its standard error, and beside it stands
    what Mixtral's authors measured, where they did.

    With -o the answers are written into a file while they come. The same command goes on from there
    after Ctrl-C, and asks nothing twice.

    --compare tells the difference to the first model on the same items, with an interval that has the
    true difference in 95 of 100 samples.
    """
    path = model_path(same_model(ctx, subject, model))
    from pymixtral.evaluation.answers import Answers
    from pymixtral.evaluation.comparison import compare, results
    from pymixtral.evaluation.evaluate import evaluate as measure
    from pymixtral.evaluation.pairs import judge_pairs as judged_pair
    from pymixtral.files.atomic import check_dest

    for name in {"humaneval", "mbpp"} & set(names):
        settings.setdefault(name, {})["allow_code_execution"] = allow_code_execution
    if "mt_bench" in names:
        settings.setdefault("mt_bench", {}).update(judge_url=judge_url or "", judge_model=judge_model or "")
    tasks = _tasks(names, data, settings)
    models = [other for other in others if _is_model(other)]
    read = [Answers.read(other) for other in others if other not in models]
    if output:
        check_dest(output, [path, *others, *opening.get("adapters", {}).values()], force=True)
    found: list[Result] = []
    judged: list[Pairs] = []
    with ExitStack() as stack:
        kept = stack.enter_context(Answers(output, force=force))
        try:
            for one in (path, *models):
                with opened(one, **opening) as engine:
                    found += measure(engine, tasks, limit=limit, answers=kept)
            asked = {result.questions for result in found}
            found += [result for answers in read for result in results(answers) if result.questions in asked]
            pairs = [
                (base, other)
                for base in found[: len(tasks)]
                for other in found[len(tasks) :]
                if base.questions == other.questions and base.run != other.run
            ]
            if judge_pairs:
                judged = [judged_pair(base, other, kept) for base, other in pairs if base.task.name == "mt_bench"]
        except KeyboardInterrupt:
            if output is None:
                raise
            note(f"{escaped(str(output))} has the answers so far; the same command goes on from there.")
            ctx.exit(130)
    compared = [compare(base, other) for base, other in pairs]
    if as_json:
        write_json(
            {
                "results": [result.to_json() for result in found],
                "comparisons": [one.to_json() for one in compared] + [one.to_json() for one in judged],
            }
        )
        return
    sections = [_result_lines(result, groups) for result in found]
    sections += [_comparison_lines(comparison, groups) for comparison in compared]
    sections += [_pair_lines(pair) for pair in judged]
    write("\n\n".join("\n".join(lines) for lines in sections))


def _tasks(names: Sequence[str], data: Path, settings: dict[str, dict[str, Any]]) -> list[Task]:
    from dataclasses import fields

    from pymixtral.arguments import refuse_unknown
    from pymixtral.evaluation.tasks.catalogue import TASKS

    tasks = []
    for name in names:
        kind, own = TASKS[name], settings.get(name, {})
        refuse_unknown(own, [field.name for field in fields(kind) if field.name != "data"], f"the task {name}")
        tasks.append(kind(data / name, **own))
    return tasks


def _is_model(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise InvalidArgumentError(
            f"{escaped(str(path))}: expected a model or a file of answers, found an error ({error.strerror}): "
            "check the path"
        ) from error


def _result_lines(result: Result, groups: bool) -> list[str]:
    from pymixtral.evaluation.paper import MODEL, published

    card = result.model
    settings = ", ".join(f"{name} {value}" for name, value in result.task.settings.items())
    speed = f"; {result.items_per_second:.2f} items/s" if result.items_per_second else ""
    lines = [
        wrap(f"{result.task.name}: {_named(card, 40)}, {card.type}, {card.bits_per_weight:.2f} bits per weight"),
        f"{counted(len(result.items), 'item')}; {settings}{speed}",
    ]
    rows = [["figure", "value", "error", "items", MODEL]]
    settings_of = []
    for name, figure in _shown(result.figures, result.task.headline, groups):
        paper = published(result.task.name, name)
        rows.append([name, *_numbers(figure), str(figure.n), f"{paper.value:.3f}" if paper else ""])
        if paper and paper.setting not in settings_of:
            settings_of.append(paper.setting)
    lines += table(rows if settings_of else [row[:4] for row in rows], "<>>>>" if settings_of else "<>>>")
    if settings_of:
        lines.append(wrap(f"{MODEL} as arXiv 2401.04088 has it: {'; '.join(settings_of)}.", "  "))
    return lines


def _comparison_lines(comparison: Comparison, groups: bool) -> list[str]:
    base, other = comparison.base, comparison.other
    lines = [
        wrap(f"{base.task.name}: {_named(other.model, 30)} minus {_named(base.model, 30)}"),
        f"{counted(comparison.n_items, 'item')} that both answered",
    ]
    if comparison.gained is not None:
        lines[-1] += f"; right in the first alone {comparison.gained}, in the second alone {comparison.lost}"
    rows = [["figure", "difference", "error", "95% interval"]]
    for name, figure in _shown(comparison.differences, base.task.headline, groups):
        low, high = figure.interval
        interval = "" if math.isnan(low) else f"{low:+.4f} to {high:+.4f}"
        rows.append([name, *_numbers(figure, "+"), interval])
    return lines + table(rows, "<>>>")


def _pair_lines(pair: Pairs) -> list[str]:
    value, error = _numbers(pair.win_rate)
    return [
        wrap(f"mt_bench in pairs: {_named(pair.other.model, 30)} against {_named(pair.base.model, 30)}"),
        f"{counted(pair.n_items, 'item')} that both answered",
        *table([["figure", "value", "error"], ["win_rate", value, error]], "<>>"),
    ]


def _named(card: Card, width: int) -> str:
    """A model's name, and what was chosen when it was opened: one file may answer in several ways."""
    chosen = ", ".join(f"{key} {value}" for key, value in card.overrides.items())
    return shorten(card.name, width) + (f" ({shorten(chosen, 60)})" if chosen else "")


def _shown(figures: Any, headline: Sequence[str], groups: bool) -> list[tuple[str, Estimate]]:
    return [(name, figure) for name, figure in figures.items() if groups or name in headline]


def _numbers(figure: Estimate, sign: str = "") -> list[str]:
    value, error = figure.value, figure.standard_error
    return [
        "" if math.isnan(value) else f"{value:{sign}.4f}",
        "" if math.isnan(error) else f"{error:.4f}",
    ]
