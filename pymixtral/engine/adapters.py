"""Adapters of an open model: which are loaded under which names, and which of them a request has."""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable, Mapping
from types import MappingProxyType

from pymixtral.arguments import number, shown
from pymixtral.errors import InvalidArgumentError
from pymixtral.model.adapter import Adapter

Choice = str | Mapping[str, float] | None
"""What a caller says of adapters: a name, or several with their scales; None: the model's own choice."""

Adapted = Mapping[Adapter, float]
"""The adapters of one text and their scales, ordered by digest; empty: none."""

_LONGEST_NAME = 256
_LARGEST_SCALE = 1000.0


class Adapters:
    """The adapters that are loaded, by name. Any thread may call it.

    A name leads to an adapter at the moment when a request is made: what is unloaded or loaded later
    does not touch it.

    Args:
        named: the first ones.
        choice: what requests have that say nothing; None: none.

    Raises:
        InvalidArgumentError: for names that are none, and a choice that is not among them.
    """

    def __init__(self, named: Mapping[str, Adapter] | None = None, choice: Choice = None) -> None:
        self._lock = threading.Lock()
        self._named: Mapping[str, Adapter] = MappingProxyType({})
        self._choice: Choice = None
        for name, adapter in (named or {}).items():
            self.add(name, adapter)
        self.chosen(choice)
        self._choice = choice

    @property
    def named(self) -> Mapping[str, Adapter]:
        """Those that are loaded now. The mapping stays as it is, whatever is loaded later."""
        return self._named

    def check_free(self, name: object, *, replace: bool) -> str:
        """Check a name for another adapter.

        Args:
            name: 1 to 256 characters, all of them printable.
            replace: whether the name may be taken.

        Returns:
            The name.

        Raises:
            InvalidArgumentError: for another name, and one that is taken.
        """
        if not isinstance(name, str) or not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable():
            raise InvalidArgumentError(
                f"expected the name of an adapter to be 1 to {_LONGEST_NAME} printable characters, found {shown(name)}"
            )
        if not replace and name in self._named:
            raise InvalidArgumentError(
                f"expected the name of an adapter that is not loaded, found {shown(name)}, which is: unload it, or "
                "give replace=True"
            )
        return name

    def add(self, name: str, adapter: Adapter, *, replace: bool = False) -> Adapter | None:
        """Load an adapter.

        Args:
            name: what requests call it.
            adapter: one that fits the model.
            replace: whether it takes the place of one of this name.

        Returns:
            The one whose place it has taken; None if there was none.

        Raises:
            InvalidArgumentError: as check_free().
        """
        with self._lock:
            self.check_free(name, replace=replace)
            before = self._named.get(name)
            self._named = MappingProxyType({**self._named, name: adapter})
        return before

    def remove(self, name: str) -> Adapter:
        """Unload an adapter: no request can name it any more.

        Args:
            name: of one that is loaded.

        Returns:
            The adapter, which requests may still have.

        Raises:
            InvalidArgumentError: for another name.
        """
        with self._lock:
            adapter = self.find(name)
            self._named = MappingProxyType({other: one for other, one in self._named.items() if other != name})
        return adapter

    def find(self, name: object) -> Adapter:
        """Find an adapter.

        Args:
            name: of one that is loaded.

        Raises:
            InvalidArgumentError: for another name; the message lists those that are loaded.
        """
        named = self._named
        if not isinstance(name, str) or name not in named:
            loaded = ", ".join(shown(one) for one in list(named)[:20]) or "none"
            raise InvalidArgumentError(
                f"expected adapter to be one that is loaded, found {shown(name)}: load it; loaded now: {loaded}"
            )
        return named[name]

    def has(self, adapter: Adapter) -> bool:
        """Whether an adapter is loaded under some name."""
        return any(one is adapter for one in self._named.values())

    def digests(self) -> dict[str, str]:
        """Say what the names lead to now: their adapters' digests in hexadecimal digits."""
        return {name: adapter.digest.hex() for name, adapter in sorted(self._named.items())}

    def chosen(self, choice: object) -> Adapted:
        """Find the adapters that a caller chooses.

        Args:
            choice: see Choice. An empty mapping is none, whatever the model's own choice.

        Returns:
            The adapters with scales that are not 0. Equal ones are one, with the sum of their scales.

        Raises:
            InvalidArgumentError: for names that are not loaded, and scales out of range.
        """
        if choice is None:
            choice = {} if self._choice is None else self._choice
        if isinstance(choice, str):
            choice = {choice: 1.0}
        if not isinstance(choice, Mapping):
            raise InvalidArgumentError(
                f"expected adapter to be a name, or a mapping of names to scales, found {shown(choice)}"
            )
        found: dict[bytes, tuple[Adapter, list[float]]] = {}
        for name, scale in choice.items():
            adapter = self.find(name)
            scale = number(f"the scale of adapter {shown(name)}", scale, -_LARGEST_SCALE, _LARGEST_SCALE)
            found.setdefault(adapter.digest, (adapter, []))[1].append(scale)
        summed = {adapter: math.fsum(scales) for _, (adapter, scales) in sorted(found.items())}  # in whatever order
        return {adapter: scale for adapter, scale in summed.items() if scale}

    def written(self, adapted: Adapted) -> str:
        """Write adapters for a message.

        Args:
            adapted: as chosen() returns it.

        Returns:
            Their names and scales; for one that has been unloaded its source.
        """
        names = {adapter: shown(name) for name, adapter in self._named.items()}
        return " and ".join(
            f"the adapter {names.get(adapter, adapter.source)} of scale {scale:g}" for adapter, scale in adapted.items()
        )


def identity(adapted: Adapted) -> tuple[tuple[str, float], ...]:
    """Say what tells adapters and their scales from others: equal ones give the same bits.

    Args:
        adapted: as Adapters.chosen() returns it.

    Returns:
        The digest of each in hexadecimal digits, and its scale.
    """
    return tuple((adapter.digest.hex(), scale) for adapter, scale in adapted.items())


def namespace(salt: str | None, adapted: Adapted) -> Hashable:
    """Make the namespace of a text in the prefix cache.

    Args:
        salt: the caller's own; None: none.
        adapted: the text's adapters, on which its keys and values depend.
    """
    return (salt, identity(adapted)) if adapted else salt
