"""The command deploy: which machines of clouds hold a model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from pymixtral.inspection import instances
from pymixtral.inspection.inventory import Inventory
from pymixtral.inspection.mixes import mixed
from pymixtral.inspection.published import MODELS
from pymixtral.model.footprint import Footprint, footprint
from support.command_line import refused, run
from support.holes import write_hole


def test_a_table_of_the_smallest_machines() -> None:
    result = run("deploy", "--for", "8x7b-q4_k_m")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "Mixtral 8x7B, q4_k_m"
    assert lines[1] == "28.4 GB of weights, 4.29 GB of keys and values for a context of 32768 tokens"
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if line.startswith(("  AWS", "  Google", "  Azure"))]
    assert [row[1] for row in rows] == [one.name for one in instances.smallest(need("8x7b", "q4_k_m", 32768))]
    assert instances.GATHERED in result.stdout


def need(model: str, mix: str, n_ctx: int, kv_type: str = "f16") -> Footprint:
    config = MODELS[model]
    return footprint(config, mixed(Inventory.of_model(config), mix).n_bytes, n_ctx, kv_type)


def test_json_has_the_same_with_sources() -> None:
    found = json.loads(run("deploy", "--for", "8X22B-Q4_K_M", "-c", 16384, "--kv-type", "q8_0", "--json").stdout)
    memory = need("8x22b", "q4_k_m", 16384, "q8_0")
    assert found["memory"] == {**asdict(memory), "total": memory.total}
    assert (found["model"], found["type"], found["context"]) == ("Mixtral 8x22B", "q4_k_m", 16384)
    assert [one["name"] for one in found["instances"]] == [one.name for one in instances.smallest(memory)]
    assert all(one["contexts"] >= 1 and one["usable"] >= memory.total for one in found["instances"])
    assert found["sources"].keys() == {one["cloud"] for one in found["instances"]}


def test_a_plan_says_the_same_of_the_memory() -> None:
    planned = json.loads(run("plan", "--params", "8x7b", "--type", "q5_k_m", "-c", 8192, "-t", 1, "--json").stdout)
    deployed = json.loads(run("deploy", "--for", "8x7b-q5_k_m", "-c", 8192, "--json").stdout)
    assert planned["memory"] == deployed["memory"]


def test_a_file_has_its_own_types(tiny_q8_0: Path, tmp_path: Path) -> None:
    found = json.loads(run("deploy", "--for", tiny_q8_0, "--json").stdout)
    assert (found["type"], found["context"]) == (None, 2048)
    assert found["memory"] == json.loads(run("plan", tiny_q8_0, "-c", 2048, "-t", 1, "--json").stdout)["memory"]
    refused(run("deploy", "--for", tmp_path / "none.gguf"), "none.gguf")
    config = MODELS["7b"]
    write_hole(tmp_path / "other.gguf", config, Inventory.of_model(config).parts, architecture="gemma")
    refused(run("deploy", "--for", tmp_path / "other.gguf"), "gemma")


def test_what_no_machine_holds_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "SERIES", [[one for one in sizes if one.gib < 32] for sizes in instances.SERIES])
    result = run("deploy", "--for", "8x7b-q4_k_m")
    assert result.exit_code == 0
    assert "No machine in the table holds it" in result.stdout


@pytest.mark.parametrize(
    "name", ["8x7b", "8x7b-", "8x7b-q9", "9x9b-q4_0", "q4_k_m", "", "-", "\udcff", "8x7b-q4_k_m-x"]
)
def test_names_that_are_none(name: str) -> None:
    refused(run("deploy", "--for", name), "8x7b-q4_k_m", "8x22b", "iq4_xs")


def test_a_context_longer_than_the_models_is_refused() -> None:
    refused(run("deploy", "--for", "8x7b-q4_k_m", "-c", 32769), "--context", "32768")
    refused(run("deploy", "--for", "8x7b-q4_k_m", "-c", 0), "--context")
