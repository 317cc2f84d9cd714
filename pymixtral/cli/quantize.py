"""The command `pymixtral quantize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pymixtral.cli.choices import RECIPES
from pymixtral.cli.model import note_threads
from pymixtral.cli.options import force_option, json_option, parse_adapters, path_type, size, threads_option
from pymixtral.cli.text import write, write_json

if TYPE_CHECKING:
    from pymixtral.quantize import Plan, Report


def _tensors(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, str]]:
    """PATTERN=TYPE as pairs."""
    pairs = []
    for value in values:
        pattern, equals, kind = value.rpartition("=")
        if not equals or not pattern:
            raise click.BadParameter(
                f"expected PATTERN=TYPE, such as blk.*.ffn_down_exps.weight=q6_k, found {value!r}", ctx, param
            )
        pairs.append((pattern, kind.lower()))
    return pairs


def _adapters(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[tuple[Path, float]]:
    """`[NAME=]PATH[:SCALE]` as pairs, by the rules of other commands; names have no use here."""
    found = parse_adapters(ctx, param, values)
    return [(path, found["adapter"][name]) for name, path in found["adapters"].items()]


@click.command(
    epilog="""\b
Examples:
  pymixtral quantize Mixtral-8x7B-v0.1 mixtral-q8_0.gguf
  pymixtral quantize Mixtral-8x7B-v0.1 mixtral-q4_k_m.gguf --type q4_k_m \\
    --imatrix imatrix.gguf
  pymixtral quantize Mixtral-8x7B-v0.1 mixtral-20g.gguf --target-size 20GiB \\
    --imatrix imatrix.gguf
  pymixtral quantize Mixtral-8x7B-v0.1 --target-bpw 3.5 --dry-run
  pymixtral quantize Mixtral-8x7B-v0.1 mixtral-3bit.gguf --target-bpw 3 \\
    --per-expert --imatrix imatrix.gguf
  pymixtral quantize Mixtral-8x7B-AWQ mixtral-awq.gguf
  pymixtral quantize my-merge my-merge.gguf --type q4_k_m \\
    --tensor 'blk.[01].*=q8_0' --tensor output.weight=q8_0
  pymixtral quantize Mixtral-8x7B-v0.1 tales-q4_k_m.gguf --type q4_k_m \\
    --adapter tales-lora""",
)
@click.argument("source", type=path_type())
@click.argument("dest", type=path_type(), required=False)
@click.option(
    "--type",
    type=click.Choice(RECIPES, case_sensitive=False),
    metavar="TYPE",
    help=f"Type of the matrices, or a mix; from most bits to fewest {', '.join(RECIPES)}.  "
    "[default: q8_0; q4_1 of a checkpoint by GPTQ or AWQ]",
)
@click.option(
    "--tensor",
    "tensors",
    metavar="PATTERN=TYPE",
    multiple=True,
    callback=_tensors,
    help="Type of the tensors with this GGUF name, or a name of this pattern; "
    "may be repeated, and the last that matches counts.",
)
@click.option(
    "--imatrix", type=path_type(), metavar="FILE", help="An importance matrix, of pymixtral calibrate or llama.cpp."
)
@click.option(
    "--target-size",
    "target_bytes",
    callback=size,
    metavar="SIZE",
    help="Choose types for a file of at most this size, such as 20GiB or 21.5GB.",
)
@click.option(
    "--target-bpw",
    type=click.FloatRange(1, 32),
    metavar="BITS",
    help="Choose types for so many bits per weight, such as 3.5.",
)
@click.option(
    "--per-expert",
    is_flag=True,
    help="Write each expert as tensors of its own, with types of its own. "
    "pymixtral reads such files, llama.cpp does not since 2024.",
)
@click.option(
    "--adapter",
    "adapters",
    metavar="PATH[:SCALE]",
    multiple=True,
    callback=_adapters,
    help="Add what a low-rank adapter (LoRA), a file or a folder, changes, times SCALE; may be repeated.",
)
@click.option("--zero-nonfinite", is_flag=True, help="Write weights that are NaN or infinite as 0, and report them.")
@click.option(
    "--no-tokenizer",
    is_flag=True,
    help="Write no vocabulary, so that the file takes token ids only; without it, a checkpoint needs a tokenizer.",
)
@click.option("--dry-run", is_flag=True, help="Print types and sizes, and write nothing.")
@click.option(
    "--report",
    type=path_type(),
    metavar="FILE",
    help="Write a report, too: JSON with the error of each tensor and expert.",
)
@click.option(
    "--heatmap",
    type=path_type(),
    metavar="FILE",
    help="Draw the errors of layers and experts, a PNG; needs pymixtral[plot].",
)
@click.option("--no-verify", is_flag=True, help="Do not read the file back to compare it with what was written.")
@threads_option
@force_option
@json_option
@click.pass_context
def quantize(
    ctx: click.Context,
    /,
    source: Path,
    dest: Path | None,
    type: str | None,
    report: Path | None,
    heatmap: Path | None,
    dry_run: bool,
    no_verify: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write a checkpoint as a GGUF file.

    SOURCE is a directory with a Mixtral or a Mistral 7B, in the form of Hugging Face (config.json,
    safetensors) or of Mistral (params.json, consolidated.safetensors), or a GGUF file. DEST is the
    file to write. It appears when it is complete, has been read back, and is equal to what was
    written.

    Of the types, q8_0 is hardly worse than the original, and q4_k_m is a little worse at about half
    the size of q8_0. Most types are mixes: the tensors that matter most have more bits. --tensor
    '*=q4_0' makes all alike. Norms and routers are always f32.

    With --target-size or --target-bpw, types are chosen for this model: the error of each type in
    each matrix is measured, and of all files of that size the one with the smallest error is
    written. It is better than a mix of the same size. An importance matrix, which pymixtral
    calibrate measures, makes both better, most of all below 4 bits. With --per-expert, a target
    gives more bits to experts that need them.

    With --adapter, the weights become those of the model with the adapter, before they are encoded:
    the file needs no adapter any more.

    SOURCE may be a checkpoint that GPTQ or AWQ made, of 4 bits in groups of 32 or a multiple. As
    q4_1 its codes are kept; other types encode its weights again, which adds errors.
    """
    if sum(value is not None for value in (type, options["target_bytes"], options["target_bpw"])) > 1:
        raise click.UsageError("expected one of --type, --target-size and --target-bpw, found more", ctx)
    if dest is None and not dry_run:
        raise click.UsageError("expected DEST, the file to write, or --dry-run", ctx)
    if dry_run and (report or heatmap):
        raise click.UsageError("expected --report and --heatmap without --dry-run, which measures no errors", ctx)
    from pymixtral.files.atomic import check_dest, replacing
    from pymixtral.quantize import convert, heat
    from pymixtral.quantize.sources.opening import open_checkpoint

    note_threads(options["n_threads"])
    if dest and (dry_run or report or heatmap):
        # Before hours of work. convert.quantize looks at DEST alone.
        checkpoint = open_checkpoint(source)
        imatrix = options["imatrix"]
        used = [*checkpoint.used, *([imatrix] if imatrix else [])]
        for path in (dest, report, heatmap):
            if path:
                check_dest(path, used, force)
                used.append(path)
        if heatmap:
            heat.check(checkpoint)
    if dry_run:
        planned = convert.plan(source, type, **options)
        _show(planned, as_json)
        return
    assert dest is not None
    result = convert.quantize(source, dest, type, force=force, verify=not no_verify, **options)
    _show(result, as_json)
    if report:
        with replacing(report, force=force) as temporary:
            temporary.write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
    if heatmap:
        with replacing(heatmap, force=force) as temporary:
            heat.draw(result, temporary)


def _show(result: Plan | Report, as_json: bool) -> None:
    if as_json:
        write_json(result.to_json())
    else:
        write(str(result))
