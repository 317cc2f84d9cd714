"""Many prompts on several machines: Ray Data hands chunks of them to workers, which have the model open.

Ray Data's own checkpoints (CheckpointConfig) are not used: they remember which rows were written, and so
know nothing of options and model, hold the ids of all rows in memory, in each of their actors, and leave
files of records in no order. Here the name of a part says all that its records depend on.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stdout
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn

from pymixtral.arguments import integer
from pymixtral.bulk.generate import Bulk
from pymixtral.bulk.prompts import Prompt
from pymixtral.cluster.chunks import Chunk, Parts, cut
from pymixtral.cluster.connection import connect, host_cpus
from pymixtral.cluster.worker import Work, Worker
from pymixtral.errors import NativeError, OutputError
from pymixtral.files.kinds import named
from pymixtral.mixtral import Mixtral

LINES = 64
"""Prompts of a chunk: four times as many as an engine computes together. A worker that is killed loses
two chunks, and a chunk is a file, for some time."""

_AT_ONCE = 2
"""Chunks that a worker has at a time: the texts of the next one begin while the last ones of one end."""

_BLOCKS = 4096
"""Pieces of the table of chunks that Ray Data is given: each costs an object. A piece has one chunk, or
several of a file of more than 262,144 prompts."""


class ClusterBulk(Bulk):
    """A file of prompts, and the file that their texts are written into, by the nodes of a cluster.

    The output is that of Bulk, record by record, and another run of either goes on with it. Prompts
    are computed in chunks. The records of a chunk are written at once, into a part: a file of the
    folder beside the output that has its name with ".parts". Parts become the output in the order of
    the prompts, as soon as those before them are there. So whoever is killed, worker, node or the
    program itself, costs the chunks that were being computed, and no record comes twice.

    All nodes need the files under the same names: model, adapters, prompts and the folder of the
    output.

    Args:
        model: checks the prompts; it computes nothing.
        prompts: the file of prompts; see pymixtral.bulk.prompts.parse_prompt.
        output: the file of texts.
        opening: how the workers open the model: the arguments of Mixtral that `model` was opened
            with. n_ctx is that of `model`; n_threads are the CPUs of a worker, and without it a worker
            has as many as the smallest node.
        address: of the cluster; see pymixtral.cluster.connection.connect().
        lines: prompts of a chunk, at least 1.
        force: begin anew, whatever the output and its parts hold.
        **options: of Mixtral.generate(), for prompts that have none of their own.

    Attributes:
        n_resumed: records of the output and of parts that another run has made.
        n_done: records of the output and of parts.

    Raises:
        InvalidArgumentError: for options that are not right.
        OutputError: if the output is one of the files that are read, or cannot be written.
    """

    def __init__(
        self,
        model: Mixtral,
        prompts: Path,
        output: Path,
        *,
        opening: Mapping[str, Any],
        address: str = "auto",
        lines: int = LINES,
        force: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, prompts, output, force=force, **options)
        self._opening, self._address = opening, address
        self._lines = integer("lines", lines, 1)
        self._parts = Parts(output.absolute())
        self._chunks: list[Chunk] = []

    def check(self) -> None:
        self._chunks = list(cut(self._checked(), self._lines))
        self.n_lines = sum(chunk.n_lines for chunk in self._chunks)

    # --- Parts of the job -------------------------------------------------------------------------

    def _answer_all(self, lines: Iterator[Prompt], n_in_flight: int) -> None:
        """Appends the parts to the output, in the order of the chunks, as they come."""
        if self._force:
            self._parts.remove()
        n_written = self.n_done
        rest = deque(chunk for chunk in self._chunks if chunk.end > n_written)
        names = self._parts.names()
        before = {chunk.number for chunk in rest if chunk.part in names}
        missing = {chunk.number: chunk for chunk in rest if chunk.number not in before}

        def count(chunk: Chunk) -> int:
            n = chunk.end - max(chunk.place.index, n_written if chunk is first else 0)
            self.n_done += n
            self._bar.update(n)
            return n

        first = rest[0] if rest else None
        self.n_resumed += sum(count(chunk) for chunk in rest if chunk.number in before)
        try:
            with closing(self._computed(list(missing.values()), n_in_flight)) as computed:
                for chunk in chain([None], computed):  # those that are there come first
                    if chunk and missing.pop(chunk.number, None):
                        count(chunk)
                    while rest and rest[0].number not in missing:
                        part = rest.popleft()
                        n_before = max(n_written - part.place.index, 0)
                        self._append(part, n_before, islice(lines, part.n_lines - n_before), part.number not in before)
                        n_written = part.end
        except BaseException:
            names = self._parts.names()  # some may have come that nobody has told of
            for chunk in missing.values():
                if chunk.part in names:
                    count(chunk)
            if not names:
                self._parts.remove()
            raise
        if n_written != self.n_lines:
            raise NativeError(
                f"expected the parts of {self.n_lines} prompts from the cluster, found its end at {n_written}: "
                "go on with the same command"
            )
        self._parts.remove()

    # --- Parts ------------------------------------------------------------------------------------

    def _append(self, chunk: Chunk, n_before: int, lines: Iterator[Prompt], own: bool) -> None:
        """Appends the records of a part, each held against its prompt, and removes the part.

        Args:
            chunk: says which part.
            n_before: how many of its records the output has.
            lines: the prompts of the others.
            own: whether this run has made them.
        """
        with closing(self._parts.lines(chunk)) as records:
            for _ in range(n_before):
                next(records, None)
            for line in lines:
                data, head = next(records, b""), line.head.encode()
                if not data.startswith(head + b", ") or not data.endswith(b"}\n"):
                    self._refuse(chunk, f"the record of prompt {line.index}")
                try:
                    record = json.loads(data)
                except (ValueError, RecursionError):
                    self._refuse(chunk, f"the record of prompt {line.index}")
                self._records.append(data.decode("utf-8"))
                self.n_failed += "error" in record
                if own:
                    self.n_tokens += record.get("usage", {}).get("generated_tokens", 0)
            if next(records, None):
                self._refuse(chunk, f"{chunk.n_lines} records")
        self._records.sync()
        (self._parts.path / chunk.part).unlink(missing_ok=True)
        self.seconds = time.perf_counter() - self._begin

    def _refuse(self, chunk: Chunk, wanted: str) -> NoReturn:
        path = named(self._parts.path / chunk.part)
        raise OutputError(f"{path}: expected {wanted}, found something else: remove this file and start again")

    def _computed(self, chunks: list[Chunk], n_in_flight: int) -> Generator[Chunk, None, None]:
        """Has parts made by the cluster.

        Yields:
            The chunks, each when its part is there.
        """
        if not chunks:
            return
        self._parts.make()
        token = secrets.token_hex(16)
        self._parts.publish(token)
        with _connected(self._address):
            n_cpus, n_workers = places(self._opening.get("n_threads"))
            adapters = {
                name: Path(file).absolute() if isinstance(file, (str, os.PathLike)) else file
                for name, file in (self._opening.get("adapters") or {}).items()
            }
            work = Work(
                model=self._model.path.absolute(),
                opening={**self._opening, "adapters": adapters, "n_ctx": self._model.n_ctx, "n_threads": n_cpus},
                prompts=self._source.absolute(),
                output=self._output.absolute(),
                options=self._options,
                key=self._key,
                token=token,
                n_in_flight=n_in_flight,
                version=version("pymixtral"),
            )
            numbered = {chunk.number: chunk for chunk in chunks}
            for row in answers(Worker, work, [chunk.row() for chunk in chunks], n_cpus, n_workers):
                if row["error"]:
                    raise NativeError(str(row["error"]))
                yield numbered[int(row["chunk"])]


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Connects this program for the time of the block, unless it is connected.

    Ray writes to standard output what befalls its nodes; here that goes to standard error.
    """
    import ray

    with redirect_stdout(sys.stderr):
        began = connect(address)
        try:
            yield
        finally:
            if began:
                ray.shutdown()


