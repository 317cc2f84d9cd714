"""What the first stage of a pipeline and the others tell each other.

The first stage alone decides which page of the cache has what. So every message names pages, and
carries what was done to pages since the one before: a stage repeats it on its own layers, and needs
no books of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pymixtral.arrays import F32, I32, U8
from pymixtral.model.forward import Rows
from pymixtral.ops import Choices


@dataclass(frozen=True, eq=False)
class Copied:
    """A page became the copy of another one; see KVCache.copy()."""

    page: int
    to: int


@dataclass(frozen=True, eq=False)
class Rotated:
    """The keys of a page were rotated; see KVCache.rotate()."""

    page: int
    cosines: F32
    sines: F32


@dataclass(frozen=True, eq=False)
class Written:
    """A page got contents.

    Attributes:
        page: the page.
        content: of all layers of the model, as PageForm.encode() makes them.
    """

    page: int
    content: bytes | U8


Change = Copied | Rotated | Written


@dataclass(frozen=True, eq=False)
class Work:
    """What a stage is to do for one micro-batch.

    Attributes:
        number: counts the work of a micro-batch; cancel() names it.
        changes: what was done to pages before, in order.
        runs: tokens, first position and pages of each text of the pass; none: there is no pass.
        rows: those whose result is wanted, for the last stage; None: all.
        choices: whether the routers' choices are wanted: "", "experts", or "logits" too.
        reads: pages whose contents are wanted, with the positions that count.
    """

    number: int
    changes: list[Change] = field(default_factory=list)
    runs: list[tuple[int, int, I32]] = field(default_factory=list)
    rows: Rows | None = None
    choices: str = ""
    reads: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Done:
    """What stages have done so far.

    Attributes:
        rows: the result of the layers so far, float32 [n, hidden]; None: there is no pass.
        error: what went wrong. The stages that follow repeat the changes, and compute nothing.
        choices: those of each stage.
        pages: those that were to be read, of each stage.
    """

    rows: F32 | None = None
    error: Exception | None = None
    choices: tuple[Choices, ...] = ()
    pages: tuple[list[U8], ...] = ()


@dataclass(frozen=True)
class StageState:
    """What a stage says of itself.

    Attributes:
        pid: its process.
        layers: its layers.
        n_threads: its threads.
        weight_bytes: bytes of its layers in the file.
        resident_bytes: bytes of the file that its process has in memory; -1: unknown.
    """

    pid: int
    layers: range
    n_threads: int
    weight_bytes: int
    resident_bytes: int


class Chain(Protocol):
    """The stages after the first.

    Attributes:
        is_ready: whether they can compute.
    """

    is_ready: bool

    def run(self, lane: int, work: Work, before: Done) -> Done:
        """Let the stages work, one after the other. A micro-batch does one work at a time.

        Args:
            lane: the number of the micro-batch.
            work: what to do.
            before: the first stage's result.

        Returns:
            What all have done; errors of the computation are in it.

        Raises:
            HostLostError: if a stage is gone, with all that it had.
            CanceledError: after cancel(), if no stage has got the work.
        """

    def cancel(self, lane: int, number: int) -> None:
        """Cancel work of a micro-batch, and all before it. Any thread may call this; it does not wait.

        Args:
            lane: the number of the micro-batch.
            number: that of the work.
        """

    def wait(self) -> None:
        """Wait until the stages can compute.

        Raises:
            PymixtralError: what prevents it.
        """

    def states(self) -> list[StageState]:
        """Describe the stages.

        Raises:
            HostLostError: if one is gone.
        """

    def close(self) -> None:
        """End the stages. A second close() does nothing."""


Lost = Callable[[Chain, Exception], None]
"""Is told, in a thread of the chain, that it is of no more use, and why."""
