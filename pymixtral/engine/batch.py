"""The batch of a pass: which tokens of which texts it computes, and whose the rows of its result are."""

from __future__ import annotations

import numpy as np

from pymixtral.arrays import F32, I32
from pymixtral.engine.generation import Continuation
from pymixtral.engine.pages import Pages
from pymixtral.engine.requests import Request
from pymixtral.engine.watch import Watch
from pymixtral.errors import CanceledError
from pymixtral.model.forward import Model
from pymixtral.model.kv_cache import Sequence
from pymixtral.ops import EVERY, Choices


class Batch:
    """The next tokens of some texts, computed together.

    Args:
        texts: requests that have an entry and a sequence, and how many tokens of each.

    Attributes:
        texts: see above.
    """

    def __init__(self, texts: list[tuple[Request, int]]) -> None:
        self.texts = texts
        self._wanted = [_wanted(request, n) for request, n in texts]

    def compute(self, model: Model, pages: Pages, watch: Watch) -> tuple[F32, Choices | None]:
        """Compute the tokens. The sequences advance.

        Args:
            model: computes.
            pages: the cache.
            watch: cancels the pass when nobody wants it any more.

        Returns:
            The rows that are wanted after the last layer, and the routers' choices if any text wants
            them.

        Raises:
            CanceledError: if the pass was cancelled.
            PymixtralError: as Model.forward().
        """
        ids: list[I32] = []
        runs: list[tuple[Sequence, int]] = []
        rows: list[range] = []
        n_new = at = 0
        for (request, n), (read, n_drawn) in zip(self.texts, self._wanted, strict=True):
            entry, sequence = request.entry, request.sequence
            assert entry
            assert sequence
            begin = entry.n_computed
            if sequence.length > begin:  # a pass that was computed and then failed for another reason
                sequence.truncate(begin)
            n_new += entry.n_new_pages(n)
            ids.append(request.ids[begin : begin + n])
            runs.append((sequence, n))
            rows.append(range(at + read.start - begin, at + read.stop - begin))
            rows.append(range(at + n - n_drawn, at + n))
            at += n
        pages.make_free(n_new)
        every = sum(map(len, rows)) == at
        requests = [request for request, _ in self.texts]
        traces = [request.trace for request in requests if request.trace is not None]
        choices = model.new_choices(at, full=any(trace.full for trace in traces)) if traces else None
        adapters = [request.adapters for request in requests]
        with watch.cancelling(requests) as somebody:
            if not somebody:
                raise CanceledError
            hidden = model.forward(
                ids[0] if len(ids) == 1 else np.concatenate(ids),
                runs,
                pages.cache,
                rows=EVERY if every else np.concatenate([np.arange(r.start, r.stop) for r in rows]),
                choices=choices,
                adapters=adapters if any(adapters) else None,
            )
        return hidden, choices

    def trace(self, choices: Choices) -> None:
        """Give each text that wants it its part of the routers' choices.

        Args:
            choices: of compute().
        """
        at = 0
        for request, n in self.texts:
            if request.trace is not None:
                assert request.entry
                begin = request.entry.n_computed
                request.trace.add(request.n_cut + begin, request.ids[begin : begin + n], choices, at)
            at += n

    def divided(self, hidden: F32) -> tuple[list[tuple[Request, range, F32]], list[tuple[Continuation, F32]]]:
        """Divide the rows among the texts.

        Args:
            hidden: of compute().

        Returns:
            The texts that read rows, with the positions of these; and those whose tokens are drawn.
        """
        reading: list[tuple[Request, range, F32]] = []
        drawing: list[tuple[Continuation, F32]] = []
        at = 0
        for (request, _), (read, n_drawn) in zip(self.texts, self._wanted, strict=True):
            if read:
                reading.append((request, read, hidden[at : at + len(read)]))
                at += len(read)
            if n_drawn:
                assert isinstance(request, Continuation)
                drawing.append((request, hidden[at : at + n_drawn]))
                at += n_drawn
        return reading, drawing


def _wanted(request: Request, n: int) -> tuple[range, int]:
    """The positions whose rows are read in a pass, and how many of its last rows are drawn from."""
    entry = request.entry
    assert entry
    end = entry.n_computed + n
    n_drawn = max(end - entry.n_ids + 1, 0) if isinstance(request, Continuation) else 0
    return request.unread(entry.n_computed, end - n_drawn), n_drawn
