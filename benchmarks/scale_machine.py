"""A machine on a virtual clock: the engine's own scheduler, pace, pages and prefix cache, with the
time of a pass from scale_cost.py in place of a model.

A pass does what Loop._pass and Loop._advance of pymixtral.engine.loop do with these classes. Passes
in which the same texts get a token each are taken at once, as many as nothing can change;
`leaps=False` takes them one by one, with the same results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from scale_cost import Cost
from scale_tally import Tally
from scale_workload import Text

from pymixtral.arrays import F64
from pymixtral.engine.pace import Pace
from pymixtral.engine.pages import Pages
from pymixtral.engine.scheduler import Entry, Scheduler
from pymixtral.model.kv_cache import KVCache
from pymixtral.ops import PAGE


class Blank(KVCache):
    """A cache that counts its pages and has nothing in them, as nobody reads them.

    Args:
        n_pages: how many.
    """

    def __init__(self, n_pages: int) -> None:
        super().__init__(1, 1, 8, n_pages)
        del self.layers, self.stack  # C's view of the arrays
        self.k = self.v = np.empty((1, n_pages, 0), np.float16)


class Stages:
    """The machines that share a model's layers, each of which does one thing at a time.

    Args:
        cost: of a pass.
    """

    def __init__(self, cost: Cost) -> None:
        self.cost = cost
        self._free = [0.0] * cost.stages

    def run(self, begin: float, seconds: float, tokens: int) -> float:
        """Send a pass through all stages.

        Args:
            begin: when it is ready.
            seconds: of all stages together.
            tokens: of the pass.

        Returns:
            When it is done.
        """
        if len(self._free) == 1:
            return begin + seconds
        at, each, hop = begin, seconds / len(self._free), self.cost.hop(tokens)
        for i, free in enumerate(self._free):
            at = self._free[i] = max(at, free) + each
            at += hop
        return at


@dataclass
class _Leap:
    """Passes of the same texts, of which only time goes by until the end."""

    entries: list[Entry]
    ends: F64  # the beginning, and the end of each pass


class Engine:
    """One scheduler with its pages: a machine, or a micro-batch of a pipeline.

    Args:
        stages: what it computes with.
        n_pages: of its cache.
        max_running: texts at once.
        n_batch: most tokens of prompts in a pass.
        pace: as of pymixtral.engine.Pace.
        leaps: whether passes that nothing can change are taken at once.
    """

    def __init__(
        self, stages: Stages, n_pages: int, max_running: int, n_batch: int, pace: float | None, *, leaps: bool
    ) -> None:
        self.stages = stages
        self.cost = stages.cost
        self._leaps = leaps and stages.cost.stages == 1
        self._n_pages, self._max_running = n_pages, max_running
        self._limit, self._n_batch = pace, n_batch
        self.tally = Tally()
        self.version = 0  # of the event that ends its pass
        self._arrived = 0
        self._start()

    def _start(self) -> None:
        self.pages = Pages(Blank(self._n_pages))
        self._texts = cast("dict[Entry, Text]", self.pages.requests)
        self.scheduler = Scheduler(self.pages, self._max_running)
        self._pace = Pace(self._limit, self._n_batch)
        self._pass: list[tuple[Entry, int]] | _Leap | None = None
        self._n_preempted = 0
        self.version += 1

    def reset(self) -> list[Text]:
        """Forget everything, as after a failure.

        Returns:
            The texts that it had.
        """
        lost = list(self._texts.values())
        self._start()
        return lost

    @property
    def n_texts(self) -> int:
        """Texts that wait or run."""
        return len(self.pages.requests)

    def add(self, text: Text) -> None:
        """Let a text wait."""
        self._arrived += 1
        entry = text.entry = Entry(text.priority, self._arrived, text.n_ids)
        self.pages.requests[entry] = text
        self.scheduler.add(entry)

    def begin(self, now: float) -> float | None:
        """Begin the next pass.

        Returns:
            When it, or the last of several, ends; None: there is nothing to do.
        """
        self.version += 1
        self._begun = now
        running = self.scheduler.running
        n = self._steady() if self._leaps else 1
        if n > 1:
            entries = sorted(running, key=lambda entry: entry.order)
            positions = sum(entry.n_computed for entry in entries) + len(entries) * np.arange(n, dtype=np.float64)
            times = self.cost.passes(len(entries), positions)
            self._pass = _Leap(entries, np.cumsum(np.concatenate([[now], times])))
            return float(self._pass.ends[-1])
        n_decoding = sum(entry.n_left == 1 for entry in running)
        batch = self.scheduler.plan(self._pace.budget(n_decoding))
        self.tally.preempted += self.scheduler.n_preempted - self._n_preempted
        self._n_preempted = self.scheduler.n_preempted
        self._pass = batch or None
        if not batch:
            return None
        decoding = [entry for entry, _ in batch if entry.n_left == 1]
        prompts = [(n, entry.n_computed, n == entry.n_left) for entry, n in batch if entry.n_left > 1]
        seconds = self.cost.seconds(len(decoding), sum(entry.n_computed for entry in decoding), prompts)
        return self.stages.run(now, seconds, sum(n for _, n in batch))

    def cut(self, now: float) -> float | None:
        """End a leap with the pass that runs now.

        Returns:
            When it ends; None: nothing changes.
        """
        if not isinstance(self._pass, _Leap):
            return None
        n = max(1, int(np.searchsorted(self._pass.ends, now)))
        if n >= len(self._pass.ends) - 1:
            return None
        self._pass.ends = self._pass.ends[: n + 1]
        self.version += 1
        return float(self._pass.ends[-1])

    def settle(self, now: float) -> None:
        """Take the passes of a leap that are over."""
        if isinstance(self._pass, _Leap):
            entries, ends = self._pass.entries, self._pass.ends
            n = int(np.searchsorted(ends, now, "right")) - 1
            if 0 < n < len(ends) - 1:
                self._pass.ends = ends[: n + 1]
                self.end(float(ends[n]))
                self._pass = _Leap(entries, ends[n:])

    @property
    def busy(self) -> bool:
        """Whether a pass runs."""
        return self._pass is not None

    def _steady(self) -> int:
        """The passes for which plan() can only return a token of each running text."""
        scheduler = self.scheduler
        running = scheduler.running
        if not running or (scheduler.waiting and len(running) < scheduler.max_running):
            return 1
        texts, n, n_new = self._texts, PAGE, 0
        for entry in running:
            text = texts[entry]
            if text.last != self._begun or entry.n_left != 1:
                return 1  # a text that got no token in the last pass waits for longer than a pass
            # A page that is full is indexed in its pass, so that the prefix cache's pages have their ages.
            used = entry.n_computed % PAGE
            n = min(n, text.n_left, PAGE - used)
            n_new += not used
        return n if not n_new or n_new <= self.pages.n_available() else 1

    def end(self, now: float) -> list[Text]:
        """End the pass, or passes.

        Returns:
            The texts that are complete.
        """
        done, self._pass = self._pass, None
        assert done
        if isinstance(done, _Leap):
            return self._end_leap(done, now)
        n_decoding = sum(entry.n_left == 1 for entry, _ in done)
        n_prompt = sum(n for entry, n in done if entry.n_left > 1)
        self._compute(done)
        finished = [text for entry, n in done if (text := self._advance(entry, n, now))]
        self._pace.observe(n_decoding, n_prompt, now - self._begun)
        self._count(1, len(done))
        return finished

    def _end_leap(self, leap: _Leap, now: float) -> list[Text]:
        """What a pass after the other would do to texts that get tokens within a page."""
        seconds, entries, texts = np.diff(leap.ends), leap.entries, self._texts
        n, finished = len(seconds), []
        self._compute([(entry, n) for entry in entries])
        for one in seconds.tolist():
            self._pace.observe(len(entries), 0, one)
        self.tally.between.add(seconds, len(entries))
        self.tally.generated += n * len(entries)
        self._count(n, n * len(entries))
        for entry in entries:
            text = texts[entry]
            entry.n_computed += n
            entry.passed_over = 0
            text.n_ids += n
            entry.n_ids = text.n_ids
            text.last = now
            if not text.n_left:
                self._finish(entry, text)
                finished.append(text)
            elif not entry.n_computed % PAGE:
                self.pages.index(text)
        return finished

    def _compute(self, batch: list[tuple[Entry, int]]) -> None:
        """What Loop._forward and Model.forward do to the pages.

        The rest of a text's last page is reserved with it.
        """
        n_new = [entry.n_new_pages(n) for entry, n in batch]
        self.pages.make_free(sum(n_new))
        for (entry, n), new in zip(batch, n_new, strict=True):
            sequence = self._texts[entry].sequence
            assert sequence
            if new:
                sequence.reserve(n + -(entry.n_computed + n) % PAGE)
            sequence.advance(n)

    def _count(self, passes: int, texts: int) -> None:
        self.tally.passes += passes
        self.tally.texts += texts

    def _advance(self, entry: Entry, n: int, now: float) -> Text | None:
        """What Loop._advance does for a text: n more ids are computed. Returns it if it is complete."""
        text, tally = self._texts[entry], self.tally
        if not text.begun:
            text.begun = True
            tally.cached += entry.n_computed
        tally.prompt += min(n, max(text.n_prompt - entry.n_computed, 0))
        entry.n_computed += n
        entry.shares_tail = False
        entry.passed_over = 0
        if entry.n_computed == entry.n_ids:
            if text.n_ids == text.n_prompt:
                text.first = now
                tally.first.add_one(now - text.asked)
            else:
                tally.between.add_one(now - text.last)
            tally.generated += 1
            text.n_ids += 1
            text.last = now
            entry.n_ids = text.n_ids
        if text.n_left:
            self.pages.index(text)
            return None
        self._finish(entry, text)
        return text

    def _finish(self, entry: Entry, text: Text) -> None:
        self.scheduler.remove(entry)
        del self._texts[entry]
        self.pages.leave(text)
        self.tally.finished += 1
