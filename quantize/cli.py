"""The command `pymixtral quantize`."""

from __future__ import annotations

from pathlib import Path

import click

from .convert import quantize as run
from .recipe import TYPES


@click.command(
    epilog="""\b
Examples:
  pymixtral quantize Mixtral-8x7B-v0.1 mixtral-q8_0.gguf
  pymixtral quantize Mixtral-8x7B-v0.1 mixtral-q4_0.gguf --type q4_0
  pymixtral quantize ~/models/my-merge my-merge.gguf --type f16 --force""",
)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@click.option(
    "--type",
    "kind",
    type=click.Choice(list(TYPES)),
    default="q8_0",
    show_default=True,
    help="Type of the matrices; norms and router are f32.",
)
@click.option("-t", "--threads", type=click.IntRange(1, 256), default=None, help="Threads to use.  [default: one per core]")
@click.option("--force", is_flag=True, help="Replace DEST if it exists.")
def quantize(source: Path, dest: Path, kind: str, threads: int | None, force: bool) -> None:
    """Write a checkpoint as a GGUF file.

    SOURCE is a Hugging Face directory of a Mixtral or a dense Mistral: config.json, safetensors (single or sharded) and
    tokenizer.model. DEST is the file to write; it appears only when it is complete.
    """
    click.echo(run(source, dest, kind, n_threads=threads, force=force))
