"""Which machines of clouds hold a model."""

from __future__ import annotations

import datetime
from dataclasses import replace

import pytest

from pymixtral.inspection import instances
from pymixtral.inspection.instances import SERIES, Instance, smallest
from pymixtral.inspection.inventory import Inventory
from pymixtral.inspection.machine import _NEEDS
from pymixtral.inspection.mixes import MIXES, mixed
from pymixtral.inspection.published import MODELS
from pymixtral.model.footprint import Footprint, footprint

GIB = 1 << 30


def need(model: str, mix: str, n_ctx: int, kv_type: str = "f16") -> Footprint:
    config = MODELS[model]
    return footprint(config, mixed(Inventory.of_model(config), mix).n_bytes, n_ctx, kv_type)


def by_cloud(memory: Footprint) -> dict[str, list[str]]:
    return {cloud: [one.name for one in smallest(memory) if one.cloud == cloud] for cloud in instances.SOURCES}


def test_the_table_is_in_order() -> None:
    names = [(one.cloud, one.name) for sizes in SERIES for one in sizes]
    assert len(set(names)) == len(names)
    assert {one.cloud for sizes in SERIES for one in sizes} == set(instances.SOURCES)
    assert {one.isa for sizes in SERIES for one in sizes} <= set(_NEEDS)
    for sizes in SERIES:
        assert [one.vcpus for one in sizes] == sorted({one.vcpus for one in sizes})
        assert [one.gib for one in sizes] == sorted({one.gib for one in sizes})
        assert len({(one.cloud, one.cpu, one.isa) for one in sizes}) == 1
    for one in (one for sizes in SERIES for one in sizes):
        assert 1.75 <= one.gib / one.vcpus <= 8  # 2, 4 or 8, less what the cloud keeps
    datetime.date.fromisoformat(instances.GATHERED)


def test_every_cloud_has_cpus_of_intel_amd_and_arm() -> None:
    for cloud in instances.SOURCES:
        all_of_it = [one for sizes in SERIES for one in sizes if one.cloud == cloud]
        assert {"ARM" if one.isa == "neon_i8mm" else one.cpu.split()[0] for one in all_of_it} == {"Intel", "AMD", "ARM"}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("model", MODELS)
def test_each_is_the_smallest_of_its_series_that_holds_the_model(model: str, mix: str) -> None:
    memory = need(model, mix, MODELS[model].n_ctx_train)
    found = {(one.cloud, one.name) for one in smallest(memory)}
    for sizes in SERIES:
        holding = [one for one in sizes if one.usable >= memory.total]
        assert [one for one in sizes if (one.cloud, one.name) in found] == holding[:1]


def test_a_byte_more_needs_the_next_size() -> None:
    one = Instance("aws", "x", 4, 32, "", "neon_i8mm")
    fits = Footprint(one.usable - 3 * GIB, GIB, 2 * GIB)
    assert (one.contexts(fits), one.contexts(replace(fits, weights=fits.weights + 1))) == (1, 0)
    assert one.contexts(replace(fits, weights=fits.weights - GIB)) == 2
    assert 0.9 * 32 * GIB < one.usable < 31 * GIB


def test_mixtral_8x7b_in_q4_k_m() -> None:
    whole, short = by_cloud(need("8x7b", "q4_k_m", 32768)), by_cloud(need("8x7b", "q4_k_m", 4096))
    assert {"r8i.2xlarge", "m8g.4xlarge", "c8a.8xlarge"} <= set(whole["aws"])
    assert {"c4-highmem-8", "c4a-standard-16"} <= set(whole["gcp"])
    assert {"Standard_E8s_v6", "Standard_D16ps_v6"} <= set(whole["azure"])
    assert {"r8i.xlarge", "c4a-highmem-4", "Standard_E4as_v7"} <= {name for names in short.values() for name in names}
    assert all(len(names) == 9 for names in whole.values())


def test_what_no_machine_holds() -> None:
    assert smallest(Footprint(4 << 40, GIB, GIB)) == []
