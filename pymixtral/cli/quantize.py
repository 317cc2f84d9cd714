"""The command `pymixtral quantize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pymixtral.cli.options import size
from pymixtral.quantize.recipe import RECIPES


def _tensors(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, str]]:
    """PATTERN=TYPE as pairs."""
    pairs = []
    for value in values:
        pattern, equals, kind = value.rpartition("=")
        if not equals or not pattern:
            raise click.BadParameter(f"expected PATTERN=TYPE, such as blk.*.ffn_down_exps.weight=q6_k, found {value!r}", ctx, param)
        pairs.append((pattern, kind.lower()))
    return pairs


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
  pymixtral quantize my-merge my-merge.gguf --type q4_k_m \\
    --tensor 'blk.[01].*=q8_0' --tensor output.weight=q8_0""",
)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path), required=False)
@click.option(
    "--type",
    "kind",
    type=click.Choice(RECIPES, case_sensitive=False),
    metavar="TYPE",
    help=f"Type of the matrices, or a mix; from most bits to fewest {', '.join(RECIPES)}.  [default: q8_0]",
)
@click.option(
    "--tensor",
    "tensors",
    metavar="PATTERN=TYPE",
    multiple=True,
    callback=_tensors,
    help="Type of the tensors of a GGUF name or a pattern of names; repeatable, the last counts.",
)
@click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix: pymixtral calibrate's, or llama.cpp's (gguf, dat).")
@click.option("--target-size", callback=size, metavar="SIZE", help="Choose types for a file of at most this size: 20GiB, 21.5GB.")
@click.option("--target-bpw", type=click.FloatRange(1, 32), metavar="BITS", help="Choose types for so many bits per weight, such as 3.5.")
@click.option(
    "--per-expert",
    is_flag=True,
    help="Write a tensor for each expert, so that each may have its own type. pymixtral reads such files; llama.cpp has not since 2024.",
)
@click.option(
    "--zero-nonfinite",
    is_flag=True,
    help="Write weights that are NaN or infinite as 0 and report them, instead of refusing the checkpoint.",
)
@click.option("--dry-run", is_flag=True, help="Print types and sizes; write nothing.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write the report as JSON too, with each expert's error.")
@click.option("--heatmap", type=click.Path(path_type=Path, dir_okay=False), help="Draw errors by layer and expert to a PNG (extra [plot]).")
@click.option("-t", "--threads", type=click.IntRange(1, 256), default=None, help="Threads to use.  [default: one per core]")
@click.option("--force", is_flag=True, help="Replace files that exist: DEST, and those of --report and --heatmap.")
@click.option("--no-verify", is_flag=True, help="Do not read the file back and compare it with what was written.")
@click.pass_context
def quantize(
    ctx: click.Context,
    /,
    source: Path,
    dest: Path | None,
    kind: str | None,
    tensors: list[tuple[str, str]],
    imatrix: Path | None,
    target_size: int | None,
    target_bpw: float | None,
    per_expert: bool,
    zero_nonfinite: bool,
    dry_run: bool,
    report: Path | None,
    heatmap: Path | None,
    threads: int | None,
    force: bool,
    no_verify: bool,
) -> None:
    """Write a checkpoint as a GGUF file.

    SOURCE is the directory of a Mixtral or a dense Mistral in Hugging Face's form (config.json, safetensors) or in Mistral's own
    (params.json, consolidated.safetensors), or a GGUF file. DEST is the file to write; it appears only when it is complete, read back and
    found equal to what was written. Norms and routers are f32 in every type.

    Of the types, q8_0 is hardly worse than the original, and q4_k_m little worse in half the size. A mix such as q4_k_m or q4_0 gives
    some tensors more bits: those that llama.cpp's gives more, and in a Mixtral all that every token passes, output, embedding and
    attention, 3% of the weights. --tensor '*=q4_0' makes all alike.

    With --target-size or --target-bpw the rules are made for this model: sampled rows show the error of each type in each matrix, and of
    the types that fit those are chosen whose squared relative errors, times what errors of that kind and place do to predictions, add up
    to the least. They are better than a mix of the same size.

    An importance matrix makes both better, most below 4 bits: make one with pymixtral calibrate. With --per-expert, a target gives more
    bits to the experts that need them.
    """
    if sum(value is not None for value in (kind, target_size, target_bpw)) > 1:
        raise click.UsageError("expected one of --type, --target-size and --target-bpw, found more", ctx)
    if dest is None and not dry_run:
        raise click.UsageError("expected DEST, the file to write, or --dry-run", ctx)
    if dry_run and (report or heatmap):
        raise click.UsageError("expected --report and --heatmap without --dry-run, which measures no errors", ctx)
    from pymixtral.files.atomic import check_dest, replacing
    from pymixtral.quantize import convert, heat
    from pymixtral.quantize.sources.opening import open_checkpoint

    if dest and (dry_run or report or heatmap):
        # Before hours of work, though convert.quantize looks at DEST itself.
        checkpoint = open_checkpoint(source)
        used = [*checkpoint.used, *([imatrix] if imatrix else [])]
        for path in (dest, report, heatmap):
            if path:
                check_dest(path, used, force)
                used.append(path)
        if heatmap:
            heat.check(checkpoint)
    options: dict[str, Any] = {
        "tensors": tensors,
        "imatrix": imatrix,
        "target_bytes": target_size,
        "target_bpw": target_bpw,
        "per_expert": per_expert,
        "zero_nonfinite": zero_nonfinite,
        "n_threads": threads,
    }
    if dry_run:
        click.echo(convert.plan(source, kind, **options))
        return
    assert dest is not None
    result = convert.quantize(source, dest, kind, force=force, verify=not no_verify, **options)
    click.echo(result)
    if report:
        with replacing(report, force=force) as temporary:
            temporary.write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
    if heatmap:
        with replacing(heatmap, force=force) as temporary:
            heat.draw(result, temporary)
