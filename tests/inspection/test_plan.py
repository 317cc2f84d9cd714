"""Plans: verdicts, bytes and predictions for machines of every size."""

from __future__ import annotations

import pytest

from pymixtral.files.types import MATRIX_TYPES
from pymixtral.inspection import plan as planning
from pymixtral.inspection.inventory import Inventory
from pymixtral.inspection.machine import Memory
from pymixtral.inspection.mixes import MIXES
from pymixtral.inspection.plan import Plan, largest_that_fits, plans
from pymixtral.inspection.probe import DiskRate
from pymixtral.inspection.published import MODELS
from pymixtral.model.footprint import kv_bytes_per_token
from pymixtral.ops import PAGE

GB = 10**9


def plan(
    model: str, mix: str, available: int, *, total: int | None = None, n_ctx: int = 4096, bandwidth: float = 50.0
) -> Plan:
    config = MODELS[model]
    memory = Memory(total or available, available, None, None)
    return planning.plan(config, Inventory.of_model(config), n_ctx, memory, bandwidth, mix=mix)


def choices(model: str, available: int) -> list[Plan]:
    config = MODELS[model]
    found = Inventory.of_model(config)
    return plans(config, found, 4096, Memory(available, available, None, None), 50.0)


@pytest.mark.parametrize(
    ("available", "total", "n_ctx", "verdict"),
    [
        (64 * GB, 64 * GB, 4096, "fits"),
        (20 * GB, 64 * GB, 4096, "crowded"),
        (20 * GB, 24 * GB, 4096, "pages"),
        (28 * GB, 28 * GB, 32768, "pages"),
        (4 * GB, 4 * GB, 32768, "impossible"),
    ],
)
def test_verdicts(available: int, total: int, n_ctx: int, verdict: str) -> None:
    assert plan("8x7b", "q4_0", available, total=total, n_ctx=n_ctx).verdict == verdict


def test_the_last_byte_decides() -> None:
    need = plan("8x7b", "q4_k_m", GB).memory.total
    assert plan("8x7b", "q4_k_m", need).verdict == "fits"
    assert plan("8x7b", "q4_k_m", need).disk_bytes_per_token == 0
    assert plan("8x7b", "q4_k_m", need - 1).verdict == "pages"


