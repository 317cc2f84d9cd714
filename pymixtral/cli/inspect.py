"""The command `pymixtral inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pymixtral.cli.model import model_path, same_model
from pymixtral.cli.options import context_option, json_option, model_argument, model_option, override_options
from pymixtral.cli.text import WIDTH, shorten, table, wrap, write, write_json
from pymixtral.units import show_bytes, show_count

if TYPE_CHECKING:
    from pymixtral.files.header import Value
    from pymixtral.inspection.inspect import Inspection
    from pymixtral.model.overrides import Override


@click.command(
    epilog="""\b
Examples:
  pymixtral inspect mixtral-q4_0.gguf
  pymixtral inspect mixtral-q4_0.gguf -c 32768
  pymixtral inspect mixtral-q4_0.gguf --verify
  pymixtral inspect mixtral-q4_0.gguf --json > mixtral.json""",
)
@model_argument
@model_option
@context_option()
@click.option("--verify", is_flag=True, help="Read all weights too, and look for damage.")
@override_options
@json_option
@click.pass_context
def inspect(
    ctx: click.Context,
    /,
    subject: Path | None,
    model: Path | None,
    n_ctx: int | None,
    verify: bool,
    experts_used: int | list[int] | None,
    overrides: dict[str, Override],
    as_json: bool,
) -> None:
    """Show what a model file holds.

    MODEL, or -m, is a GGUF file. Shown are its metadata, its tensors by class, the parameters of
    the model and those that a token uses, and the memory that it takes to run with a context of -c
    tokens. Only the head of the file is read, which takes a moment whatever its size. --verify
    reads all of it: every tensor must be there, have its shape, and hold no NaN or infinity. The
    first damage is named, with exit code 2. GB is 10^9 bytes.
    """
    from pymixtral.inspection.inspect import inspect as run

    path = model_path(same_model(ctx, subject, model))
    found = run(path, experts_used=experts_used, overrides=overrides)
    n_verified = None
    if verify:
        from pymixtral.inspection.verify import verify as check

        n_verified = check(path, experts_used=experts_used, overrides=overrides)
    if as_json:
        write_json({**found.to_json(n_ctx), "verified": verify})
    else:
        write("\n".join([*_lines(found, n_ctx), *(["", f"Verified: {n_verified} tensors"] if verify else [])]))


def _lines(found: Inspection, n_ctx: int | None) -> list[str]:
    lines = [
        shorten(found.path, 4096),
        f"GGUF version {found.version}, {show_bytes(found.file_bytes)}",
        "",
        *_model(found),
    ]
    lines += ["", "Tensors", *_tensors(found)]
    lines += _memory(found, n_ctx)
    lines += ["", f"Metadata ({len(found.metadata)} keys)"]
    return lines + _metadata(found.metadata)


def _model(found: Inspection) -> list[str]:
    inventory, c = found.inventory, found.config
    lines = []
    if c is None:
        lines.append(f"Model       unknown; {show_count(inventory.n_weights)} parameters")
    else:
        fewest = min(c.experts_used)
        used = f"{fewest} to {c.n_experts_used}" if fewest < c.n_experts_used else f"{c.n_experts_used}"
        experts = f"{c.n_experts} experts, {used} used by a token" if c.n_experts > 1 else "dense"
        window = f", window {c.window}" if c.window else ""
        lines += [
            f"Model       {shorten(c.name, WIDTH - 12)}",
            f"            {experts}; {c.n_layers} layers, width {c.hidden}, inner {c.ffn}",
            f"            {c.n_heads} heads of {c.head_dim}, {c.n_kv_heads} of keys and values",
            f"            vocabulary {c.n_vocab}, context {c.n_ctx_train}{window}",
            f"Parameters  {show_count(inventory.n_weights)} in all, "
            f"{show_count(inventory.active_weights)} active for a token",
        ]
    lines.append(f"Tokenizer   {'yes' if found.has_tokenizer else 'none: text cannot be used, token ids can'}")
    runs = f"no: {found.problem}" if found.problem else "yes"
    return [*lines, "Runs here   " + wrap(shorten(runs, 400), " " * 12).lstrip()]


def _tensors(found: Inspection) -> list[str]:
    inventory = found.inventory
    rows = [["class", "count", "parameters", "size", "bits each", "types"]]
    rows += [
        [
            name,
            str(total.n_tensors),
            show_count(total.n_weights),
            show_bytes(total.n_bytes),
            f"{total.bits_per_weight:.2f}",
            ", ".join(kind.name.lower() for kind in total.types),
        ]
        for name, total in inventory.classes.items()
    ]
    rows.append(
        [
            "in all",
            str(len(inventory.parts)),
            show_count(inventory.n_weights),
            show_bytes(inventory.n_bytes),
            f"{inventory.bits_per_weight:.2f}",
            "",
        ]
    )
    return [line if len(line) <= WIDTH else line[: WIDTH - 3] + "..." for line in table(rows, "<>>>><")]


def _memory(found: Inspection, n_ctx: int | None) -> list[str]:
    from pymixtral.model.config import context_length
    from pymixtral.model.footprint import kv_bytes_per_token

    memory = found.footprint(n_ctx)
    if found.config is None or memory is None:
        return []
    context = context_length(found.config, n_ctx)
    rows = [
        ["weights, mapped from the file", show_bytes(memory.weights), ""],
        ["keys and values, in f16", show_bytes(memory.kv), f"{show_bytes(kv_bytes_per_token(found.config))} a token"],
        ["working memory, estimated", show_bytes(memory.working), ""],
        ["in all", show_bytes(memory.total), ""],
        ["read for each generated token", show_bytes(found.inventory.active_bytes), "of weights"],
    ]
    return ["", f"Memory with a context of {context} tokens", *table(rows, "<><")]


def _metadata(metadata: dict[str, Value]) -> list[str]:
    keys = [shorten(key, 40) for key in metadata]
    width = max(map(len, keys), default=0)
    return [
        f"  {key:{width}}  {shorten(_shown(value), WIDTH - 4 - width)}"
        for key, value in zip(keys, metadata.values(), strict=True)
    ]


def _shown(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.7g}"
    if isinstance(value, (int, str)):
        return str(value)
    items = ", ".join(repr(item) if isinstance(item, str) else str(item) for item in value[:8])
    return f"{len(value)}: {items}"
