"""Sessions: a text's pages leave the engine for a file, and come back.

Pages travel in groups, each a call between two passes: other texts go on meanwhile, and no more
memory is needed than a group takes. Nothing is held between two groups, as the same pages can always
be computed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pymixtral.arrays import I32, U8
from pymixtral.engine.adapters import Adapted, namespace
from pymixtral.engine.asking import Question, ask
from pymixtral.engine.engine import Engine
from pymixtral.engine.pages import Pages
from pymixtral.engine.requests import Request
from pymixtral.files.sessions import SessionFile, SessionForm, write
from pymixtral.model.page import PageForm

_GROUP_BYTES = 1 << 25
"""Of pages that are copied between two passes, in some 30 ms: a small part of a pass of a large model."""


class _Export(Request):
    """A request for pages of a text, which is computed as far as the cache does not have it."""

    def __init__(self, ids: I32, adapted: Adapted, first: int, n: int) -> None:
        super().__init__(ids, rows=range(0), adapters=adapted, namespace=namespace(None, adapted))
        self._first, self._n = first, n

    def result(self) -> list[U8]:
        """The pages that are wanted, while the text still holds them."""
        assert self.sequence
        return self.sequence.read(self._first, self._n)


def save(engine: Engine, ids: I32, adapted: Adapted, path: Path, form: SessionForm, *, force: bool) -> None:
    """Write a text and its pages to a file; what the cache does not have is computed.

    Args:
        engine: has the pages.
        ids: the text, int32 [1 to n_ctx].
        adapted: the adapters that it is computed with.
        path: the file.
        form: of the engine's model, with these adapters.
        force: whether an existing file is replaced.

    Raises:
        OutputError: if the file cannot be written, or exists.
        ClosedError: after close().
        Exception: whatever ends the computation.
    """
    n = max(_GROUP_BYTES // form.page_bytes, 1)

    def pages() -> Iterator[U8]:
        for first in range(0, form.n_pages(len(ids)), n):
            group = engine.call_with_pages(partial(_find, ids, adapted, first, n))
            if group is None:
                group = ask(engine, Question([[_Export(ids, adapted, first, n)]], _only))
            yield from group

    write(path, form, ids, pages(), force=force)


def load(engine: Engine, adapted: Adapted, path: Path, form: SessionForm, pages: PageForm) -> list[int]:
    """Put the pages of a file into the prefix cache, once all of it has been checked.

    Args:
        engine: gets the pages.
        adapted: the adapters that the text was computed with.
        path: the file.
        form: of the engine's model, with these adapters.
        pages: the form of its pages.

    Returns:
        The ids of the text.

    Raises:
        SessionFileError: for a file that is broken or of another model.
        ContextLengthError: for a text longer than n_ctx.
        ClosedError: after close().
    """
    n = max(_GROUP_BYTES // form.page_bytes, 1)
    with SessionFile(path, form) as file:
        for i in range(file.n_pages):
            _checked(file, pages, i)
        at = 0
        while at < file.n_pages:
            # Checked again, as somebody may have written to the file meanwhile.
            group = [_checked(file, pages, i) for i in range(at, min(at + n, file.n_pages))]
            reached = engine.call_with_pages(partial(_put, file.ids, adapted, at, group))
            if reached <= at:
                break  # others need the memory: what is missing is computed when it is needed
            at = reached
        ids: list[int] = file.ids.tolist()
        return ids


def _find(ids: I32, adapted: Adapted, first: int, n: int, pages: Pages) -> list[U8] | None:
    return pages.find(ids, first, n, namespace(None, adapted))


def _put(ids: I32, adapted: Adapted, first: int, contents: list[bytes], pages: Pages) -> int:
    return pages.put(ids, first, contents, namespace(None, adapted))


def _only(results: list[list[U8]]) -> list[U8]:
    return results[0]


def _checked(file: SessionFile, form: PageForm, i: int) -> bytes:
    content = file.page(i)
    if not form.is_sound(content):
        raise file.refuse(i)
    return content
