"""How much memory keys and values get: figures for real models on machines of several sizes."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pymixtral import MemoryWarning, Mixtral, memory
from pymixtral.errors import InvalidArgumentError, NativeError
from pymixtral.files.gguf import GGUFFile
from pymixtral.inspection.inventory import Inventory
from pymixtral.inspection.machine import Memory
from pymixtral.inspection.machine import memory as read_memory
from pymixtral.inspection.mixes import mixed
from pymixtral.inspection.published import MODELS
from pymixtral.memory import CacheSize, cache_size, room
from support.holes import write_hole

GB = 10**9
PAGE_8X7B = 64 * 131072
"""Bytes of a page in f16: 131072 a token."""


def machine(patch: pytest.MonkeyPatch, available: int | None, total: int = 1 << 40) -> None:
    patch.setattr(memory, "memory", lambda: Memory(total, available, None, None))


def size(
    model: str, weights: float, *, n_ctx: int | None = None, kv_type: str = "f16", cache_bytes: int | None = None
) -> CacheSize:
    return cache_size(MODELS[model], int(weights * GB), n_ctx=n_ctx, kv_type=kv_type, cache_bytes=cache_bytes)


@pytest.mark.parametrize(
    ("available", "model", "weights", "kv_type", "n_ctx", "contexts"),
    [
        (16, "8x7b", 26.4, "f16", 512, 1.125),  # the weights do not fit: the least
        (27, "8x7b", 26.4, "f16", 2176, 1.03),
        (31, "8x7b", 26.4, "f16", 17472, 1.0),
        (31, "8x7b", 26.4, "q8_0", 32768, 1.0),
        (62, "8x7b", 26.4, "f16", 32768, 4.0),
        (62, "8x7b", 49.6, "f16", 32768, 1.4),
        (62, "8x22b", 79.7, "f16", 512, 1.125),
        (125, "8x22b", 79.7, "f16", 65536, 1.5),
        (15, "7b", 4.1, "f16", 32768, 1.27),
        (2000, "8x22b", 281.0, "f32", 65536, 4.0),
    ],
)
def test_contexts_that_are_chosen(
    monkeypatch: pytest.MonkeyPatch,
    available: int,
    model: str,
    weights: float,
    kv_type: str,
    n_ctx: int,
    contexts: float,
) -> None:
    machine(monkeypatch, available * GB)
    found = size(model, weights, kv_type=kv_type)
    assert found.n_ctx == n_ctx
    assert found.n_pages * 64 / found.n_ctx == pytest.approx(contexts, abs=0.06)
    if n_ctx > 512:
        assert found.bytes <= (available - weights) * GB / 2


def test_what_is_chosen_grows_with_the_memory_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    before = CacheSize(0, 0, 0, 0)
    for available in range(1 * GB, 80 * GB, GB // 3):
        machine(monkeypatch, available)
        found = size("8x7b", 26.4)
        assert found.n_ctx >= before.n_ctx
        assert found.n_pages >= before.n_pages
        assert found.bytes == found.n_pages * PAGE_8X7B
        assert found.bytes <= max((available - 26.4 * GB) / 2, 9 * PAGE_8X7B)
        assert found.n_pages >= found.n_ctx // 64 + 1
        before = found
    assert before.n_ctx == 32768


def test_a_system_that_does_not_tell_counts_with_all_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, None, total=62 * GB)
    assert size("8x7b", 26.4).n_ctx == 32768


def test_an_explicit_context_is_taken_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 4 * GB)
    assert size("8x7b", 26.4, n_ctx=16384).n_ctx == 16384  # 2.2 GB, though the weights are paged then
    with pytest.raises(NativeError, match=r"expected 4\.30 GB of memory .* \(32768 tokens .*\), found 4\.00 GB: "):
        size("8x7b", 26.4, n_ctx=32768)
    with pytest.raises(InvalidArgumentError, match="at most 32768"):
        size("8x7b", 26.4, n_ctx=32769)
    machine(monkeypatch, GB // 100)
    with pytest.raises(NativeError, match=r"expected 0\.08 GB .* \(512 tokens of context\), found 0\.01 GB"):
        size("8x7b", 26.4)


def test_the_bytes_of_the_cache_bound_a_context_that_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 62 * GB)
    assert size("8x7b", 26.4, cache_bytes=100 * PAGE_8X7B + 5) == CacheSize(99 * 64, 100, *[100 * PAGE_8X7B] * 2)
    assert size("8x7b", 26.4, cache_bytes=30 * GB) == CacheSize(
        32768, 30 * GB // PAGE_8X7B, *[30 * GB // PAGE_8X7B * PAGE_8X7B] * 2
    )
    for n_ctx, least in ((None, 9), (32768, 513)):
        with pytest.raises(InvalidArgumentError, match=f"at least {least * PAGE_8X7B}"):
            size("8x7b", 26.4, n_ctx=n_ctx, cache_bytes=(least - 1) * PAGE_8X7B)
        assert size("8x7b", 26.4, n_ctx=n_ctx, cache_bytes=least * PAGE_8X7B).n_pages == least
    with pytest.raises(NativeError, match=r"expected 69\.99 GB"):
        size("8x7b", 26.4, cache_bytes=70 * GB)
    with pytest.raises(InvalidArgumentError, match="cache_bytes"):
        size("8x7b", 26.4, cache_bytes=0)


def test_several_caches_of_some_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with a quarter of the layers has the pages of four times the memory, for two caches half of them."""

    def parts(**options: Any) -> CacheSize:
        return cache_size(
            MODELS["8x7b"], 7 * GB, kv_type="f16", **{"n_ctx": None, "cache_bytes": None, "n_layers": 8, **options}
        )

    machine(monkeypatch, 9 * GB)
    whole = parts()
    assert whole.n_pages == GB // (PAGE_8X7B // 4)
    assert whole.bytes == whole.n_pages * PAGE_8X7B
    two = parts(n_caches=2)
    assert two.n_pages == GB // (PAGE_8X7B // 2)
    assert two.bytes == two.n_pages * 2 * PAGE_8X7B
    assert two.n_ctx == (two.n_pages - 1) * 64
    assert parts(n_caches=2, cache_bytes=40 * PAGE_8X7B) == CacheSize(19 * 64, 20, 40 * PAGE_8X7B, 10 * PAGE_8X7B)
    with pytest.raises(InvalidArgumentError, match=f"at least {34 * PAGE_8X7B}, .* 1024 tokens in each of 2 caches"):
        parts(n_caches=2, n_ctx=1024, cache_bytes=33 * PAGE_8X7B)
    with pytest.raises(NativeError, match=r"expected 10\.00 GB of memory"):
        parts(cache_bytes=40 * GB)
    machine(monkeypatch, 1000 * GB)
    assert parts(n_caches=2, n_ctx=1024).n_pages == 2 * 17  # four contexts in all
    assert parts(n_caches=8, n_ctx=1024).n_pages == 17


