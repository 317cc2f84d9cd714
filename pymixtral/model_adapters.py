"""A model's adapters: loaded, listed and unloaded while it runs."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pymixtral.adapters.opening import open_adapter
from pymixtral.arguments import path_of, shown
from pymixtral.core import Core
from pymixtral.errors import InvalidArgumentError
from pymixtral.model.adapter import Adapter
from pymixtral.model.config import ModelConfig


class ModelAdapters:
    """The part of Mixtral that loads and unloads adapters."""

    config: ModelConfig
    core: Core

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """The adapters that are loaded now, by name. Each has source, rank and nbytes, the bytes in memory."""
        return self.core.factory.adapters.named

    def load_adapter(self, name: str, adapter: str | os.PathLike[str] | Adapter, *, replace: bool = False) -> None:
        """Load a low-rank adapter (LoRA), which requests then name. Others go on meanwhile.

        See docs/adapters.md.

        Args:
            name: what requests call it, 1 to 256 printable characters.
            adapter: a file or a folder, in one of the forms of docs/adapter-formats.md; or an Adapter.
            replace: whether it takes the place of one of this name. Requests that have that one end
                with it.

        Raises:
            AdapterError: for an adapter that cannot be read, or does not fit the model.
            ModelFileError: for a GGUF file that is broken.
            InvalidArgumentError: for a name that is none, or is taken.
            ClosedError: after close().
        """
        self.core.engine.check_open()
        loaded = self.core.factory.adapters
        loaded.check_free(name, replace=replace)  # before a file is read
        before = loaded.add(name, opened_adapter(adapter, self.config), replace=replace)
        if before is not None:
            self.core.engine.let_go(before)

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter: its name is gone at once.

        Requests that have it end with it. Its memory is given back after the last of them.

        Args:
            name: of one that is loaded.

        Raises:
            InvalidArgumentError: for another name.
            ClosedError: after close().
        """
        self.core.engine.check_open()
        self.core.engine.let_go(self.core.factory.adapters.remove(name))


def opened_adapters(
    adapters: Mapping[str, str | os.PathLike[str] | Adapter] | None, config: ModelConfig
) -> dict[str, Adapter]:
    """Open the adapters that a model begins with.

    Args:
        adapters: a file, a folder or an Adapter for each name; None: none.
        config: the model's numbers.

    Returns:
        The adapters.

    Raises:
        AdapterError: for one that cannot be read, or does not fit the model.
        ModelFileError: for a GGUF file that is broken.
        InvalidArgumentError: for something else than a mapping to such.
    """
    if adapters is None:
        return {}
    if not isinstance(adapters, Mapping):
        raise InvalidArgumentError(
            f"expected adapters to be a mapping of names to files or folders, found {shown(adapters)}"
        )
    return {name: opened_adapter(adapter, config) for name, adapter in adapters.items()}


def opened_adapter(adapter: str | os.PathLike[str] | Adapter, config: ModelConfig) -> Adapter:
    """Open an adapter.

    Args:
        adapter: a file, a folder or an Adapter.
        config: the model's numbers.

    Returns:
        One that fits the model, whose digest is known.

    Raises:
        AdapterError: for one that cannot be read, or does not fit the model.
        ModelFileError: for a GGUF file that is broken.
        InvalidArgumentError: for another type.
    """
    if not isinstance(adapter, Adapter):
        adapter = open_adapter(path_of("adapter", adapter), config)
    adapter.check(config)
    _ = adapter.digest  # here, where the caller waits, not where others do
    return adapter
