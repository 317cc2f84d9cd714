"""Calibration: it runs texts through a model and measures an importance matrix.

A text is cut into windows of n_ctx tokens, as for perplexity(). Each begins with the begin-of-text
token if the model wants one, and tokens at the end that do not fill a window are not used. For each
matrix of each layer, each expert by itself, and for the output matrix, the squares of the inputs
are summed over the tokens, column by column.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence

import numpy as np

from pymixtral import ops
from pymixtral.arguments import integer
from pymixtral.arrays import F32, I32
from pymixtral.errors import InvalidArgumentError
from pymixtral.escapes import escaped
from pymixtral.evaluation.windows import Windows, tokens_of
from pymixtral.files.importance import ImportanceMatrix
from pymixtral.mixtral import Mixtral
from pymixtral.progress import progress_bar

SAVE_SECONDS = 300.0
"""Seconds between two saves, so that a crash loses little work and saving takes little time."""


def calibrate(
    model: Mixtral,
    texts: Sequence[tuple[str, str]],
    *,
    n_ctx: int = 512,
    n_windows: int | None = None,
    resume: ImportanceMatrix | None = None,
    save: Callable[[ImportanceMatrix], None] | None = None,
    progress: bool = True,
) -> ImportanceMatrix:
    """Measure the importance matrix of a model.

    Sums are float64 and in a fixed order, window by window, so the same texts give the same sums on
    every machine.

    Args:
        model: the model.
        texts: (name, text) of each text; the names are for messages and for the file.
        n_ctx: tokens of a window, 3 to model.n_ctx.
        n_windows: use only the first windows of all texts together; None: all.
        resume: the result of an earlier call with the same texts and n_ctx, to go on after its last
            window.
        save: called with the matrix so far every five minutes, and before an exception such as
            KeyboardInterrupt leaves this function.
        progress: show a bar on stderr if that is a terminal.

    Returns:
        The importance matrix.

    Raises:
        InvalidArgumentError: for a text shorter than a window, `n_windows` out of its range, and a
            `resume` of other texts, another model or another n_ctx.
        UnsupportedError: for a file without a tokenizer.
        NonFiniteError: if the model's weights lead to NaN or infinity.
    """
    most = None if n_windows is None else integer("n_windows", n_windows, 1)
    windows = text_windows(model, texts, n_ctx)
    digest = _digest(model, n_ctx, windows)
    windows = windows[:most]
    if resume is None:
        state = ImportanceMatrix({}, [escaped(name) for name, _ in texts], 0, n_ctx, digest)
    elif resume.digest == digest:
        state = resume
    else:
        raise InvalidArgumentError(
            "expected an importance matrix of the same model, texts and n_ctx to go on with, found one that was begun "
            "with others: begin a new one"
        )
    saved_at, saved = time.monotonic(), state.n_windows
    total, done = len(windows) * n_ctx, state.n_windows * n_ctx
    with progress_bar(total=total, initial=done, unit=" tokens", unit_scale=True, shown=progress) as bar:
        try:
            for window in windows[state.n_windows :]:
                observers = model.observers()
                head_input = model.observe(window, observers)
                _add(state, model, observers, head_input)
                bar.update(n_ctx)
                if save and time.monotonic() - saved_at > SAVE_SECONDS:
                    save(state)
                    saved_at, saved = time.monotonic(), state.n_windows
        except BaseException:
            if save and state.n_windows > saved:
                save(state)
            raise
    return state


def text_windows(model: Mixtral, texts: Sequence[tuple[str, str]], n_ctx: int) -> list[I32]:
    """Cut texts into windows.

    Args:
        model: the model.
        texts: as of calibrate().
        n_ctx: as of calibrate().

    Returns:
        The ids of each window, int32 [n_ctx].

    Raises:
        InvalidArgumentError: for a text shorter than a window.
        UnsupportedError: for a file without a tokenizer.
    """
    bos = model.tokenize("")
    windows: list[I32] = []
    for name, text in texts:
        tokens = tokens_of(model, text)
        try:
            windows += Windows.cut(tokens, n_ctx, None, None, bos[0] if bos else None, longest=model.n_ctx)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{name}: {error}") from None
    return windows


def _digest(model: Mixtral, n_ctx: int, windows: Sequence[I32]) -> str:
    digest = hashlib.sha256(repr((model.config, n_ctx)).encode())
    for window in windows:
        digest.update(window.astype("<i4").tobytes())
    return digest.hexdigest()


def _add(state: ImportanceMatrix, model: Mixtral, observers: Sequence[ops.Observer], head_input: F32) -> None:
    """Adds one window. New sums replace old ones at the end, so an interrupt leaves no mixture."""
    new = ImportanceMatrix(dict(state.entries))
    suffix = "_exps" if model.config.n_experts > 1 else ""
    n_tokens = np.array([float(len(head_input))])
    for i, seen in enumerate(observers):
        for name in ("attn_q", "attn_k", "attn_v"):
            new.add(f"blk.{i}.{name}.weight", seen.qkv_input[None], n_tokens)
        new.add(f"blk.{i}.attn_output.weight", seen.output_input[None], n_tokens)
        counts = seen.n_tokens.astype(np.float64)
        for name, sums in (
            ("ffn_gate", seen.expert_input),
            ("ffn_up", seen.expert_input),
            ("ffn_down", seen.down_input),
        ):
            new.add(f"blk.{i}.{name}{suffix}.weight", sums, counts)
    new.add("output.weight", np.square(head_input, dtype=np.float64).sum(axis=0)[None], n_tokens)
    state.entries, state.n_windows = new.entries, state.n_windows + 1
