"""Many machines on a virtual clock: the engine's own scheduler, pace, pages and prefix cache, with
the time of a pass from scale_cost.py in place of a model.

The cache is a real one, of a model with one layer and one head of 8 elements, whose arrays nobody
reads. A pass does what Loop._pass and Loop._advance of pymixtral.engine.loop do with these classes.
Passes in which the same texts get a token each are taken at once, as many as nothing can change;
`leaps=False` takes them one by one, with the same results.
"""

from __future__ import annotations

import heapq
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scale_cost import Cost

from pymixtral.arrays import F64, I32
from pymixtral.engine.pace import Pace
from pymixtral.engine.pages import Pages
from pymixtral.engine.requests import Request
from pymixtral.engine.scheduler import Entry, Scheduler
from pymixtral.model.kv_cache import KVCache
from pymixtral.ops import PAGE

_PAGE_BYTES = 2048
"""Of a page of a simulated cache."""

_MOST_BYTES = 4 << 30
"""Of the caches of a fleet: the system may commit all of it."""


@dataclass(frozen=True)
class Workload:
    """What people ask. Lengths are lognormal; no trace of real use was at hand.

    Attributes:
        name: in tables.
        tenants: groups of conversations that begin with the same system prompt.
        system: its tokens.
        message: median tokens of a question.
        answer: median tokens of an answer.
        spread: the standard deviation of their logarithms.
        turns: questions of a conversation on average, geometric.
        think: seconds from an answer to the next question on average, exponential.
        context: the most tokens of a text.
    """

    name: str
    tenants: int = 20
    system: int = 256
    message: int = 60
    answer: int = 150
    spread: float = 0.8
    turns: float = 4.0
    think: float = 30.0
    context: int = 8192

    def conversation(self, rng: np.random.Generator) -> Conversation:
        """Draw a conversation with all of its questions and answers."""
        tenant = int(rng.integers(self.tenants))
        prefix = np.random.default_rng([7, tenant]).integers(3, 32000, self.system, np.int32)
        turns, length = [], self.system
        for _ in range(int(rng.geometric(1 / self.turns))):
            message, answer = (self._length(median, rng) for median in (self.message, self.answer))
            if length + message + answer > self.context:
                break
            turns.append((length + message, answer))
            length += message + answer
        if not turns:
            turns, length = [(self.system + 1, 1)], self.system + 2
        ids = np.concatenate([prefix, rng.integers(3, 32000, length - self.system, np.int32)])
        return Conversation(int(rng.integers(1 << 62)), ids, turns)

    def _length(self, median: int, rng: np.random.Generator) -> int:
        most = self.context // 2
        return int(np.clip(round(median * np.exp(self.spread * rng.standard_normal())), 1, most))


CHAT = Workload("chat")
DOCUMENTS = Workload("documents", system=64, message=1500, answer=150, spread=1.0, turns=2.0, think=60.0)
SINGLE = Workload("single questions", tenants=1, system=1, message=120, answer=150, turns=1.0)


@dataclass(eq=False)
class Conversation:
    """A conversation.

    Attributes:
        number: any, that of no other.
        ids: all of its tokens.
        turns: of each question the length of the text up to its end, and the tokens of the answer.
    """

    number: int
    ids: I32
    turns: list[tuple[int, int]]


class Text(Request):
    """A question and its answer, which is known from the beginning.

    Args:
        conversation: whose.
        turn: the number of the question.
        asked: when it was asked, in seconds of the virtual clock.
    """

    def __init__(self, conversation: Conversation, turn: int, asked: float) -> None:
        prompt, answer = conversation.turns[turn]
        super().__init__(conversation.ids[:prompt], room=answer, rows=range(0))
        self.ids[prompt:] = conversation.ids[prompt : prompt + answer]
        self.conversation = conversation
        self.turn = turn
        self.asked = asked
        self.first = self.last = asked
        self.n_answer = answer

    @property
    def n_left(self) -> int:
        """Tokens of the answer that are missing."""
        return self.n_prompt + self.n_answer - self.n_ids


class Histogram:
    """Positive numbers, each known to half a percent."""

    def __init__(self) -> None:
        self._counts = np.zeros(3000, np.int64)

    def add(self, values: F64, times: int = 1) -> None:
        """Add numbers.

        Args:
            values: from 1e-6 to some 1e6.
            times: how often each.
        """
        bins = np.clip(np.log(np.maximum(values, 1e-6) / 1e-6) / 0.01, 0, 2999).astype(np.int64)
        np.add.at(self._counts, bins, times)

    def __len__(self) -> int:
        return int(self._counts.sum())

    def quantile(self, q: float) -> float:
        """Find the number below which a part of all lies; NaN without any."""
        if not len(self):
            return float("nan")
        i = int(np.searchsorted(np.cumsum(self._counts), q * len(self)))
        return float(1e-6 * np.exp((i + 0.5) * 0.01))


