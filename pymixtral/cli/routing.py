"""The command `pymixtral routing`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from pymixtral.cli.model import opened
from pymixtral.cli.options import (
    context_option,
    force_option,
    json_option,
    model_option,
    opening_options,
    path_type,
    windows_option,
)
from pymixtral.cli.text import read_text, shorten, table, wrap, write, write_json
from pymixtral.escapes import escaped

if TYPE_CHECKING:
    from pymixtral.evaluation.routing import Usage

_NAME = 32
"""Characters of a domain's name."""

_WIDE = 10
"""Experts that a table of 80 columns has room for."""

_MOST = 6
"""Experts that it names of more."""

_CACHES = (2, 3, 4)
"""Experts kept of each layer, of which the hit rates are printed."""


def _named(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, Path]]:
    """`NAME=FILE`, or FILE, whose name without its ending is the domain's."""
    found = []
    for value in values:
        name, equals, file = value.partition("=")
        if not equals or Path(value).exists():
            name, file = Path(value).stem, value
        if not name:
            raise click.BadParameter(f"expected NAME=FILE, such as code=main.py, found {value!r}", ctx, param)
        found.append((name, Path(str(path_type(exists=True).convert(file, param, ctx)))))
    return found


_KEY = (
    "first, any: tokens with the first, or any, expert of the token before; entropy: of the shares, in bits; weight: "
    "the first expert's, on average; of 2: how often a cache of the 2 last used has the next expert; pair: the two "
    "experts that most tokens have."
)


@click.command(
    epilog="""\b
Examples:
  pymixtral routing -f code=code.txt -f prose=book.txt
  pymixtral routing -m mixtral.gguf -f code.txt -f prose=book.txt \\
    -f prose=chapter.txt --layer 0 --layer 3 --html routing.html
  pymixtral routing -f book.txt --windows 4 --trace trace.npz --json"""
)
@model_option
@click.option(
    "-f",
    "--file",
    "files",
    callback=_named,
    shell_complete=lambda _ctx, _param, incomplete: [CompletionItem(incomplete, type="file")],
    metavar="[NAME=]FILE",
    multiple=True,
    help="Read a text from a file; may be repeated. Texts of one NAME are taken together.",
)
@click.option(
    "--layer",
    "layers",
    type=click.IntRange(min=0),
    metavar="N",
    multiple=True,
    help="Print this layer; may be repeated.  [default: all of up to 8, else the first, the middle, and the last]",
)
@context_option(lowest=2, default=512)
@windows_option
@click.option("--trace", type=path_type(), metavar="FILE", help="Write every token's experts to a file of NumPy, npz.")
@click.option("--full", is_flag=True, help="Add the router's probability of every expert to the trace.")
@click.option("--html", type=path_type(), metavar="FILE", help="Write a page that shows the texts coloured by expert.")
@click.option("--png", type=path_type(), metavar="FILE", help="Write a picture; it needs pymixtral[plot].")
@force_option
@opening_options(kv_type=False)
@json_option
@click.pass_context
def routing(
    ctx: click.Context,
    /,
    model: Path | None,
    files: list[tuple[str, Path]],
    layers: tuple[int, ...],
    n_windows: int | None,
    trace: Path | None,
    full: bool,
    html: Path | None,
    png: Path | None,
    force: bool,
    opening: dict[str, Any],
    as_json: bool,
) -> None:
    """Show which experts the tokens of texts go to.

    Texts of several kinds, such as code and prose, are given in files with -f, or one on standard
    input, in UTF-8. They are cut into windows, which the model reads one by one. For each kind and
    layer it prints the share of each expert, and beside what chance would give: how often a token
    has the first expert of the token before it, and any of its experts; the entropy of the shares;
    which experts nobody used, and which two were used together most; and how often an expert is
    found in a cache of the experts used last, in each layer.

    The page of --html is one file that loads nothing from elsewhere.
    """
    outputs = [path for path in (trace, html, png) if path]
    if full and not trace:
        raise click.UsageError("expected --full with --trace, found it alone", ctx)
    if force and not outputs:
        raise click.UsageError("expected --force with --trace, --html or --png, found it alone", ctx)
    texts = [(name, read_text(ctx, path)) for name, path in files] or [("text", read_text(ctx, None))]
    from pymixtral.evaluation import routing as evaluation
    from pymixtral.evaluation import routing_page, routing_plot
    from pymixtral.files.atomic import check_dest

    read = [path for _, path in files] + ([model] if model else [])
    for i, path in enumerate(outputs):
        check_dest(path, [*read, *outputs[:i]], force)
    if png:
        routing_plot.check()
    with opened(
        model,
        **opening,
    ) as engine:
        n_layers, title = engine.config.n_layers, f"Which experts: {engine.path.name}"
        if layers and max(layers) >= n_layers:
            raise click.UsageError(f"expected --layer from 0 to {n_layers - 1}, found {max(layers)}", ctx)
        domains = evaluation.trace(engine, texts, n_ctx=opening["n_ctx"], n_windows=n_windows, full=full)
        usages = [evaluation.usage(domain) for domain in domains]
        if trace:
            evaluation.save(domains, trace, force=force)
        if html:
            routing_page.write(engine, domains, html, force=force)
    if png:
        routing_plot.draw(usages, title, png, force=force)
    if as_json:
        write_json({"domains": [usage.plain() for usage in usages], "outputs": [str(path) for path in outputs]})
    else:
        lines = [line for usage in usages for line in _lines(usage, layers or _some(n_layers))]
        lines += [wrap(_KEY), "", *_distances(usages, layers or _some(n_layers))]
        write("\n".join(lines + [f"{escaped(str(path))}: written" for path in outputs]))


