"""What an engine counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class EngineStats:
    """The state of an engine, and its work since it began.

    Attributes:
        waiting: requests that wait for their turn.
        prefilling: requests whose text is being computed.
        decoding: requests of which one token is to be computed next.
        finished: requests that have ended, whatever the reason.
        preempted: times that a request had to give its pages back.
        passes: passes through the model.
        batch_size: mean number of texts in a pass.
        prompt_tokens: tokens of given texts that were computed.
        cached_tokens: tokens of given texts that the prefix cache had.
        generated_tokens: tokens generated.
        seconds: time of all passes.
        experts_read: mean number of different experts that a layer read in a pass of few tokens; 0
            before the first. A part of the passes is counted.
        pages: pages of the cache, of 64 positions each.
        used_pages: pages that running requests hold.
        cached_pages: pages that only the prefix cache holds.
    """

    waiting: int
    prefilling: int
    decoding: int
    finished: int
    preempted: int
    passes: int
    batch_size: float
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    seconds: float
    experts_read: float
    pages: int
    used_pages: int
    cached_pages: int

    @property
    def prefix_hit_rate(self) -> float:
        """The part of the tokens of given texts that the prefix cache had, 0 to 1."""
        total = self.prompt_tokens + self.cached_tokens
        return self.cached_tokens / total if total else 0.0

    @property
    def past(self) -> EngineStats:
        """The same of an engine that has ended: its work, without requests and pages."""
        return replace(self, waiting=0, prefilling=0, decoding=0, pages=0, used_pages=0, cached_pages=0)

    @classmethod
    def together(cls, stats: Sequence[EngineStats]) -> EngineStats:
        """Add up the statistics of engines that share a model.

        Args:
            stats: of each engine.

        Returns:
            Sums; batch_size and experts_read are means over the passes.
        """
        sums = {one.name: sum(getattr(each, one.name) for each in stats) for one in fields(cls)}
        for name in ("batch_size", "experts_read"):
            sums[name] = sum(getattr(each, name) * each.passes for each in stats) / max(sums["passes"], 1)
        return cls(**sums)


@dataclass
class Counts:
    """Running totals; see EngineStats."""

    finished: int = 0
    passes: int = 0
    texts: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0
