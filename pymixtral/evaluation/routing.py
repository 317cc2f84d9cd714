"""What experts are used for: traces of texts of several domains, and numbers of them.

A text is cut into windows of n_ctx tokens, each of which begins with the begin-of-text token if the
model wants one. That token is no part of the text, and is not counted. Formulas are those of section
5 of Jiang et al. 2024, arXiv:2401.04088, where "first" is a token's expert with the highest weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pymixtral.arguments import integer
from pymixtral.arrays import F64, I32, I64, U8
from pymixtral.errors import InvalidArgumentError
from pymixtral.evaluation.windows import tokens_of
from pymixtral.files.atomic import replacing
from pymixtral.mixtral import Mixtral
from pymixtral.model.routing import Routing
from pymixtral.progress import progress_bar

_ACCESSES = 1 << 12
"""Uses of experts that are looked up in a cache at once: it bounds the memory."""


@dataclass(frozen=True, eq=False)
class Domain:
    """The traces of texts of one kind.

    Attributes:
        name: the kind, such as "code".
        windows: the trace of each window, without the begin-of-text token, in the texts' order.
    """

    name: str
    windows: Sequence[Routing]

    @property
    def n_tokens(self) -> int:
        """Tokens of all windows."""
        return sum(window.n_tokens for window in self.windows)

    def joined(self, name: str) -> NDArray[Any]:
        """Join an array of all windows.

        Args:
            name: "ids", "experts", "weights" or "probabilities", as of Routing.

        Returns:
            The array, with a row for each token.
        """
        joined: NDArray[Any] = np.concatenate([getattr(window, name) for window in self.windows])
        return joined


@dataclass(frozen=True, eq=False)
class Usage:
    """How the tokens of a domain use the experts.

    Attributes:
        name: the domain.
        n_tokens: its tokens.
        n_experts: experts of each layer.
        n_experts_used: experts of each token.
        used: the mean number of experts of a token, float64 [n_layers]; less than n_experts_used where
            experts were left out, which have the weight 0 and count for nothing.
        first: of the tokens, the share whose first expert is this one, float64 [n_layers, n_experts].
        second: likewise the second; None if a token has one expert only.
        either: of all uses, the share of each expert, float64 [n_layers, n_experts].
        repeats_first: how often a token has the first expert of the token before it in the window,
            float64 [n_layers]; NaN where no token has one before it.
        repeats_any: how often it has any expert of that token, likewise.
        entropy: of `either`, in bits, float64 [n_layers]; at most log2(n_experts).
        first_weight: the mean weight of the first expert, float64 [n_layers].
        pairs: of the tokens, the share that have both experts, float64 [n_layers, n_experts,
            n_experts], symmetric, with zeros where both are the same.
        hits: how often an expert is found in a cache that keeps the n last used of its layer, float64
            [n_layers, n_experts + 1], by n. A token's experts are looked up one by one, the first
            one first. The cache begins empty.
    """

    name: str
    n_tokens: int
    n_experts: int
    n_experts_used: int
    used: F64
    first: F64
    second: F64 | None
    either: F64
    repeats_first: F64
    repeats_any: F64
    entropy: F64
    first_weight: F64
    pairs: F64
    hits: F64

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return len(self.first)

    @property
    def dead(self) -> list[list[int]]:
        """The experts of each layer that no token used."""
        return [np.flatnonzero(shares == 0).tolist() for shares in self.either]

    def plain(self) -> dict[str, Any]:
        """Make what JSON can express: lists, and None for NaN."""
        values = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        return values | {"dead": self.dead, "chance": chance(self.n_experts, self.n_experts_used)}


def chance(n_experts: int, n_used: int) -> dict[str, Any]:
    """Compute what a router would give that draws the experts of each token by lot.

    Args:
        n_experts: experts of a layer.
        n_used: experts of a token, all different.

    Returns:
        "repeats_first" and "repeats_any", "hits" by the experts that a cache keeps (from n_used on; less
        is a list's 0), and "entropy" in bits.
    """
    apart = math.comb(n_experts - n_used, n_used) / math.comb(n_experts, n_used)
    # Of the s experts that the token has already, all are among the last n used.
    hits = [
        sum((n - s) / (n_experts - s) for s in range(n_used)) / n_used if n >= n_used else 0.0
        for n in range(n_experts + 1)
    ]
    return {
        "repeats_first": 1 / n_experts,
        "repeats_any": 1 - apart,
        "entropy": math.log2(n_experts),
        "hits": hits,
    }


# --- Traces ---------------------------------------------------------------------------------------


def trace(
    model: Mixtral,
    texts: Sequence[tuple[str, str]],
    *,
    n_ctx: int = 512,
    n_windows: int | None = None,
    full: bool = False,
    progress: bool = True,
) -> list[Domain]:
    """Trace texts.

    Args:
        model: a model with experts.
        texts: (domain, text) of each text; those of one domain are taken together.
        n_ctx: tokens of a window, 2 to model.n_ctx.
        n_windows: use only the first windows of each text; None: all.
        full: whether traces have the routers' probabilities.
        progress: show a bar on stderr if that is a terminal.

    Returns:
        The domains, in the order of their first texts.

    Raises:
        InvalidArgumentError: for numbers out of range, no text, and a text of no token.
        UnsupportedError: for a dense model, and a file without a tokenizer.
        NonFiniteError: if the model's weights lead to NaN or infinity.
    """
    if not texts:
        raise InvalidArgumentError("expected at least one text, found none")
    begin = np.array(model.tokenize(""), np.int32)
    room = integer("n_ctx", n_ctx, 2, model.n_ctx) - len(begin)
    most = None if n_windows is None else integer("n_windows", n_windows, 1) * room + len(begin)
    pieces = [(name, list(_pieces(model, name, text, begin, room, most, progress))) for name, text in texts]
    domains: dict[str, list[Routing]] = {name: [] for name, _ in texts}
    total = sum(len(piece) for _, parts in pieces for piece in parts)
    with progress_bar(total=total, unit=" tokens", unit_scale=True, shown=progress) as bar:
        for name, parts in pieces:
            for piece in parts:
                domains[name].append(_without(model.routing(piece, full=full), len(begin)))
                bar.update(len(piece))
    return [Domain(name, windows) for name, windows in domains.items()]


def _pieces(
    model: Mixtral, name: str, text: str, begin: I32, room: int, most: int | None, progress: bool
) -> Iterator[I32]:
    ids = tokens_of(model, text, most, progress=progress)[len(begin) :]
    if not len(ids):
        raise InvalidArgumentError(f"{name}: expected a text of at least one token, found none")
    for i in range(0, len(ids), room):
        yield np.concatenate([begin, ids[i : i + room]])


def _without(routing: Routing, n: int) -> Routing:
    """A trace without its first tokens."""
    return Routing(
        routing.ids[n:],
        routing.n_prompt - n,
        routing.n_experts,
        routing.experts[n:],
        routing.weights[n:],
        None if routing.probabilities is None else routing.probabilities[n:],
    )


def save(domains: Sequence[Domain], path: Path, *, force: bool = False) -> None:
    """Write traces to a file of NumPy, which numpy.load() reads.

    It has `names` of the domains, `n_experts`, and a row for each token in: `ids` int32, `domain` int32 (the
    number of its name), `window` int32 (which counts all windows), and `experts`, `weights` and
    `probabilities` as of Routing, the last only if all traces have it.

    Args:
        domains: of one model.
        path: the file.
        force: whether an existing file is replaced.

    Raises:
        OutputError: if the file cannot be written, or exists.
    """
    windows = [window for domain in domains for window in domain.windows]
    full = all(window.probabilities is not None for window in windows)
    names = ("ids", "experts", "weights", *(("probabilities",) if full else ()))
    arrays: dict[str, NDArray[Any]] = {
        name: np.concatenate([domain.joined(name) for domain in domains]) for name in names
    }
    numbers = np.arange(len(domains), dtype=np.int32)
    arrays["domain"] = np.repeat(numbers, [domain.n_tokens for domain in domains])
    arrays["window"] = np.repeat(np.arange(len(windows), dtype=np.int32), [window.n_tokens for window in windows])
    arrays["names"] = np.array([domain.name for domain in domains])
    arrays["n_experts"] = np.array(windows[0].n_experts)
    with replacing(path, force=force) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # allow_pickle is another argument


# --- Numbers --------------------------------------------------------------------------------------


def usage(domain: Domain) -> Usage:
    """Compute the numbers of a domain.

    Args:
        domain: its traces, at least one token.

    Returns:
        The numbers.
    """
    n_experts = domain.windows[0].n_experts
    experts = np.concatenate([_used(window) for window in domain.windows])
    n_tokens, _, n_used = experts.shape
    counts = _counts(experts, n_experts)
    uses = counts.sum(axis=1)
    either = counts / uses[:, None]
    repeats_first, repeats_any = _repeats(domain.windows)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.where(either > 0, either * np.log2(either), 0)
    return Usage(
        name=domain.name,
        n_tokens=n_tokens,
        n_experts=n_experts,
        n_experts_used=n_used,
        used=uses / n_tokens,
        first=_counts(experts[:, :, :1], n_experts) / n_tokens,
        second=_counts(experts[:, :, 1:2], n_experts) / n_tokens if n_used > 1 else None,
        either=either,
        repeats_first=repeats_first,
        repeats_any=repeats_any,
        entropy=np.abs(bits.sum(axis=1)),
        first_weight=domain.joined("weights")[:, :, 0].mean(axis=0, dtype=np.float64),
        pairs=_pairs(experts, n_experts) / n_tokens,
        hits=_hits(experts, n_experts),
    )


def distance(a: Usage, b: Usage) -> F64:
    """Compute how different two domains use the experts: half of the sum of the differences of `either`.

    Args:
        a: of one domain.
        b: of another domain in the same model.

    Returns:
        float64 [n_layers], 0 where all shares are equal and 1 where no expert is used by both.
    """
    apart: F64 = np.abs(a.either - b.either).sum(axis=1) / 2
    return apart


def _used(routing: Routing) -> U8:
    """The experts, with n_experts in the place of those that were left out."""
    return np.where(routing.weights > 0, routing.experts, np.uint8(routing.n_experts))


def _counts(experts: NDArray[np.integer[Any]], n_experts: int) -> I64:
    """How often each expert occurs, int64 [n_layers, n_experts]."""
    n_layers, n = experts.shape[1], n_experts + 1
    places = experts.astype(np.int64) + n * np.arange(n_layers)[:, None]
    return np.bincount(places.ravel(), minlength=n_layers * n).reshape(n_layers, n)[:, :-1]


def _repeats(windows: Sequence[Routing]) -> tuple[F64, F64]:
    """How often a token has the first, and any, expert of the one before it, [n_layers] each."""
    n_layers = windows[0].n_layers
    first, either, n = np.zeros(n_layers), np.zeros(n_layers), 0
    for window in windows:
        experts = _used(window)
        before, after = experts[:-1], experts[1:]
        first += (before[:, :, 0] == after[:, :, 0]).sum(axis=0)
        same = (before[:, :, :, None] == after[:, :, None, :]) & (before < window.n_experts)[:, :, :, None]
        either += same.any(axis=(2, 3)).sum(axis=0)
        n += len(before)
    with np.errstate(invalid="ignore"):
        return first / n, either / n


def _pairs(experts: U8, n_experts: int) -> I64:
    """How many tokens have two experts both, int64 [n_layers, n_experts, n_experts]."""
    _, n_layers, n_used = experts.shape
    n = n_experts + 1
    counts: I64 = np.zeros((n_layers, n, n), np.int64)
    for i in range(n_used):
        for j in range(i):
            places = experts[:, :, i].astype(np.int64) * n + experts[:, :, j]
            one = _counts(places[:, :, None], n * n).reshape(counts.shape)
            counts += one + one.transpose(0, 2, 1)
    return counts[:, :-1, :-1]


def _hits(experts: U8, n_experts: int) -> F64:
    """The hit rates of caches of 0 to n_experts experts that drop the one used longest ago.

    An expert is found by a cache of n if fewer than n others were used since it was used last.
    """
    n_tokens, n_layers, n_used = experts.shape
    uses = experts.transpose(0, 2, 1).reshape(n_tokens * n_used, n_layers)
    last: I64 = np.full((n_layers, n_experts), -1, np.int64)
    found: I64 = np.zeros((n_layers, n_experts + 1), np.int64)
    for begin in range(0, len(uses), _ACCESSES):
        part = uses[begin : begin + _ACCESSES]
        now = begin + np.arange(len(part))[:, None, None]
        used = np.where(part[:, :, None] == np.arange(n_experts), now, -1)
        used = np.maximum.accumulate(np.concatenate([last[None], used]), axis=0)  # the last use of each, by time
        before, last = used[:-1], used[-1]
        mine = np.take_along_axis(before, np.minimum(part, n_experts - 1)[:, :, None].astype(np.int64), -1)
        since = (before > mine).sum(axis=-1)
        found_at_all = (mine[:, :, 0] >= 0) & (part < n_experts)
        smallest = np.where(found_at_all, since + 1, n_experts + 1)  # cache that finds it
        for layer in range(n_layers):
            found[layer] += np.bincount(smallest[:, layer], minlength=n_experts + 2)[: n_experts + 1]
    rates: F64 = found.cumsum(axis=1) / (uses < n_experts).sum(axis=0)[:, None]
    return rates


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