@dataclass
class Tally:
    """What happened in a part of the time.

    Attributes:
        asked: questions.
        finished: answers.
        retried: questions whose machine failed.
        again: those of them that had a token already.
        generated: tokens of answers.
        prompt: tokens of prompts that were computed.
        cached: tokens of prompts that the cache had.
        passes: passes.
        texts: texts in all passes.
        preempted: times that a text gave its pages back.
        first: seconds to the first token.
        between: seconds between tokens.
    """

    asked: int = 0
    finished: int = 0
    retried: int = 0
    again: int = 0
    generated: int = 0
    prompt: int = 0
    cached: int = 0
    passes: int = 0
    texts: int = 0
    preempted: int = 0
    first: Histogram = field(default_factory=Histogram)
    between: Histogram = field(default_factory=Histogram)

    @property
    def hits(self) -> float:
        """The part of prompts' tokens that the cache had."""
        return self.cached / max(self.cached + self.prompt, 1)

    @property
    def batch(self) -> float:
        """Texts in a pass."""
        return self.texts / max(self.passes, 1)


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
        self.pages = Pages(KVCache(1, 1, 8, self._n_pages))
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
        lost = [text for text in self.pages.requests.values() if isinstance(text, Text)]
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
        if not running or any(entry.n_left != 1 or self._text(entry).last != self._begun for entry in running):
            return 1  # a text that got no token in the last pass waits for longer than a pass
        if scheduler.waiting and len(running) < scheduler.max_running:
            return 1
        # A page that is full is indexed in its pass, so that the prefix cache's pages have their ages.
        n = min(min(self._text(entry).n_left, PAGE - entry.n_computed % PAGE) for entry in running)
        return n if sum(entry.n_new_pages(n) for entry in running) <= self.pages.n_available() else 1

    def _text(self, entry: Entry) -> Text:
        text = self.pages.requests[entry]
        assert isinstance(text, Text)
        return text

    def end(self, now: float) -> list[Text]:
        """End the pass, or passes.

        Returns:
            The texts that are complete.
        """
        done, self._pass = self._pass, None
        assert done
        if isinstance(done, _Leap):
            seconds, entries = np.diff(done.ends), done.entries
            n = len(seconds)
            self._compute([(entry, n) for entry in entries])
            for one in seconds.tolist():
                self._pace.observe(len(entries), 0, one)
            self.tally.between.add(seconds, len(entries))
            self._count(n, n * len(entries))
            return [text for entry in entries if (text := self._advance(entry, n, now, leapt=True))]
        n_decoding = sum(entry.n_left == 1 for entry, _ in done)
        n_prompt = sum(n for entry, n in done if entry.n_left > 1)
        self._compute(done)
        finished = [text for entry, n in done if (text := self._advance(entry, n, now, leapt=False))]
        self._pace.observe(n_decoding, n_prompt, now - self._begun)
        self._count(1, len(done))
        return finished

    def _compute(self, batch: list[tuple[Entry, int]]) -> None:
        """What Loop._forward and Model.forward do to the pages."""
        self.pages.make_free(sum(entry.n_new_pages(n) for entry, n in batch))
        for entry, n in batch:
            sequence = self._text(entry).sequence
            assert sequence
            sequence.reserve(n)
            sequence.advance(n)

    def _count(self, passes: int, texts: int) -> None:
        self.tally.passes += passes
        self.tally.texts += texts

    def _advance(self, entry: Entry, n: int, now: float, *, leapt: bool) -> Text | None:
        """What Loop._advance does for a text: n more ids are computed. Returns it if it is complete."""
        text, tally = self._text(entry), self.tally
        if not text.begun:
            text.begun = True
            tally.cached += entry.n_computed
        tally.prompt += min(n, max(text.n_prompt - entry.n_computed, 0))
        entry.n_computed += n
        entry.shares_tail = False
        entry.passed_over = 0
        drawn = entry.n_computed - entry.n_ids + 1  # of a leap all, of a pass one
        if drawn > 0:
            if text.n_ids == text.n_prompt:
                text.first = now
                tally.first.add(np.array([now - text.asked]))
            elif not leapt:
                tally.between.add(np.array([now - text.last]))
            tally.generated += drawn
            text.n_ids += drawn
            text.last = now
            entry.n_ids = text.n_ids
        if text.n_left:
            self.pages.index(text)
            return None
        self.scheduler.remove(entry)
        del self.pages.requests[entry]
        self.pages.leave(text)
        tally.finished += 1
        return text


