"""Settings: every name and limit of a server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pymixtral.arguments import integer, number, shown
from pymixtral.errors import InvalidArgumentError

_LONGEST = 1e6
"""Seconds, eleven days."""


@dataclass(frozen=True)
class Settings:
    """How a server is named, what it lets in, and how long it waits.

    Attributes:
        name: the model's name in answers; "": that of its file.
        any_model: answer requests for whatever model; else those for another name are refused.
        keys: the API keys, of which a request needs one; none: everybody may ask.
        cors_origins: origins, such as "https://example.org", whose pages may ask; "*": all.
        loopback: whether only this machine can connect.
        max_batch: texts that are computed together.
        max_waiting: texts that wait while so many are computed; more are refused.
        timeout: seconds that a request may take from its arrival; None: no limit.
        drain: seconds that running answers get after a signal to end.
        max_body: bytes of a request's body.
        max_connections: connections at once.
        header_seconds: how long the head of a request may take.
        body_seconds: how long the body of a request may take.
        write_seconds: how long a client may read nothing of its answer.
        idle_seconds: how long a connection without a request stays open.
        ping_seconds: how long a stream is silent before a comment says that it lives.
        scales: what an adapter of this name counts; others count 1.
        adapter_folder: the folder of which requests may load adapters; None: they may load none.
        max_adapters: the most adapters that may be loaded then.

    Raises:
        InvalidArgumentError: for a number out of its range, for an origin without http:// or
            https://, which no page has, and for a folder that is none.
    """

    name: str = ""
    any_model: bool = True
    keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    loopback: bool = True
    max_batch: int = 16
    max_waiting: int = 128
    timeout: float | None = None
    drain: float = 30.0
    max_body: int = 8 << 20
    max_connections: int = 512
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    write_seconds: float = 30.0
    idle_seconds: float = 75.0
    ping_seconds: float = 15.0
    scales: Mapping[str, float] = field(default_factory=dict)
    adapter_folder: Path | None = None
    max_adapters: int = 32

    def __post_init__(self) -> None:
        integer("max_waiting", self.max_waiting, 0, 1_000_000)
        if self.timeout is not None:
            number("timeout", self.timeout, 1e-3, _LONGEST)
        number("drain", self.drain, 0, _LONGEST)
        integer("max_adapters", self.max_adapters, 0)
        if self.adapter_folder is not None and not self.adapter_folder.is_dir():
            raise InvalidArgumentError(
                f"expected adapter_folder to be a folder, found {shown(str(self.adapter_folder))}: make it first"
            )
        for origin in self.cors_origins:
            if origin != "*" and not re.fullmatch(r"(?i)https?://[^/\s]+/?", origin):
                raise InvalidArgumentError(
                    f"expected cors_origins to be * or addresses such as https://example.org, found {shown(origin)}"
                )

    @property
    def origins(self) -> tuple[str, ...]:
        """The origins as browsers write them: in lower case, without a slash at the end."""
        return tuple(origin.lower().rstrip("/") for origin in self.cors_origins)
