"""The command `pymixtral deploy`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from pymixtral.cli.choices import MIXES, MODELS
from pymixtral.cli.options import json_option, kv_type_option, whole_context_option
from pymixtral.cli.text import shorten, table, wrap, write, write_json
from pymixtral.units import show_bytes

if TYPE_CHECKING:
    from pymixtral.inspection.instances import Instance
    from pymixtral.inspection.inventory import Inventory
    from pymixtral.model.footprint import Footprint

_CLOUDS = {"aws": "AWS", "gcp": "Google", "azure": "Azure"}


def _model(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, str] | Path:
    """A published model and a type, such as 8x7b-q4_k_m, as that pair; or a file, as its path."""
    model, _, mix = value.lower().partition("-")
    if model in MODELS and mix in MIXES:
        return model, mix
    if value.endswith(".gguf") or os.sep in value:
        return Path(value)
    raise click.BadParameter(
        f"expected a model and a type, such as 8x7b-q4_k_m, or a file that ends in .gguf, found {value!r}: "
        f"models are {', '.join(MODELS)}, types are {', '.join(MIXES)}",
        ctx,
        param,
    )


def _completions(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
    names = [name for model in MODELS for mix in MIXES if (name := f"{model}-{mix}").startswith(incomplete)]
    return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="file")]


@click.command(
    epilog="""\b
Examples:
  pymixtral deploy --for 8x7b-q4_k_m
  pymixtral deploy --for 8x22b-q4_k_m -c 16384 --kv-type q8_0 --json"""
)
@click.option(
    "--for",
    "model",
    callback=_model,
    shell_complete=_completions,
    metavar="MODEL",
    required=True,
    help="A published model and a type, such as 8x7b-q4_k_m, or a GGUF file.",
)
@whole_context_option
@kv_type_option
@json_option
def deploy(model: tuple[str, str] | Path, n_ctx: int | None, kv_type: str, as_json: bool) -> None:
    """Show the smallest machines of clouds that hold a model.

    Of each current series of AWS, Google Cloud and Azure with a suitable CPU it is the smallest
    size whose memory holds the weights and the keys and values of one whole context. Contexts says
    how many texts of that length have room together. The sizes are as in pymixtral plan.
    """
    from pymixtral.cli.plan import of_file, of_published
    from pymixtral.errors import UnsupportedError
    from pymixtral.inspection import instances
    from pymixtral.inspection.mixes import mixed
    from pymixtral.model.config import context_length
    from pymixtral.model.footprint import footprint

    mix = None
    if isinstance(model, Path):
        config, inventory, problem = of_file(model)
        if problem:
            raise UnsupportedError(f"{model}: {problem}")
    else:
        config, inventory, _ = of_published(model[0])
        mix = model[1]
        inventory = mixed(inventory, mix)
    n_ctx = context_length(config, n_ctx or config.n_ctx_train)
    memory = footprint(config, inventory.n_bytes, n_ctx, kv_type)
    found = instances.smallest(memory)
    if as_json:
        write_json(
            {
                "model": config.name,
                "type": mix,
                "context": n_ctx,
                "kv_type": kv_type,
                "memory": {**asdict(memory), "total": memory.total},
                "gathered": instances.GATHERED,
                "sources": instances.SOURCES,
                "instances": [{**asdict(one), "usable": one.usable, "contexts": one.contexts(memory)} for one in found],
            }
        )
    else:
        write("\n".join(_report(f"{shorten(config.name, 60)}, {_types(mix, inventory)}", n_ctx, memory, found)))


def _types(mix: str | None, inventory: Inventory) -> str:
    return mix or " + ".join([kind.name.lower() for kind in inventory.types if kind.name != "F32"] or ["f32"])


def _report(title: str, n_ctx: int, memory: Footprint, found: list[Instance]) -> list[str]:
    from pymixtral.inspection.instances import GATHERED

    head = [
        title,
        f"{show_bytes(memory.weights)} of weights, {show_bytes(memory.kv)} of keys and values "
        f"for a context of {n_ctx} tokens",
        "",
    ]
    if not found:
        return [*head, "No machine in the table holds it: choose a smaller type or a shorter context (-c)."]
    rows = [["cloud", "instance", "vCPUs", "GiB", "CPU", "contexts"]]
    for one in found:
        rows.append([_CLOUDS[one.cloud], one.name, str(one.vcpus), str(one.gib), one.cpu, str(one.contexts(memory))])
    return [
        *head,
        *table(rows, "<<>><>"),
        "",
        wrap(
            f"The table is of {GATHERED}; --json names its sources. More vCPUs bring a larger share of a machine's "
            "memory bandwidth, and so more tokens a second: pymixtral doctor measures it."
        ),
    ]
