"""The command `pymixtral convert-layout`."""

from __future__ import annotations

from pathlib import Path

import click

from pymixtral.cli.options import force_option, json_option, path_type, size
from pymixtral.cli.text import write_data, write_json


@click.command(
    name="convert-layout",
    epilog="""\b
Examples:
  pymixtral convert-layout mixtral-of-2023.gguf mixtral.gguf --layout merged
  pymixtral convert-layout mixtral-00001-of-00003.gguf mixtral.gguf
  pymixtral convert-layout mixtral.gguf parts.gguf --max-shard-size 4G""",
)
@click.argument("source", type=path_type())
@click.argument("dest", type=path_type())
@click.option(
    "--layout", type=click.Choice(["merged", "split"]), help="How the experts are stored.  [default: as they are]"
)
@click.option(
    "--max-shard-size",
    "max_shard_bytes",
    callback=size,
    metavar="SIZE",
    help="Begin a new file at so many bytes of weights, such as 4G.  [default: one file]",
)
@force_option
@json_option
def convert_layout(
    source: Path, dest: Path, layout: str | None, max_shard_bytes: int | None, force: bool, as_json: bool
) -> None:
    """Merge or split the experts or the files of a model.

    SOURCE is a GGUF file, or any file of a model in several. DEST is the file to write. Merged
    experts are one tensor for all experts of a layer, as in the files of today. Split experts are
    one tensor each, as in files of December 2023, which other programs refuse by now. Without
    --max-shard-size, the model becomes one file; with it, DEST.gguf becomes
    DEST-00001-of-0000N.gguf and so on. Weights and metadata stay the same. The names of the new
    files are printed. G and GB are 10^9 bytes, GiB is 2^30.
    """
    from pymixtral.files.layout import convert_layout as run

    files = [str(path) for path in run(source, dest, layout=layout, max_shard_bytes=max_shard_bytes, force=force)]
    if as_json:
        write_json({"files": files})
    else:
        for file in files:
            write_data(file)
            write_data("\n", keep="\n")