def test_the_limit_of_a_cgroup_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, content in {
        "proc/meminfo": "MemTotal: 128000000 kB\nMemAvailable: 120000000 kB\n",
        "proc/self/cgroup": "0::/a\n",
        "sys/fs/cgroup/a/memory.max": f"{31 * GB}\n",
        "sys/fs/cgroup/a/memory.current": f"{27 * GB}\n",
        "sys/fs/cgroup/a/memory.stat": f"active_file {20 * GB}\ninactive_file {7 * GB}\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(memory, "memory", lambda: read_memory(tmp_path))
    assert size("8x7b", 26.4).n_ctx == 17472


def test_a_limit_of_the_address_space_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 62 * GB)
    monkeypatch.setattr(memory, "_address_space", lambda: 2 * GB)
    assert size("8x7b", 26.4).n_ctx == (GB // PAGE_8X7B - 1) * 64
    with pytest.raises(NativeError, match=r"found 2\.00 GB"):
        size("8x7b", 26.4, n_ctx=32768)


def test_a_model_tells_what_was_chosen(tiny_q8_0: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_bytes = tiny_q8_0.stat().st_size
    machine(monkeypatch, n_bytes + 4 * 1024 * 1000)  # 1024 bytes a token
    with pytest.warns(MemoryWarning):
        opened = Mixtral(tiny_q8_0)
    with opened as model:
        assert 1800 < model.n_ctx < 2048
        assert re.search(rf"n_ctx {model.n_ctx}\b", repr(model))
        assert model.generate([1] * (model.n_ctx - 3), ignore_eos=True).finish_reason == "context"
    machine(monkeypatch, 10**6)
    with pytest.raises(NativeError, match="2048 tokens of context"):
        Mixtral(tiny_q8_0, n_ctx=2048)


def test_a_model_larger_than_memory_warns_and_takes_more_tokens_at_once(
    tiny_q8_0: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [1, *range(300, 1200)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Mixtral(tiny_q8_0, n_ctx=1024) as model:
            expected = model.logits(ids)
            assert model.stats().passes == 2  # of 512 tokens
    machine(monkeypatch, tiny_q8_0.stat().st_size + 60 * 10**6)
    with pytest.warns(MemoryWarning, match=r"tiny-mixtral-q8_0\.gguf: expected .* MB of memory, found .* MB, so that"):
        model = Mixtral(tiny_q8_0, n_ctx=1024)
    with model:
        assert np.array_equal(model.logits(ids), expected)
        assert model.stats().passes == 1
    with pytest.warns(MemoryWarning):
        model = Mixtral(tiny_q8_0, n_ctx=1024, n_batch=128)
    with model:
        assert np.array_equal(model.logits(ids), expected)
        assert model.stats().passes == 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(MemoryWarning):
            Mixtral(tiny_q8_0, n_ctx=1024)


def test_the_warning_names_the_largest_type_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MODELS["8x7b"]
    path = write_hole(tmp_path / "m.gguf", config, mixed(Inventory.of_model(config), "q8_0").parts)
    with GGUFFile(path) as file:
        found = []
        for gigabytes in (64, 32, 8):
            machine(monkeypatch, gigabytes * GB)
            chosen = cache_size(config, 50 * GB, n_ctx=4096, kv_type="f16", cache_bytes=None)
            found.append(room(file, config, chosen, "f16", sum(map(len, file.maps.values()))))
    assert (found[0].n_batch, found[0].shortage) == (512, None)
    for one, words in zip(found[1:], ("choose q4_1, the largest type that fits", "no type fits"), strict=True):
        assert one.n_batch > 512
        assert 3 * GB < one.lockable < 28 * GB
        assert one.shortage
        assert words in one.shortage


def test_a_part_of_a_model_has_room_where_its_own_bytes_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MODELS["8x7b"]
    path = write_hole(tmp_path / "m.gguf", config, mixed(Inventory.of_model(config), "q8_0").parts)
    n_bytes = 125 * GB // 10  # of a host with 8 of the 32 layers
    with GGUFFile(path) as file:
        machine(monkeypatch, 16 * GB)
        chosen = cache_size(config, n_bytes, n_ctx=None, kv_type="f16", cache_bytes=None, n_layers=8)
        assert n_bytes + chosen.bytes > 16 * GB > n_bytes + chosen.bytes_here
        assert room(file, config, chosen, "f16", n_bytes).shortage is None
        machine(monkeypatch, 12 * GB)
        found = room(file, config, chosen, "f16", n_bytes).shortage
        assert found
        assert found.endswith("share the model among more hosts, or choose a smaller type")