def _some(n_layers: int) -> tuple[int, ...]:
    """The layers to print where nobody says which: those of the paper, of 32."""
    return tuple(range(n_layers)) if n_layers <= 8 else (0, (n_layers - 1) // 2, n_layers - 1)


def _lines(usage: Usage, layers: Sequence[int]) -> list[str]:
    from pymixtral.evaluation.routing import chance

    lot = chance(usage.n_experts, usage.n_experts_used)
    sizes = [n for n in _CACHES if usage.n_experts_used <= n < usage.n_experts]
    numbers = [["layer", "first", "any", "entropy", "weight", *(f"of {n}" for n in sizes), "pair"]]
    for layer in layers:
        hits = [_percent(usage.hits[layer, n]) for n in sizes]
        numbers.append(
            [
                *(str(layer), _percent(usage.repeats_first[layer]), _percent(usage.repeats_any[layer])),
                *(f"{usage.entropy[layer]:.2f}", f"{usage.first_weight[layer]:.2f}", *hits, _together(usage, layer)),
            ]
        )
    numbers.append(
        [
            *("chance", _percent(lot["repeats_first"]), _percent(lot["repeats_any"]), f"{lot['entropy']:.2f}", ""),
            *(*(_percent(lot["hits"][n]) for n in sizes), ""),
        ]
    )
    never = [f"layer {layer}: {', '.join(map(str, usage.dead[layer]))}" for layer in layers if usage.dead[layer]]
    return [
        f"{shorten(usage.name, _NAME)}: {usage.n_tokens} tokens. Shares of the experts, in %:",
        *_shares(usage, layers),
        *([wrap(f"never used: {'; '.join(never)}", "  ")] if never else []),
        "",
        *table(numbers, ">" * (len(numbers[0]) - 1) + "<"),
        "",
    ]


def _shares(usage: Usage, layers: Sequence[int]) -> list[str]:
    """A table of all experts, or of those that are used most where it would be too wide."""
    import numpy as np

    if usage.n_experts <= _WIDE:
        rows = [["layer", *map(str, range(usage.n_experts))]]
        rows += [[str(layer), *(f"{100 * share:.1f}" for share in usage.either[layer])] for layer in layers]
        return table(rows, ">" * len(rows[0]))
    rows = [["layer", "most used", *[""] * (_MOST - 1), "least"]]
    for layer in layers:
        shares = usage.either[layer]
        order = np.argsort(-shares, kind="stable")
        rows.append([str(layer), *(f"{e}: {100 * shares[e]:.1f}" for e in (*order[:_MOST], order[-1]))])
    return table(rows, ">" + "<" * (_MOST + 1))


def _together(usage: Usage, layer: int) -> str:
    """The two experts that most tokens have both, and how many do."""
    import numpy as np

    a, b = np.unravel_index(usage.pairs[layer].argmax(), usage.pairs[layer].shape)
    return f"{a}+{b} {_percent(usage.pairs[layer, a, b])}" if a != b else "-"


def _distances(usages: Sequence[Usage], layers: Sequence[int]) -> list[str]:
    """How different the domains use the experts, each two of them."""
    from pymixtral.evaluation.routing import distance

    if len(usages) < 2:
        return []
    rows = [["layer", *(str(layer) for layer in layers)]]
    for i, a in enumerate(usages):
        for b in usages[i + 1 :]:
            apart = distance(a, b)
            label = f"{shorten(a.name, 10)}, {shorten(b.name, 10)}"
            rows.append([label, *(_percent(apart[layer]) for layer in layers)])
    text = "Uses that two domains do not share, half of the sum of the differences of their shares:"
    return [wrap(text), *table(rows, "<" + ">" * len(layers)), ""]


def _percent(share: float) -> str:
    return "-" if share != share else f"{100 * share:.1f}%"
