"""The tokens of a pass: rows of all texts become logits and tokens. A text that fails, fails alone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pymixtral.arrays import F32
from pymixtral.engine.generation import Continuation
from pymixtral.errors import PymixtralError
from pymixtral.model.forward import Model
from pymixtral.sampling.sampler import draw

_Rows = tuple[Continuation, F32]
"""A text, and rows of it from the last certain position on: one, or more where tokens are proposed."""


def draw_tokens(model: Model, texts: list[_Rows]) -> None:
    """Draw the next tokens of texts, as long as each confirms what was proposed.

    Siblings of a text draw from its row. What goes wrong with a text is set as its `failed`.

    Args:
        model: computes logits.
        texts: with rows after the last layer, float32 [1 or more, hidden].
    """
    going = _logits(model, texts)
    for request, rows in list(going):
        going += [(sibling, rows) for sibling in request.siblings if isinstance(sibling, Continuation)]
    r = 0
    while going:
        ready = [(request, rows, row) for request, rows in going if (row := _prepared(request, rows[r])) is not None]
        going = []
        for request, rows, token in _drawn(model, ready):
            if _takes(request, token, rows, r):
                going.append((request, rows))
        r += 1


def _logits(model: Model, texts: list[_Rows]) -> list[_Rows]:
    """The logits of each text's rows, in one product if none of them fails."""
    try:
        rows = model.logits(texts[0][1] if len(texts) == 1 else np.concatenate([rows for _, rows in texts]))
    except Exception as error:
        if len(texts) == 1:
            texts[0][0].failed = error
            return []
        return [one for text in texts for one in _logits(model, [text])]
    found, at = [], 0
    for request, hidden in texts:
        found.append((request, rows[at : at + len(hidden)]))
        at += len(hidden)
    return found


def _prepared(request: Continuation, logits: F32) -> F32 | None:
    """A row as the request's processor leaves it; None if that fails, or the text is complete."""
    try:
        return request.prepare(logits)
    except BaseException as error:  # of a caller's function, or his grammar
        request.failed = error
        return None


def _drawn(model: Model, ready: list[tuple[Continuation, F32, F32]]) -> Iterable[tuple[Continuation, F32, int]]:
    """A token for each row that is left."""
    if not ready:
        return
    try:
        logits = ready[0][2][np.newaxis] if len(ready) == 1 else np.stack([row for _, _, row in ready])
        samplers, texts = [one.sampler for one, _, _ in ready], [one.text_ids for one, _, _ in ready]
        tokens = draw(model.context, samplers, logits, texts, [one.mask for one, _, _ in ready])
    except Exception as error:
        for request, _, _ in ready:
            request.failed = error
        return
    for (request, rows, _), token in zip(ready, tokens, strict=True):
        if isinstance(token, PymixtralError):
            request.failed = token
        else:
            yield request, rows, token


def _takes(request: Continuation, token: int, rows: F32, r: int) -> bool:
    """Whether the token that was drawn is the one that was proposed."""
    try:
        return request.draw(token, rows[r], len(rows) - 1)
    except Exception as error:
        request.failed = error
        return False
