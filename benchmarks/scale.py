"""A model on paper: what Mixtral costs on machines that nobody here has rented.

    python benchmarks/scale.py errors             what was measured beside what the model says
    python benchmarks/scale.py paper              closed forms for machines, models, types and batches
    python benchmarks/scale.py simulate NAME...   fleets with the engine's own scheduler; all: some half an hour

--markdown prints the tables of docs/scale.md.
"""

from __future__ import annotations

from statistics import median

import click
from scale_cost import SHARE, cost, named
from scale_experiments import EXPERIMENTS, Size, Table
from scale_measured import checks

from pymixtral.ops import PAGE

MACHINES = ("m8a.4xlarge", "r8a.8xlarge", "r8a.24xlarge", "Standard_E32as_v7")
MODELS = [(model, mix) for model in ("8x7b", "8x22b") for mix in ("q2_k", "q4_k_m", "q8_0")]
BATCHES = (1, 4, 16, 64)
CONTEXT = 1000


def errors() -> Table:
    """Each figure of docs/performance.md beside the model's."""
    rows = [
        [one.section, one.what, _figure(one.measured), _figure(one.model), f"{one.error:+.0%}", "yes" * one.fitted]
        for one in checks()
    ]
    return Table(
        "Measured and modelled", ["section of Performance", "what", "measured", "model", "error", "fitted"], rows
    )


def summary() -> Table:
    """The errors of each section."""
    found: dict[tuple[str, bool], list[float]] = {}
    for one in checks():
        found.setdefault((one.section, one.fitted), []).append(abs(one.error))
    rows = [
        [section, "yes" if fitted else "no", f"{len(some)}", f"{median(some):.0%}", f"{max(some):.0%}"]
        for (section, fitted), some in found.items()
    ]
    return Table("Errors by section", ["section of Performance", "fitted", "figures", "median error", "largest"], rows)


def paper(per_core: float, price: float | None, machines: tuple[str, ...]) -> list[Table]:
    """Closed forms: speed, and machine hours or the price of a million tokens.

    Args:
        per_core: GB/s.
        price: of a machine for an hour; None: there is none.
        machines: names of instance types. Where one does not hold a model, it is 2 or 4 of them.

    Raises:
        ValueError: for a name that is unknown.
    """
    speeds, costs = [], []
    for model, mix in MODELS:
        for machine in (named(name, per_core) for name in machines):
            fitting = (cost(model, mix, machine, stages=stages) for stages in (1, 2, 4))
            one = next((one for one in fitting if one.n_pages * PAGE >= 8192 * one.stages), None)
            if one is None:
                continue
            what = [f"{model} {mix}", f"{one.stages} x {machine.name}" if one.stages > 1 else machine.name]
            prompts = one.prompt_speed(512)
            batches = [n for n in BATCHES if n * one.stages * CONTEXT <= one.n_pages * PAGE]
            generated = [one.generation(n, CONTEXT) for n in batches]
            none = [""] * (len(BATCHES) - len(batches))
            gap = one.latency(16, CONTEXT)
            speeds.append([*what, *(f"{x:.1f}" for x in [prompts, *generated]), *none, f"{gap:.2f}"])
            hours = [1e6 / x / 3600 * one.stages for x in [prompts, *generated]]
            vcpus = [f"{hours[i] * machine.vcpus:.0f}" for i in (0, 3)]
            costs.append([*what, *(_figure(x * (price or 1)) for x in hours), *none, *vcpus])
    texts = [f"{n} texts" if n > 1 else "1 text" for n in BATCHES]
    where = f"{per_core:g} GB/s a core, contexts of {CONTEXT} tokens"
    head = ["model", "machine", "prompts", *texts]
    unit = "Machine hours" if price is None else "Price"
    return [
        Table(f"Tokens/s, {where}", [*head, "s between tokens of 16"], speeds),
        Table(f"{unit} for 10^6 tokens, {where}", [*head, "vCPU hours: prompts", "16 texts"], costs),
    ]


def _figure(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def markdown(table: Table) -> str:
    """A table of the book."""
    rule = ["---", *["---:"] * (len(table.head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (table.head, rule, *table.rows))


def show(table: Table, *, as_markdown: bool) -> None:
    """Print a table."""
    if as_markdown:
        click.echo(f"{markdown(table)}\n")
        return
    widths = [max(map(len, column)) for column in zip(table.head, *table.rows, strict=True)]
    click.echo(table.title)
    for row in (table.head, *table.rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    click.echo()


markdown_option = click.option("--markdown", "as_markdown", is_flag=True, help="As tables of the book.")


@click.group()
def main() -> None:
    """What 8x7B and 8x22B cost a million tokens, on paper."""


@main.command("errors")
@click.option("--summary", "short", is_flag=True, help="By section only.")
@markdown_option
def errors_command(short: bool, as_markdown: bool) -> None:
    """Compare the model with what was measured."""
    show(summary() if short else errors(), as_markdown=as_markdown)


@main.command("paper")
@click.option("--machine", "machines", multiple=True, default=MACHINES, help="An instance type with AMD Turin.")
@click.option("--per-core", type=float, default=SHARE, show_default=True, help="GB/s of read bandwidth.")
@click.option("--price", type=float, help="Of a machine for an hour; in place of machine hours.")
@markdown_option
def paper_command(machines: tuple[str, ...], per_core: float, price: float | None, as_markdown: bool) -> None:
    """Compute speeds and machine hours for a million tokens."""
    try:
        for table in paper(per_core, price, machines):
            show(table, as_markdown=as_markdown)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--machine") from error


@main.command()
@click.argument("names", nargs=-1, type=click.Choice([*EXPERIMENTS]))
@click.option("--machines", type=click.IntRange(2), default=Size.machines, show_default=True)
@click.option("--many", type=click.IntRange(200), default=Size.many, show_default=True, help="Of the largest fleet.")
@click.option("--seconds", type=float, default=Size.seconds, show_default=True, help="That are counted.")
@click.option("--seed", type=int, default=Size.seed, show_default=True)
@markdown_option
def simulate(names: tuple[str, ...], machines: int, many: int, seconds: float, seed: int, as_markdown: bool) -> None:
    """Run fleets of machines on a virtual clock."""
    for name in names or EXPERIMENTS:
        show(EXPERIMENTS[name](Size(machines, many, seconds, seed=seed)), as_markdown=as_markdown)


if __name__ == "__main__":
    main()
