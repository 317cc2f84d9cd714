"""The command `pymixtral convert-adapter`."""

from __future__ import annotations

from pathlib import Path

import click

from pymixtral.cli.options import force_option, json_option, path_type
from pymixtral.cli.text import write, write_json


@click.command(
    name="convert-adapter",
    epilog="""\b
Examples:
  pymixtral convert-adapter tales-lora tales.gguf --base mixtral.gguf
  pymixtral convert-adapter tales-lora tales.gguf --base Mixtral-8x7B-v0.1
  pymixtral convert-adapter tales-lora.gguf tales-peft --base mixtral.gguf""",
)
@click.argument("source", type=path_type())
@click.argument("dest", type=path_type())
@click.option(
    "--base",
    type=path_type(),
    metavar="MODEL",
    required=True,
    help="The model that the adapter is for: a GGUF file, or a checkpoint's folder, of which config.json or "
    "params.json is enough.",
)
@force_option
@json_option
def convert_adapter(source: Path, dest: Path, base: Path, force: bool, as_json: bool) -> None:
    """Write an adapter for PEFT or for llama.cpp.

    SOURCE is a low-rank adapter (LoRA): a folder of PEFT (adapter_config.json,
    adapter_model.safetensors) or of Mistral (params.json, lora.safetensors), or a GGUF file. Where
    DEST ends in .gguf, it is a GGUF file, which llama.cpp and pymixtral read; else it is a folder of
    PEFT, with the names of transformers 4. Numbers are f32, and the scale of each pair is in them, so
    that alpha is not needed any more.

    pymixtral itself reads all three forms: it needs no conversion.
    """
    from pymixtral.quantize import convert_adapter as run
    from pymixtral.units import show_bytes

    result = run(source, dest, base, force=force)
    if as_json:
        write_json(result.to_json())
    else:
        write(f"{dest}: {result.n_pairs} pairs, rank up to {result.rank}, {show_bytes(result.n_bytes)}")