def answers(
    worker: Callable[..., Any], work: object, rows: list[dict[str, Any]], n_cpus: int, n_workers: int
) -> Iterator[dict[str, Any]]:
    """Have rows answered by a pool of actors, with Ray Data.

    Args:
        worker: makes an actor of `work`; it is called with a row.
        work: what the actors need to know.
        rows: the table.
        n_cpus: CPUs of an actor.
        n_workers: actors at the beginning. One that is lost comes back where there is room.

    Yields:
        What the actors return, as it comes.

    Raises:
        NativeError: if an actor fails.
    """
    import ray.data
    from ray.exceptions import RayError

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current().copy()  # the program's own stays as it is
    context.enable_progress_bars = context.print_on_execution_start = False
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    pool = ray.data.ActorPoolStrategy(
        min_size=1,
        initial_size=n_workers,
        max_tasks_in_flight_per_actor=_AT_ONCE,
        max_concurrent_calls_per_actor=_AT_ONCE,
        enable_true_multi_threading=True,
    )
    with ray.data.DataContext.current(context):
        table = ray.data.from_items(rows, override_num_blocks=min(len(rows), _BLOCKS))
        answered = table.map(worker, fn_constructor_args=[work], compute=pool, num_cpus=n_cpus)
    try:
        for batch in answered.iter_batches(prefetch_batches=0, batch_size=None, batch_format="pyarrow"):
            yield from batch.to_pylist()
    except RayError as error:
        raise NativeError(
            f"expected the cluster to answer, found an error ({str(error).splitlines()[0]}): "
            "go on with the same command"
        ) from error


def places(n_threads: int | None) -> tuple[int, int]:
    """Find how many workers a cluster has room for.

    Args:
        n_threads: CPUs of a worker; None: those of the smallest node, which is a worker for each node
            where all are equal.

    Returns:
        CPUs of a worker, and the number of workers.

    Raises:
        NativeError: if no node has as many CPUs.
    """
    cpus = host_cpus()
    n_cpus = n_threads or min(cpus, default=1)
    n_workers = sum(n // n_cpus for n in cpus)
    if not n_workers:
        raise NativeError(
            f"expected a node of the cluster with {n_cpus} CPUs for a worker, found {max(cpus, default=0)} at most: "
            "give a worker fewer with n_threads"
        )
    return n_cpus, n_workers