def test_keys_and_values_in_q8_0_take_less() -> None:
    config = MODELS["8x7b"]
    found = Inventory.of_model(config)
    args = config, found, 32768, Memory(64 * GB, 64 * GB, None, None), 50.0
    for half, blocks in zip(plans(*args), plans(*args, kv_type="q8_0"), strict=True):
        assert (half.memory.kv, blocks.memory.kv) == (4 << 30, (4 << 30) * 34 // 64)
        assert half.memory.total - blocks.memory.total == half.memory.kv - blocks.memory.kv
    assert planning.plan(*args, kv_type="q8_0").memory.kv == blocks.memory.kv


def test_speed_is_bandwidth_over_active_bytes() -> None:
    found = plan("8x7b", "q4_k_m", 64 * GB, bandwidth=78.6)
    assert found.inventory.active_bytes == pytest.approx(7.86e9, rel=1e-3)
    assert found.tokens_per_second == found.tokens_per_second_in_memory == pytest.approx(10.0, rel=1e-3)
    full = found.inventory.active_bytes + 4096 * kv_bytes_per_token(found.config)
    assert found.tokens_per_second_full == pytest.approx(78.6e9 / full)


def test_paging_reads_the_absent_share_of_the_experts() -> None:
    whole = plan("8x7b", "q4_0", 64 * GB)
    inventory, memory = whole.inventory, whole.memory
    every_token = inventory.active_bytes - inventory.active_expert_bytes
    half = every_token + inventory.expert_bytes // 2 + memory.kv + memory.working
    found = plan("8x7b", "q4_0", half)
    assert found.disk_bytes_per_token == pytest.approx(inventory.active_expert_bytes / 2, rel=1e-6)
    seconds = inventory.active_bytes / 50e9 + found.disk_bytes_per_token / 2e9
    assert found.tokens_per_second == pytest.approx(1 / seconds)
    assert found.tokens_per_second < found.tokens_per_second_in_memory


def test_a_prompt_reads_the_file_once_for_each_of_its_passes() -> None:
    config = MODELS["8x7b"]
    found = Inventory.of_model(config)
    disk = DiskRate(3.0, 1.0)

    def one(available: int, gmacs: float | None = 500.0) -> Plan:
        memory = Memory(64 * GB, available, None, None)
        return planning.plan(config, found, 4096, memory, 50.0, mix="q4_0", disk=disk, gmacs=gmacs)

    fits, pages = one(40 * GB), one(16 * GB)
    assert one(16 * GB, None).prompt_seconds(100) is None
    assert one(16 * GB, None).prompt_tokens_per_second is None
    assert (fits.n_batch, pages.n_batch % PAGE) == (512, 0)
    assert 3000 < pages.n_batch <= 8192
    embedding = 32000 * 4096
    products = (fits.inventory.active_weights - embedding) / 500e9
    assert fits.prompt_seconds(1000) == pytest.approx(1000 * products)
    read = (pages.inventory.n_bytes - pages.inventory.classes["embedding"].n_bytes) / 3e9
    for n_tokens, n_passes in ((pages.n_batch, 1), (pages.n_batch + 1, 2), (1, 1)):
        assert pages.prompt_seconds(n_tokens) == pytest.approx(n_tokens * products + n_passes * read)
    assert pages.prompt_tokens_per_second == pytest.approx(2048 / (2048 * products + read))
    seconds = pages.inventory.active_bytes / 50e9 + pages.disk_bytes_per_token / 1e9
    assert pages.tokens_per_second == pytest.approx(1 / seconds)
    told = pages.to_json()
    assert told["disk_gb_per_second"] == {"sequential": 3.0, "random": 1.0}
    assert told["tokens_at_once"] == pages.n_batch
    assert told["predicted_tokens_per_second"]["prompt_now"] == pytest.approx(pages.prompt_tokens_per_second, rel=1e-3)


def test_paging_where_nothing_stays() -> None:
    found = plan("8x7b", "q4_0", 3 * GB // 2, total=64 * GB)
    assert found.disk_bytes_per_token == found.inventory.active_bytes
    dense = plan("7b", "q8_0", 6 * GB)
    assert (dense.verdict, dense.disk_bytes_per_token) == ("pages", dense.inventory.active_bytes)


def test_less_memory_never_reads_less() -> None:
    read = [plan("8x7b", "q5_k_m", n * GB // 2).disk_bytes_per_token for n in range(1, 80)]
    assert read == sorted(read, reverse=True)
    assert (read[0], read[-1]) == (plan("8x7b", "q5_k_m", GB).inventory.active_bytes, 0)


def test_choices_are_all_mixes_by_size() -> None:
    found = choices("8x7b", 32 * GB)
    assert {one.type for one in found} == set(MIXES)
    assert [one.memory.weights for one in found] == sorted((one.memory.weights for one in found), reverse=True)


@pytest.mark.parametrize("available", [60 * GB, 200 * GB])
def test_the_largest_that_fits_and_runs_is_chosen(available: int) -> None:
    found = choices("8x7b", available)
    best = largest_that_fits(found)
    assert best is not None
    assert best.verdict == "fits"
    larger = found[: found.index(best)]
    assert all(one.verdict != "fits" or one.problem or one.type == "f32" for one in larger)
    assert set(best.inventory.types) <= set(MATRIX_TYPES)


def test_nothing_fits_a_small_machine() -> None:
    assert largest_that_fits(choices("8x22b", 8 * GB)) is None


def test_types_without_a_kernel_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MATRIX_TYPES", [kind for kind in MATRIX_TYPES if kind.name not in ("Q8_0", "Q6_K")])
    found = plan("8x7b", "q8_0", 200 * GB)
    assert found.problem == "there is no kernel for q8_0"
    assert found.to_json()["runs"] is False
    best = largest_that_fits(choices("8x7b", 60 * GB))
    assert best is None or best.type not in ("q8_0", "q6_k")
