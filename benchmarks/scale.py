"""A model on paper: what Mixtral costs on machines that nobody here has rented.

    python benchmarks/scale.py errors             what was measured beside what the model says
    python benchmarks/scale.py paper              closed forms for machines, models, types and batches
    python benchmarks/scale.py simulate NAME...   fleets with the engine's own scheduler; all: some 20 minutes

--markdown prints the tables of docs/scale.md.
"""

from __future__ import annotations

from statistics import median

import click
from scale_cost import SHARE, Machine, cost, named
from scale_experiments import EXPERIMENTS, Size, Table
from scale_measured import checks

MACHINES = ("m8a.4xlarge", "r8a.8xlarge", "c4d-highmem-32", "Standard_E32as_v7", "r8a.24xlarge")
MODELS = (("8x7b", "q2_k"), ("8x7b", "q4_k_m"), ("8x7b", "q8_0"), ("8x22b", "q2_k"), ("8x22b", "q4_k_m"))
MODELS = (*MODELS, ("8x22b", "q8_0"))
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


def paper(per_core: float, price: float | None, machines: tuple[str, ...]) -> Table:
    """Closed forms: speed and machine hours for a million tokens."""
    rows = []
    for model, mix in MODELS:
        for machine in (named(name, per_core) for name in machines):
            for stages in (1, 2, 4):
                row = _paper(model, mix, machine, stages, price)
                if row:
                    rows.append(row)
                    break  # more stages cost the same
    unit = "machine hours" if price is None else "price"
    head = ["model", "machines", "contexts of 8k", "prompts, tokens/s", f"{unit} for 10^6"]
    for n in BATCHES:
        head += [f"{n} texts, tokens/s", f"{unit} for 10^6"]
    return Table(f"{per_core:g} GB/s a core, contexts of {CONTEXT} tokens", head, rows)


def _paper(model: str, mix: str, machine: Machine, stages: int, price: float | None) -> list[str] | None:
    one = cost(model, mix, machine, stages=stages)
    if one.n_pages * 64 < 8192 * stages:
        return None
    prompts = one.prompt_speed(512)
    row = [f"{model} {mix}", f"{stages} x {machine.name}" if stages > 1 else machine.name, f"{one.n_pages // 128}"]
    row += [f"{prompts:.0f}", _hours(prompts, stages, price)]
    for n in BATCHES:
        if n * stages * CONTEXT > one.n_pages * 64:
            row += ["no room", ""]
            continue
        speed = one.generation(n, CONTEXT)
        row += [f"{speed:.1f}", _hours(speed, stages, price)]
    return row


def _hours(speed: float, stages: int, price: float | None) -> str:
    """Machine hours of a million tokens, or their price."""
    return _figure(1e6 / speed / 3600 * stages * (price or 1))


def _figure(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def show(table: Table, *, markdown: bool) -> None:
    """Print a table."""
    if markdown:
        rule = ["---", *["---:"] * (len(table.head) - 1)]
        click.echo("\n".join(f"| {' | '.join(row)} |" for row in (table.head, rule, *table.rows)) + "\n")
        return
    widths = [max(map(len, column)) for column in zip(table.head, *table.rows, strict=True)]
    click.echo(table.title)
    for row in (table.head, *table.rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    click.echo()


markdown_option = click.option("--markdown", is_flag=True, help="As tables of the book.")


@click.group()
def main() -> None:
    """What 8x7B and 8x22B cost a million tokens, on paper."""


@main.command("errors")
@click.option("--summary", "short", is_flag=True, help="By section only.")
@markdown_option
def errors_command(short: bool, markdown: bool) -> None:
    """Compare the model with what was measured."""
    show(summary() if short else errors(), markdown=markdown)


@main.command("paper")
@click.option("--machine", "machines", multiple=True, default=MACHINES, help="An instance type with AMD Turin.")
@click.option("--per-core", type=float, default=SHARE, show_default=True, help="GB/s of read bandwidth.")
@click.option("--price", type=float, help="Of a machine for an hour; in place of machine hours.")
@markdown_option
def paper_command(machines: tuple[str, ...], per_core: float, price: float | None, markdown: bool) -> None:
    """Compute speeds and machine hours for a million tokens."""
    try:
        show(paper(per_core, price, machines), markdown=markdown)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--machine") from error


@main.command()
@click.argument("names", nargs=-1, type=click.Choice([*EXPERIMENTS]))
@click.option("--machines", type=click.IntRange(2), default=Size.machines, show_default=True)
@click.option("--many", type=click.IntRange(2), default=Size.many, show_default=True, help="Of the largest fleet.")
@click.option("--seconds", type=float, default=Size.seconds, show_default=True, help="That are counted.")
@click.option("--seed", type=int, default=Size.seed, show_default=True)
@markdown_option
def simulate(names: tuple[str, ...], machines: int, many: int, seconds: float, seed: int, markdown: bool) -> None:
    """Run fleets of machines on a virtual clock."""
    for name in names or EXPERIMENTS:
        show(EXPERIMENTS[name](Size(machines, many, seconds, seed)), markdown=markdown)


if __name__ == "__main__":
    main()
