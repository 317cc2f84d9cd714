"""Measures an importance matrix: runs a text through a model and adds up what each weight matrix is given.

The text is cut into windows of n_ctx tokens, as for perplexity(): each begins with the begin-of-text token if the model wants one,
and what is left at the end, too short for a window, is not used. For each matrix of each layer, each expert by itself, and for the output
matrix, the squares of its inputs are summed over the tokens, column by column.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from pymixtral import ops
from pymixtral.arrays import F32, I32
from pymixtral.errors import InvalidArgumentError
from pymixtral.evaluation.windows import Windows, tokens_of
from pymixtral.files.importance import ImportanceMatrix
from pymixtral.mixtral import Mixtral

SAVE_SECONDS = 300.0



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
    """The importance matrix of a model on texts, (name, text) each.

    n_ctx: 3 to model.n_ctx. n_windows: only the first so many of all texts together; None: all. resume: what an earlier call with the
    same texts and n_ctx made, to go on after its last window. save: called with what there is, every five minutes and before an
    exception that ends the work, such as KeyboardInterrupt, leaves this function. progress: a bar on stderr when that is a terminal.

    Raises InvalidArgumentError (a text shorter than a window; a resume that does not belong to the texts), UnsupportedError for a file
    without a tokenizer, NonFiniteError. Sums are float64: their order, window by window, is fixed, so that the same texts give the same
    sums on every machine.
    """
    windows = _windows(model, texts, n_ctx)
    digest = _digest(model, n_ctx, windows)
    windows = windows[:n_windows]
    if resume is None:
        state = ImportanceMatrix({}, [name for name, _ in texts], 0, n_ctx, digest)
    elif resume.digest == digest:
        state = resume
    else:
        raise InvalidArgumentError("expected to go on with the same model, texts and n_ctx: the importance matrix was begun with others")
    saved_at, saved = time.monotonic(), state.n_windows
    total, done = len(windows) * n_ctx, state.n_windows * n_ctx
    with tqdm(total=total, initial=done, unit=" tokens", unit_scale=True, disable=None if progress else True) as bar:
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


def _windows(model: Mixtral, texts: Sequence[tuple[str, str]], n_ctx: int) -> list[I32]:
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
    """Adds one window. Nothing in here can be left half done but by an interrupt: the new state replaces the old one at the end."""
    new = ImportanceMatrix(dict(state.entries))
    suffix = "_exps" if model.config.n_experts > 1 else ""
    n_tokens = np.array([float(len(head_input))])
    for i, seen in enumerate(observers):
        for name in ("attn_q", "attn_k", "attn_v"):
            new.add(f"blk.{i}.{name}.weight", seen.qkv_input[None], n_tokens)
        new.add(f"blk.{i}.attn_output.weight", seen.output_input[None], n_tokens)
        counts = seen.n_tokens.astype(np.float64)
        for name, sums in (("ffn_gate", seen.expert_input), ("ffn_up", seen.expert_input), ("ffn_down", seen.down_input)):
            new.add(f"blk.{i}.{name}{suffix}.weight", sums, counts)
    new.add("output.weight", np.square(head_input, dtype=np.float64).sum(axis=0)[None], n_tokens)
    state.entries, state.n_windows = new.entries, state.n_windows + 1
