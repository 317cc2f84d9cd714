"""The machine's limits, measured now by pymixtral.inspection.probe: what the speed of a model is to
be compared with.

    python benchmarks/roofline.py [-t THREADS]

The table shows each pattern of reading from the cache as well: one that is not well faster there
than from memory would measure itself.
"""

from __future__ import annotations

import os

import click

from pymixtral.inspection.probe import PATTERNS, ReadBandwidth, cache_rate


@click.command()
@click.option("-t", "--threads", type=click.IntRange(1, 256), default=os.cpu_count() or 1, show_default="one per CPU")
def main(threads: int) -> None:
    """Print the memory read bandwidth of one and of several threads."""
    one, several = ReadBandwidth(1), ReadBandwidth(threads)
    click.echo(
        f"read, GB/s             cache, 1 thread   memory, 1 thread   memory, {threads} threads   "
        f"(load {os.getloadavg()[0]:.2f})"
    )
    for name in PATTERNS:
        rates = cache_rate(name), one.measure(name), several.measure(name)
        click.echo(f"{name:21}  {rates[0]:15.1f}   {rates[1]:16.1f}   {rates[2]:17.1f}")


if __name__ == "__main__":
    main()
