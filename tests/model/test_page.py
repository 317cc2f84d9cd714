"""The contents of pages: out and back as bytes, as numbers, and moved by a context shift."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pymixtral import ModelConfig, ops
from pymixtral.errors import ContextLengthError, InvalidArgumentError, NonFiniteError
from pymixtral.files.gguf import GGUFFile
from pymixtral.model.forward import Model
from pymixtral.model.kv_cache import KVCache, Sequence, n_pages_for
from pymixtral.model.page import keys
from pymixtral.model.rope import RopeScaling
from pymixtral.model.weights import load_weights
from pymixtral.ops import PAGE
from pymixtral.reference import oracle

DTYPES: dict[str, Any] = {"f16": np.float16, "f32": np.float32, "q8_0": oracle.Q8_0}
FREQUENCIES = RopeScaling().frequencies(1e4, 64)


@pytest.fixture(scope="module")
def context() -> Iterator[ops.Context]:
    with ops.Context(2) as context:
        yield context


def filled(context: ops.Context, kv_type: str, n: int, n_pages: int = 12) -> tuple[KVCache, Sequence]:
    """A cache with a sequence of random keys and values, of every magnitude."""
    cache = KVCache(2, 3, 64, n_pages, kv_type)
    sequence = cache.new_sequence()
    sequence.reserve(n)
    rng = np.random.default_rng(n)
    for layer in cache.layers:
        k, v = (rng.standard_normal((n, 3, 64)) * 10 ** rng.uniform(-6, 3, (n, 3, 1)) for _ in range(2))
        runs = ops.Runs([(n, 0, sequence.pages)])
        ops.cache_write(context, layer, k.astype(np.float32), v.astype(np.float32), runs)
    sequence.advance(n)
    return cache, sequence


def stored(cache: KVCache, sequence: Sequence) -> tuple[NDArray[Any], NDArray[Any]]:
    """Keys and values [layers, positions, heads, ...] in the oracle's form, read by the letter of
    csrc/pmx.h.
    """
    found: list[list[NDArray[Any]]] = [[], []]
    n = sequence.length
    for x, out, is_key in ((cache.k, found[0], True), (cache.v, found[1], False)):
        for layer in x[:, sequence.pages]:
            if cache.form.kv_type != "q8_0":
                flat = layer.transpose(0, 3, 1, 2) if is_key else layer.transpose(0, 2, 1, 3)
                out.append(flat.reshape(-1, 3, 64)[:n])
                continue
            q = layer[..., : 64 * 64].view(np.int8)
            if is_key:
                q = q.reshape(-1, 3, 16, 64, 4).transpose(0, 3, 1, 2, 4)
            else:
                q = q.reshape(-1, 3, 64, 64).transpose(0, 2, 1, 3)
            blocks = np.empty((len(layer) * PAGE, 3, 2), oracle.Q8_0)
            blocks["q"] = q.reshape(*blocks.shape, 32)
            d = np.ascontiguousarray(layer[..., 64 * 64 :]).view(np.float16).reshape(-1, 3, 2, 64)
            blocks["d"] = d.transpose(0, 3, 1, 2).reshape(blocks.shape)
            out.append(blocks[:n])
    return np.stack(found[0]), np.stack(found[1])


def numbers(x: NDArray[Any]) -> NDArray[np.float64]:
    if x.dtype == oracle.Q8_0:
        return (x["q"] * x["d"].astype(np.float64)[..., None]).reshape(*x.shape[:-1], -1)
    return x.astype(np.float64)


@pytest.mark.parametrize("kv_type", DTYPES)
@pytest.mark.parametrize("n", [1, 64, 100, 130])
def test_pages_go_out_and_come_back(context: ops.Context, kv_type: str, n: int) -> None:
    cache, sequence = filled(context, kv_type, n)
    pages = [bytes(page) for page in sequence.read(0, 99)]
    assert [len(page) for page in pages] == [cache.form.n_bytes] * n_pages_for(n)
    assert all(cache.form.is_sound(page) for page in pages)
    assert [bytes(page) for page in sequence.read(1, 1)] == pages[1:2]
    other = KVCache(2, 3, 64, 5, kv_type)
    copy = other.new_sequence()
    copy.reserve(n)
    other.k.view(np.uint8)[:] = 1
    for page, content in zip(copy.pages, pages, strict=True):
        other.write(int(page), content)
    copy.advance(n)
    for a, b in zip(stored(cache, sequence), stored(other, copy), strict=True):
        assert np.array_equal(a, b)
    assert [bytes(page) for page in copy.read(0, 99)] == pages
    last = n % PAGE or PAGE
    rest = cache.form.decode(pages[-1])
    if kv_type != "q8_0":
        assert not rest[0][..., last:].any()
        assert not rest[1][..., last:, :].any()


@pytest.mark.parametrize("kv_type", DTYPES)
def test_keys_as_numbers(context: ops.Context, kv_type: str) -> None:
    cache, sequence = filled(context, kv_type, 100)
    expected = numbers(stored(cache, sequence)[0]).astype(np.float32)
    for layer in range(2):
        found = np.concatenate([keys(cache.k[layer, page]) for page in sequence.pages])[:100]
        assert np.array_equal(found, expected[layer])


# --- Context shift --------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ops.available_isas())
@pytest.mark.parametrize("kv_type", DTYPES)
@pytest.mark.parametrize(("length", "first", "n"), [(330, 1, 2), (330, 0, 1), (320, 2, 3), (320, 0, 5), (64, 0, 1)])
def test_shift_equals_the_oracle(isa: str, kv_type: str, length: int, first: int, n: int) -> None:
    with ops.Context(2, isa) as context:
        cache, sequence = filled(context, kv_type, length)
        before_k, before_v = stored(cache, sequence)
        sequence.shift(context, FREQUENCIES, first, n)
        begin, end = first * PAGE, (first + n) * PAGE
        assert sequence.length == length - n * PAGE
        assert cache.n_pages - cache.n_free_pages == n_pages_for(sequence.length)
        if not sequence.length:
            return
        k, v = stored(cache, sequence)
        assert np.array_equal(v, np.concatenate([before_v[:, :begin], before_v[:, end:]], axis=1))
        assert np.array_equal(k[:, :begin], before_k[:, :begin])
        for layer in range(2):
            moved = before_k[layer, end:]
            if len(moved):
                assert np.array_equal(k[layer, begin:], oracle.shift_keys(moved, FREQUENCIES, n * PAGE))


@pytest.mark.parametrize(("kv_type", "tolerance"), [("f32", 1e-6), ("f16", 6e-4), ("q8_0", 6e-3)])
def test_the_rotation_is_that_of_float64(context: ops.Context, kv_type: str, tolerance: float) -> None:
    cache, sequence = filled(context, kv_type, 200)
    before = numbers(stored(cache, sequence)[0])[:, 128:]
    sequence.shift(context, FREQUENCIES, 0, 2)
    pairs = (before[..., 0::2] + 1j * before[..., 1::2]) * np.exp(-1j * 128 * FREQUENCIES)
    expected = np.stack([pairs.real, pairs.imag], axis=-1).reshape(before.shape)
    error = np.abs(numbers(stored(cache, sequence)[0]) - expected).max(axis=-1)
    floor = {"f32": 0, "f16": 6.2e-5, "q8_0": 127 * 6.2e-5}[kv_type]  # below it an f16 has fewer digits
    assert np.all(error <= tolerance * np.maximum(np.abs(expected).max(axis=-1), floor))


@pytest.mark.parametrize(("kv_type", "tolerance"), [("f32", 2e-6), ("f16", 1e-3), ("q8_0", 2e-2)])
def test_the_first_layer_is_as_if_computed_at_the_new_positions(tiny_f32: Path, kv_type: str, tolerance: float) -> None:
    """Its keys depend on token and position alone."""
    with GGUFFile(tiny_f32) as file:
        config = ModelConfig.from_gguf(file)
        model = Model(load_weights(file, config), config, n_threads=2)
        ids = np.arange(300, 560, dtype=np.int32)
        found = []
        for text in (ids, np.concatenate([ids[:64], ids[192:]])):
            cache = model.new_cache(len(ids), kv_type)
            sequence = cache.new_sequence()
            model.forward(text, [(sequence, len(text))], cache)
            if len(text) == len(ids):
                model.shift(sequence, 1, 2)
            assert sequence.length == len(ids) - 128
            pages = [keys(cache.k[0, page]) for page in sequence.pages]
            found.append(np.concatenate(pages)[: sequence.length])
        shifted, computed = found
        assert np.array_equal(shifted[:64], computed[:64])
        scale = np.abs(computed).max(axis=-1, keepdims=True)
        assert np.all(np.abs(shifted - computed) <= tolerance * scale)
        assert np.abs(shifted - computed).max() > 0 or kv_type == "q8_0"
        model.close()


def test_shift_copies_shared_pages(context: ops.Context) -> None:
    cache, sequence = filled(context, "f16", 330, n_pages=10)
    other = sequence.fork()
    before = stored(cache, other)
    sequence.shift(context, FREQUENCIES, 1, 2)
    for a, b in zip(stored(cache, other), before, strict=True):
        assert np.array_equal(a, b)
    assert sequence.pages[0] == other.pages[0]
    assert set(sequence.pages[1:].tolist()).isdisjoint(other.pages.tolist())
    assert cache.n_free_pages == 10 - 6 - 3
    alone, same = filled(context, "f16", 330)
    same.shift(context, FREQUENCIES, 1, 2)
    for a, b in zip(stored(cache, sequence), stored(alone, same), strict=True):
        assert np.array_equal(a, b)


def test_shift_asks_for_pages_one_by_one(context: ops.Context) -> None:
    cache, sequence = filled(context, "f16", 330, n_pages=8)
    other = sequence.fork()
    asked: list[int] = []
    with pytest.raises(ContextLengthError, match="expected a free page for a copy of page 3, found none"):
        sequence.shift(context, FREQUENCIES, 1, 2, asked.append)
    assert asked == [1, 1, 1]
    sequence.free()
    other.free()
    assert cache.n_free_pages == 8


def test_shift_out_of_range(context: ops.Context) -> None:
    _, sequence = filled(context, "f16", 330)
    for first, n in ((-1, 1), (0, 0), (0, 6), (5, 1), (4, 2), (0, -1)):
        with pytest.raises(InvalidArgumentError, match=f"of the 5 full pages to drop, found {n} from {first}"):
            sequence.shift(context, FREQUENCIES, first, n)
    sequence.reserve(100)
    sequence.shift(context, FREQUENCIES, 0, 1)
    with pytest.raises(InvalidArgumentError, match="at most 0 reserved"):
        sequence.advance(1)


def test_a_key_that_no_longer_fits(context: ops.Context) -> None:
    cache = KVCache(1, 1, 8, 2, "f16")
    sequence = cache.new_sequence()
    sequence.reserve(65)
    x = np.full((65, 1, 8), 65000, np.float32)
    ops.cache_write(context, cache.layers[0], x, x, ops.Runs([(65, 0, sequence.pages)]))
    sequence.advance(65)
    with pytest.raises(NonFiniteError):
        sequence.shift(context, np.full(4, np.pi / 4 / PAGE), 0, 1)