@dataclass(frozen=True)
class Routing:
    """How a question finds its machine.

    Attributes:
        policy: "random"; "two": of two at random the one with fewer texts; "least": the one with
            the fewest of all, by what was known a while ago; "prefix": by a hash of the first ids;
            "conversation": by a hash of the conversation.
        pages: ids that "prefix" looks at, in pages.
        full: texts of the chosen machine from which on "prefix" and "conversation" look at two
            others and take the better one if it has two thirds of the texts or fewer.
        stale: seconds between two looks of "least".
    """

    policy: str = "two"
    pages: int = 4
    full: int = 16
    stale: float = 1.0


class Fleet:
    """Engines, questions that come, and the clock.

    Args:
        cost: of a pass.
        n_engines: machines; with a pipeline, pipelines times stages.
        workload: what is asked.
        rate: conversations that begin in a second.
        max_running: texts at once, in each engine.
        seed: of all that is drawn.
        routing: how a question finds its machine.
        n_pages: of each engine; None: what its memory holds.
        n_batch: most tokens of prompts in a pass.
        pace: as of pymixtral.engine.Pace.
        life: seconds that a machine lives on average; 0: for ever.
        repair: seconds until it is back.
        growth: engines that come later, and when.
        leaps: as of Engine.

    Attributes:
        now: seconds since the beginning.
        engines: all of them.
        tally: what happened since the last call of restart().

    Raises:
        ValueError: if the weights do not fit, too few pages are left for a text, or the simulated caches
            would take gigabytes.
    """

    def __init__(
        self,
        cost: Cost,
        n_engines: int,
        workload: Workload,
        rate: float,
        *,
        max_running: int = 16,
        seed: int = 0,
        routing: Routing = Routing(),
        n_pages: int | None = None,
        n_batch: int = 512,
        pace: float | None = None,
        life: float = 0.0,
        repair: float = 120.0,
        growth: tuple[int, float] = (0, 0.0),
        leaps: bool = True,
    ) -> None:
        n_pages = cost.n_pages // cost.stages if n_pages is None else n_pages
        if n_pages * PAGE < workload.context + PAGE:
            raise ValueError(
                f"expected room for a text of {workload.context} tokens, found {max(n_pages, 0)} pages of {PAGE} "
                f"({cost.config.name}, {cost.mix}, {cost.stages} x {cost.machine.name}): choose a larger machine"
            )
        total = n_engines + growth[0]
        if total * n_pages * _PAGE_BYTES > _MOST_BYTES:
            raise ValueError(
                f"expected caches of at most {_MOST_BYTES >> 30} GiB to simulate, found {total} of {n_pages} pages: "
                "give n_pages"
            )
        self.now = 0.0
        self.workload = workload
        self._rng = np.random.default_rng(seed)
        self._rate = rate
        self._routing = routing
        self._life, self._repair = life, repair
        groups = [Stages(cost) for _ in range(-(-total // cost.stages))]
        self.engines = [
            Engine(groups[i // cost.stages], n_pages, max_running, n_batch, pace, leaps=leaps) for i in range(total)
        ]
        self._load = np.zeros(total, np.int64)
        self._seen, self._looked = self._load.copy(), -1.0
        self._salts = np.random.default_rng([seed, 1]).integers(1 << 63, size=total, dtype=np.uint64)
        self._alive = np.arange(total) < n_engines
        self._ups = np.flatnonzero(self._alive)
        self._number = 0
        self._events: list[tuple[float, int, str, int, int, Text | None]] = []
        self._stranded: deque[Text] = deque()
        self.tally = Tally()
        if rate > 0:
            self._push(self._rng.exponential(1 / rate), "begin")
        if growth[0]:
            self._push(growth[1], "grow")
        if life:
            for i in range(n_engines):
                self._push(self._rng.exponential(life), "fail", i)
        self.restart()

    # --- Time -------------------------------------------------------------------------------------

    def run(self, until: float) -> Tally:
        """Let time pass.

        Args:
            until: when to stop, in seconds since the beginning.

        Returns:
            The tally.
        """
        while self._events and self._events[0][0] <= until:
            self.now, _, kind, i, version, text = heapq.heappop(self._events)
            if kind == "end":
                if self.engines[i].version == version:
                    self._end(i)
            elif kind == "ask":
                assert text
                self.ask(text)
            else:
                getattr(self, f"_{kind}")(i)
        if until < float("inf"):
            self.now = max(self.now, until)
        for engine in self.engines:
            engine.settle(self.now)
        return self.tally

    def drain(self, limit: float = float("inf")) -> Tally:
        """Let no new conversation begin, and time pass until all is answered; see run()."""
        self._rate = self._life = 0.0
        return self.run(limit)

    def restart(self) -> Tally:
        """Begin a new tally, and return it."""
        self.tally = Tally()
        for engine in self.engines:
            engine.tally = self.tally
        return self.tally

    @property
    def next_time(self) -> float:
        """When the next thing happens, infinity if nothing will."""
        return self._events[0][0] if self._events else float("inf")

    @property
    def n_texts(self) -> int:
        """Questions that wait or are being answered."""
        return sum(engine.n_texts for engine in self.engines) + len(self._stranded)

    def _push(self, time: float, kind: str, i: int = -1, version: int = 0, text: Text | None = None) -> None:
        self._number += 1
        heapq.heappush(self._events, (time, self._number, kind, i, version, text))

    # --- What happens -----------------------------------------------------------------------------

    def _begin(self, _: int) -> None:
        """A conversation begins."""
        if self._rate > 0:
            self.ask(Text(self.workload.conversation(self._rng), 0, self.now))
            self._push(self.now + self._rng.exponential(1 / self._rate), "begin")

    def ask(self, text: Text, *, again: bool = False) -> None:
        """Send a question to a machine.

        Args:
            text: the question.
            again: whether it was sent before.
        """
        self.tally.asked += not again
        if not len(self._ups):
            self._stranded.append(text)
            return
        i = self._route(text)
        engine = self.engines[i]
        engine.add(text)
        self._load[i] += 1
        end = engine.cut(self.now) if engine.busy else engine.begin(self.now)
        if end is not None:
            self._push(end, "end", i, engine.version)

    def _end(self, i: int) -> None:
        """A pass ends."""
        engine = self.engines[i]
        for text in engine.end(self.now):
            self._load[i] -= 1
            if text.turn + 1 < len(text.conversation.turns):
                at = self.now + self._rng.exponential(self.workload.think)
                self._push(at, "ask", text=Text(text.conversation, text.turn + 1, at))
        end = engine.begin(self.now)
        if end is not None:
            self._push(end, "end", i, engine.version)

    def _fail(self, i: int) -> None:
        if not self._life:
            return
        self._alive[i] = False
        self._ups = np.flatnonzero(self._alive)
        lost = self.engines[i].reset()
        self._load[i] = 0
        self._push(self.now + self._repair, "return", i)
        for text in lost:
            self.tally.retried += 1
            self.tally.again += text.n_ids > text.n_prompt
            self.ask(Text(text.conversation, text.turn, text.asked), again=True)

    def _return(self, i: int) -> None:
        self._alive[i] = True
        self._ups = np.flatnonzero(self._alive)
        if self._life:
            self._push(self.now + self._rng.exponential(self._life), "fail", i)
        while self._stranded:
            self.ask(self._stranded.popleft(), again=True)

    def _grow(self, _: int) -> None:
        self._alive[:] = True
        self._ups = np.flatnonzero(self._alive)

    # --- Where to ---------------------------------------------------------------------------------

    def _route(self, text: Text) -> int:
        routing, ups = self._routing, self._ups
        if routing.policy == "random":
            return int(ups[self._rng.integers(len(ups))])
        if routing.policy == "two":
            return self._better()
        if routing.policy == "least":
            if self.now - self._looked >= routing.stale:
                self._seen, self._looked = self._load.copy(), self.now
            few = self._seen[ups]
            return int(self._rng.choice(ups[few == few.min()]))
        key = text.conversation.number if routing.policy == "conversation" else _hash(text, routing.pages)
        i = int(ups[np.argmax(_mix(self._salts[ups] ^ np.uint64(key)))])
        if self._load[i] >= routing.full:
            other = self._better()
            if 1.5 * self._load[other] <= self._load[i]:
                return other
        return i

    def _better(self) -> int:
        a, b = (int(one) for one in self._ups[self._rng.integers(len(self._ups), size=2)])
        return a if self._load[a] <= self._load[b] else b


def _hash(text: Text, pages: int) -> int:
    """A number of the first whole pages of a prompt, at most some."""
    n = max(1, min(pages, text.n_prompt // PAGE)) * PAGE
    return zlib.crc32(text.ids[: min(n, text.n_prompt)].tobytes()) * 0x9E3779B97F4A7C15 & (1 << 64) - 1


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spreads bits, as splitmix64 does."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def questions(lengths: list[tuple[int, int]], seed: int = 0) -> Iterator[Text]:
    """Make questions of one turn with given lengths, asked at the beginning.

    Args:
        lengths: tokens of each prompt and of its answer.
        seed: of the ids.
    """
    rng = np.random.default_rng(seed)
    for number, (prompt, answer) in enumerate(lengths):
        ids = rng.integers(3, 32000, prompt + answer, np.int32)
        yield Text(Conversation(number, ids, [(prompt, answer)]), 0, 0.0)
