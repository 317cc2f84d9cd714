"""The command `pymixtral plan`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pymixtral.cli.choices import MIXES, MODELS
from pymixtral.cli.model import is_named, model_path, note_threads, same_model
from pymixtral.cli.options import (
    context_option,
    json_option,
    kv_type_option,
    model_argument,
    model_option,
    threads_option,
)
from pymixtral.cli.text import shorten, table, wrap, write, write_json
from pymixtral.units import show_bytes, show_count

if TYPE_CHECKING:
    from pymixtral.inspection.inventory import Inventory
    from pymixtral.inspection.plan import Plan
    from pymixtral.inspection.probe import DiskRate
    from pymixtral.model.config import ModelConfig


@click.command(
    epilog="""\b
Examples:
  pymixtral plan mixtral-q4_0.gguf
  pymixtral plan mixtral-q4_0.gguf -c 32768 -t 8

\b
Which type of Mixtral 8x7B to download or make?
  pymixtral plan --params 8x7b
  pymixtral plan --params 8x7b --type q4_k_m

\b
What would quantizing a file bring?
  pymixtral plan mixtral-f16.gguf --type q4_0""",
)
@model_argument
@model_option
@click.option("--params", type=click.Choice(MODELS), help="Plan for a published model in place of a file.")
@click.option(
    "--type",
    "mix",
    type=click.Choice(MIXES, case_sensitive=False),
    metavar="TYPE",
    help=f"Think of the weights in this type: {', '.join(MIXES)}.  [default: the file's; all with --params]",
)
@context_option()
@kv_type_option
@threads_option
@json_option
@click.pass_context
def plan(
    ctx: click.Context,
    /,
    subject: Path | None,
    model: Path | None,
    params: str | None,
    mix: str | None,
    n_ctx: int | None,
    kv_type: str,
    n_threads: int | None,
    as_json: bool,
) -> None:
    """Say whether a model fits, and how fast it can be.

    MODEL, or -m, is a GGUF file. The memory that it takes is compared with what this machine has.
    The read bandwidth of memory is measured, which takes about a second: divided by the bytes of
    weights that a token needs, it is the predicted speed. int8 products are measured for prompts, and
    where the model does not fit, its disk. Real speed stays somewhat below. A type such as q4_k_m is a
    mix, in which some tensors have more bits than others. Its size is that of a file of pymixtral
    quantize; those of llama.cpp differ by less than 0.5%. GB is 10^9 bytes.
    """
    model = same_model(ctx, subject, model)
    if params and is_named(ctx):
        raise click.UsageError("expected a model file or --params, found both", ctx)
    from pymixtral import ops
    from pymixtral.demo import demo_path
    from pymixtral.inspection import machine, probe
    from pymixtral.inspection import plan as planning
    from pymixtral.model.config import context_length

    if params:
        path, (config, inventory, problem) = demo_path(), of_published(params)
    else:
        path = model_path(model)
        config, inventory, problem = of_file(path)
    n_ctx = context_length(config, n_ctx)
    memory = machine.memory()
    note_threads(n_threads)
    n_threads = n_threads or ops.thread_limits().default
    bandwidth = probe.read_bandwidth([n_threads], memory.usable)[n_threads]
    rates: dict[str, Any] = {"kv_type": kv_type, "gmacs": probe.int8_rate(n_threads).gmacs}
    choices = planning.plans(config, inventory, n_ctx, memory, bandwidth, **rates)
    every = bool(params) and mix is None
    if not every:
        found = None if mix else problem
        one = planning.plan(config, inventory, n_ctx, memory, bandwidth, mix=mix, problem=found, **rates)
    if any(choice.disk_bytes_per_token for choice in (choices if every else [one])):
        disk = probe.disk_rate(path)
    else:
        disk = None
    if disk and every:
        choices = [replace(choice, disk=disk) for choice in choices]
    elif disk:
        one = replace(one, disk=disk)
    best = planning.largest_that_fits(choices)
    if every:
        measured = f"{bandwidth:.1f} GB/s with {n_threads} thread{'s' * (n_threads > 1)}"
        if as_json:
            write_json({"plans": [choice.to_json() for choice in choices], "choose": best.type if best else None})
        else:
            write("\n".join(_choices(choices, best, measured, _disk(disk))))
    elif as_json:
        fits = one.verdict == "fits" and one.problem is None
        write_json(one.to_json() | {"threads": n_threads, "choose": one.type if fits or best is None else best.type})
    else:
        write("\n".join(_one(one, choices, best, n_threads, _disk(disk))))


def of_published(name: str) -> tuple[ModelConfig, Inventory, str | None]:
    """What of_file() returns, of a published model."""
    from pymixtral.inspection import published
    from pymixtral.inspection.inventory import Inventory

    config = published.MODELS[name]
    return config, Inventory.of_model(config), None


def of_file(path: Path) -> tuple[ModelConfig, Inventory, str | None]:
    """The config and the tensors of a file, and why pymixtral cannot run it, or None."""
    from pymixtral.errors import UnsupportedError
    from pymixtral.inspection.inspect import inspect

    found = inspect(path)
    if found.config is None:
        raise UnsupportedError(f"{found.path}: {found.problem}")
    return found.config, found.inventory, found.problem


def _one(one: Plan, choices: list[Plan], best: Plan | None, n_threads: int, disk: str) -> list[str]:
    inventory, memory = one.inventory, one.memory
    active = f", {show_count(inventory.active_weights)} active for a token" if inventory.expert_bytes else ""
    rows = [
        ["weights", show_bytes(memory.weights)],
        ["keys and values", show_bytes(memory.kv)],
        ["working memory, estimated", show_bytes(memory.working)],
        ["in all", show_bytes(memory.total)],
        ["available now", show_bytes(one.available)],
        ["at most, all else ended", show_bytes(one.limit)],
    ]
    return [
        f"{shorten(one.config.name, 60)}, {_named(one)}: {inventory.bits_per_weight:.2f} bits a weight",
        f"{show_count(inventory.n_weights)} parameters{active}",
        "",
        f"Memory with a context of {one.n_ctx} tokens",
        *table(rows, "<>"),
        "",
        *map(wrap, _verdict(one)),
        *map(wrap, _speed(one, n_threads, disk)),
        *map(wrap, _advice(one, choices, best)),
    ]


def _named(one: Plan) -> str:
    return one.type or " + ".join([kind.name.lower() for kind in one.inventory.types if kind.name != "F32"] or ["f32"])


def _verdict(one: Plan) -> list[str]:
    short = show_bytes(one.memory.total - one.available)
    if one.verdict == "fits":
        return [f"It fits: {show_bytes(one.available - one.memory.total)} of memory are left."]
    if one.verdict == "crowded":
        return [f"It does not fit now, {short} are missing; it would if other programs ended."]
    if one.verdict == "impossible":
        return [
            "It cannot run: keys and values alone are more than the memory of this machine; choose a "
            "shorter context (-c)."
        ]
    return [f"It does not fit: {short} of memory are missing."]


def _disk(disk: DiskRate | None) -> str:
    """What is known of the disk, as an object."""
    from pymixtral.inspection.plan import ORDINARY_DISK

    if disk is None:
        return f"a disk of {ORDINARY_DISK.sequential:g} GB/s, as this one could not be measured"
    return f"a disk that was measured to give {disk.sequential:.2f} GB/s, {disk.random:.2f} in pieces of 1 MB"


def _speed(one: Plan, n_threads: int, disk: str) -> list[str]:
    if one.verdict == "impossible":
        return []
    active = show_bytes(one.inventory.active_bytes)
    bandwidth = f"{one.bandwidth:.1f} GB/s with {n_threads} thread{'s' * (n_threads > 1)}"
    speed = (
        f"{_rate(one.tokens_per_second_in_memory)} at most, {_rate(one.tokens_per_second_full)} when "
        "the context is full "
        f"(a token reads {active} of weights; memory was measured to give {bandwidth})."
    )
    prompts = f"Prompts: {_rate(one.prompt_tokens_per_second)} at most" if one.prompt_tokens_per_second else ""
    if not one.disk_bytes_per_token:
        return [f"Prediction: {speed}", *([f"{prompts}, by the int8 products that were measured."] * bool(prompts))]
    absent = show_bytes(one.disk_bytes_per_token)
    return [
        f"It still runs, paging: the file stays mapped, and of the {active} that a token reads about "
        f"{absent} come from the disk.",
        f"Prediction now: {_rate(one.tokens_per_second)} from {disk}. In memory it would be {speed}",
        *([f"{prompts}, as each {one.n_batch} tokens of a prompt read the whole file once."] * bool(prompts)),
    ]


def _rate(rate: float) -> str:
    return f"{rate:.1f} tokens/s" if rate >= 0.995 else f"{1 / rate:.1f} s a token"


def _advice(one: Plan, choices: list[Plan], best: Plan | None) -> list[str]:
    advice = []
    if one.problem:
        advice.append(f"This version of pymixtral does not run it: {shorten(one.problem, 400)}.")
    elif one.verdict == "fits":
        return advice
    if best is None:
        smallest = next((choice for choice in reversed(choices) if choice.problem is None), None)
        if smallest:
            advice.append(
                f"Nothing that pymixtral runs fits: the smallest type is {smallest.type}, which needs "
                f"{show_bytes(smallest.memory.total)}."
            )
    else:
        speed = _rate(best.tokens_per_second_in_memory)
        advice.append(
            f"Choose {best.type}, the largest type that fits: {show_bytes(best.memory.total)} in all, {speed} at most."
        )
    return advice


def _choices(choices: list[Plan], best: Plan | None, measured: str, disk: str) -> list[str]:
    first = choices[0]
    rows = [["type", "bits each", "weights", "in all", "fits", "tokens/s", ""]]
    for choice in choices:
        note = "<- choose" if choice is best else "no kernel yet" if choice.problem else ""
        fits = {"fits": "yes", "crowded": "not now", "pages": "no, pages", "impossible": "no"}[choice.verdict]
        rate = "" if choice.verdict == "impossible" else f"{choice.tokens_per_second:.2f}"
        size = [show_bytes(choice.memory.weights), show_bytes(choice.memory.total)]
        rows.append([str(choice.type), f"{choice.inventory.bits_per_weight:.2f}", *size, fits, rate, note])
    active = (
        f", {show_count(first.inventory.active_weights)} active for a token" if first.inventory.expert_bytes else ""
    )
    end = f"Choose {best.type}, the largest type that fits." if best else "No type that pymixtral runs fits."
    pages = f"; where the model pages, it reads {disk}" if any(one.disk_bytes_per_token for one in choices) else ""
    return [
        f"{first.config.name}: {show_count(first.inventory.n_weights)} parameters{active}",
        f"Context of {first.n_ctx} tokens; {show_bytes(first.available)} of memory available, "
        f"{show_bytes(first.limit)} at most",
        "",
        *table(rows, "<>>><><"),
        "",
        wrap(f"tokens/s is a prediction, and a limit: memory was measured to give {measured}{pages}."),
        end,
    ]
