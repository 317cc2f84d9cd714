"""Record: what is known of one request over HTTP, for the log and the trace."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pymixtral.engine.completion import Completion, Stats

_ID = re.compile(r"[\w.:@/+=-]{1,128}", re.ASCII)

_MOST_PATH = 500
"""Characters of a path that are logged."""


@dataclass
class Record:
    """A request, from its head to the last byte of its answer.

    Attributes:
        method: of HTTP.
        path: without the query, which may hold secrets.
        client: its address and port.
        id: the name of the request; see name_of().
        came: when it came, in seconds since 1970.
        begin: the same as time.perf_counter() counts.
        status: of the answer; 0: the client left before.
        first: when the answer began, as time.perf_counter() counts; 0: not yet.
        computed: when the last text was complete, likewise.
        end: when all was sent, or the client had left.
        texts: the work that each text took, and why it ended.
    """

    method: str
    path: str
    client: str
    id: str
    came: float = field(default_factory=time)
    begin: float = field(default_factory=perf_counter)
    status: int = 0
    first: float = 0.0
    computed: float = 0.0
    end: float = 0.0
    texts: list[tuple[Stats, str]] = field(default_factory=list)

    def finished(self, completion: Completion) -> None:
        """Note a text that is complete.

        Args:
            completion: the text.
        """
        self.texts.append((completion.stats, completion.finish_reason))
        self.computed = perf_counter()

    def summary(self) -> dict[str, Any]:
        """What the log says of it, as JSON has it. Times are seconds."""
        found: dict[str, Any] = {
            "time": round(self.came, 3),
            "id": self.id,
            "client": self.client,
            "method": self.method,
            "path": self.path[:_MOST_PATH],
            "status": self.status,
            "seconds": round(self.end - self.begin, 6),
        }
        if self.texts:
            first = self.texts[0][0]
            found |= {
                "prompt_tokens": first.prompt_tokens,
                "cached_tokens": first.cached_tokens,
                "generated_tokens": sum(stats.generated_tokens for stats, _ in self.texts),
                "finish_reasons": [reason for _, reason in self.texts],
            }
        return found

    def phases(self) -> dict[str, Any]:
        """How long each phase of it took, as JSON has it.

        A text is queued until its first pass, then its prompt is computed, then its tokens. The rest
        of the time is that before the engine had the first text, and that after the last was
        complete.
        """
        engine = max((stats.seconds for stats, _ in self.texts), default=0.0)
        computed = self.computed or self.end
        return self.summary() | {
            "read_seconds": round(max(computed - self.begin - engine, 0.0), 6),
            "texts": [
                {
                    "queued_seconds": round(stats.queue_seconds, 6),
                    "prompt_seconds": round(max(stats.first_seconds - stats.queue_seconds, 0.0), 6),
                    "decode_seconds": round(stats.seconds - (stats.first_seconds or stats.queue_seconds), 6),
                    "prompt_tokens": stats.prompt_tokens,
                    "cached_tokens": stats.cached_tokens,
                    "generated_tokens": stats.generated_tokens,
                    "finish_reason": reason,
                }
                for stats, reason in self.texts
            ],
            "first_byte_seconds": round(self.first - self.begin, 6) if self.first else None,
            "sent_seconds": round(self.end - computed, 6),
        }


def name_of(id: str | None) -> str:
    """The name of a request: what the client calls it, if that is sane, or a new one.

    Args:
        id: the header x-request-id; None: there is none.
    """
    return id if id and _ID.fullmatch(id) else uuid.uuid4().hex


current: ContextVar[Record | None] = ContextVar("record", default=None)
"""The request that a task answers."""
