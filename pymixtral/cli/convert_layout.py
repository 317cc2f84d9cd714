"""The command `pymixtral convert-layout`."""

from __future__ import annotations

from pathlib import Path

import click

from pymixtral.cli.options import size


@click.command(
    name="convert-layout",
    epilog="""\b
Examples:
  pymixtral convert-layout mixtral-of-2023.gguf mixtral.gguf --layout merged
  pymixtral convert-layout mixtral-00001-of-00003.gguf mixtral.gguf
  pymixtral convert-layout mixtral.gguf parts.gguf --max-shard-size 4G""",
)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--layout", type=click.Choice(["merged", "split"]), help="How the experts are kept.  [default: as they are]")
@click.option(
    "--max-shard-size",
    "max_shard_bytes",
    callback=size,
    metavar="SIZE",
    help="Bytes of weights in one file, such as 4G.  [default: one file]",
)
@click.option("--force", is_flag=True, help="Replace DEST if it exists.")
def convert_layout(source: Path, dest: Path, layout: str | None, max_shard_bytes: int | None, force: bool) -> None:
    """Write a GGUF file in another layout.

    SOURCE is a GGUF file or any shard of a model in several; DEST the file to write. Split experts, one tensor each, are the form of
    files of December 2023, which current programs other than this one refuse; merged ones are today's. With --max-shard-size, DEST.gguf
    becomes DEST-00001-of-0000N.gguf and so on. Weights and metadata are copied as they are. G and GB are 10^9 bytes, GiB is 2^30.
    """
    from pymixtral.files.layout import convert_layout as run

    for path in run(source, dest, layout=layout, max_shard_bytes=max_shard_bytes, force=force):
        click.echo(str(path))
