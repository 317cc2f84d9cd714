"""The files of deploy/ agree with the server, with the package and with each other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import pymixtral
from pymixtral.inspection.inventory import Inventory
from pymixtral.inspection.mixes import mixed
from pymixtral.inspection.published import MODELS
from pymixtral.model.footprint import footprint
from support.command_line import commands, options
from support.paths import ROOT

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
SKYPILOT = sorted((DEPLOY / "skypilot").glob("*.yaml"))
GIB = 1 << 30


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def pod() -> Any:
    return load(KUBERNETES / "deployment.yaml")["spec"]["template"]["spec"]


def container() -> Any:
    return pod()["containers"][0]


def serve_options(text: str) -> list[str]:
    """The long and short options of `pymixtral serve` in a command."""
    return re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text)


def needed() -> int:
    """Bytes of Mixtral 8x7B in q4_k_m with its whole context, which the files are for."""
    config = MODELS["8x7b"]
    return footprint(config, mixed(Inventory.of_model(config), "q4_k_m").n_bytes, config.n_ctx_train).total


def commands_of_the_files() -> dict[str, str]:
    found = {
        "Dockerfile": (DEPLOY / "Dockerfile").read_text(encoding="utf-8").partition("ENTRYPOINT")[2],
        "compose.yaml": " ".join(load(DEPLOY / "compose.yaml")["services"]["pymixtral"]["command"]),
        "deployment.yaml": " ".join(container()["args"]),
    }
    unit = (DEPLOY / "systemd" / "pymixtral.service").read_text(encoding="utf-8")
    found["pymixtral.service"] = re.search(r"^ExecStart=(.+)$", unit, re.M)[1]  # type: ignore[index]
    return found | {path.name: load(path)["run"] for path in SKYPILOT}


@pytest.mark.parametrize("name", commands_of_the_files())
def test_every_option_is_one_of_the_server(name: str) -> None:
    found = serve_options(commands_of_the_files()[name])
    assert found
    known = {word for option in options(commands()["serve"]).values() for word in option.opts}
    assert set(found) <= known


def test_answers_may_end_before_a_server_is_killed() -> None:
    compose = load(DEPLOY / "compose.yaml")["services"]["pymixtral"]
    assert float(compose["command"][-1]) + 5 <= float(compose["stop_grace_period"].rstrip("s"))
    unit = (DEPLOY / "systemd" / "pymixtral.service").read_text(encoding="utf-8")
    drain, stop = re.search(r"--drain (\d+)", unit), re.search(r"^TimeoutStopSec=(\d+)$", unit, re.M)
    assert drain
    assert stop
    assert int(drain[1]) + 5 <= int(stop[1])
    waits = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert waits + float(container()["args"][-1]) + 20 <= pod()["terminationGracePeriodSeconds"]


def test_kubernetes_probes_ask_what_there_is() -> None:
    found = {name: container()[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    assert [probe["httpGet"]["path"] for probe in found.values()] == ["/health", "/health", "/livez"]
    assert {probe["httpGet"]["port"] for probe in found.values()} == {container()["ports"][0]["name"]}
    assert found["startup"]["periodSeconds"] * found["startup"]["failureThreshold"] >= 600
    annotations = load(KUBERNETES / "deployment.yaml")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(container()["ports"][0]["containerPort"])


def test_a_pod_can_write_and_do_nothing_that_it_need_not() -> None:
    for spec in (
        pod(),
        next(yaml.safe_load_all((KUBERNETES / "models.yaml").read_text().partition("---")[2]))["spec"]["template"][
            "spec"
        ],
    ):
        inside = spec["containers"][0]["securityContext"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert (inside["readOnlyRootFilesystem"], inside["allowPrivilegeEscalation"]) == (True, False)
        assert inside["capabilities"] == {"drop": ["ALL"]}
        assert spec["automountServiceAccountToken"] is False
    mounts = {mount["name"]: mount for mount in container()["volumeMounts"]}
    assert mounts["models"]["readOnly"] is True
    assert set(mounts) == {volume["name"] for volume in pod()["volumes"]}
    assert pod()["enableServiceLinks"] is False


def test_a_pod_has_the_memory_of_its_model_and_whole_cores() -> None:
    resources = container()["resources"]
    assert resources["requests"] == resources["limits"]
    assert int(resources["limits"]["cpu"]) >= 1
    memory = int(resources["limits"]["memory"].removesuffix("Gi")) * GIB
    assert needed() + 2 * GIB <= memory <= 2 * needed()
    claim = load_first(KUBERNETES / "models.yaml")["spec"]["resources"]["requests"]["storage"]
    assert int(claim.removesuffix("Gi")) * GIB > needed()


def load_first(path: Path) -> Any:
    return next(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def test_kubernetes_names_fit_together() -> None:
    kustomization = load(KUBERNETES / "kustomization.yaml")
    others = {"kustomization.yaml", "prometheus-adapter.yaml"}
    assert set(kustomization["resources"]) == {path.name for path in KUBERNETES.glob("*.yaml")} - others
    image = kustomization["images"][0]
    assert image["name"] == container()["image"]
    assert image["newTag"] == pymixtral.__version__, "the image's tag is the version of the package"
    deployment, service = load(KUBERNETES / "deployment.yaml"), load(KUBERNETES / "service.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    assert service["spec"]["selector"].items() <= labels
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels
    scaler = load(KUBERNETES / "autoscaler.yaml")["spec"]
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    rule = load(KUBERNETES / "prometheus-adapter.yaml")["rules"]["custom"][0]
    assert scaler["metrics"][0]["pods"]["metric"]["name"] == rule["name"]["as"]
    assert rule["seriesQuery"].startswith("pymixtral:num_requests_waiting{")
    assert (
        load_first(KUBERNETES / "models.yaml")["metadata"]["name"]
        == pod()["volumes"][0]["persistentVolumeClaim"]["claimName"]
    )


def test_the_job_fetches_the_file_that_is_served() -> None:
    job = list(yaml.safe_load_all((KUBERNETES / "models.yaml").read_text(encoding="utf-8")))[1]
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert f"{command[-1]}/{command[3]}" == container()["args"][1]


@pytest.mark.parametrize("path", SKYPILOT, ids=lambda path: path.stem)
def test_a_machine_of_skypilot_holds_the_model(path: Path) -> None:
    task = load(path)
    assert int(task["resources"]["memory"].rstrip("+")) * GIB > needed() + 4 * GIB
    assert task["resources"]["disk_size"] * 10**9 > 2 * needed()
    assert f"--port {task['resources']['ports']}" in task["run"]
    assert task["service"]["readiness_probe"]["path"] == "/health"
    names = set(re.findall(r"\$([A-Z_]+)", task["setup"] + task["run"]))
    assert names <= set(task["envs"])


def metrics() -> set[str]:
    """The names of the samples that a server gives."""
    from prometheus_client.parser import text_string_to_metric_families

    from pymixtral.engine.stats import EngineStats
    from pymixtral.server.metrics import Metrics

    stats = EngineStats(**dict.fromkeys(EngineStats.__dataclass_fields__, 1))
    found = Metrics("m", 2048, lambda: stats)
    found.aborted()
    found.answered("GET", 200)
    text = found.exposition("")[0].decode()
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def expressions() -> list[str]:
    board = json.loads((DEPLOY / "grafana" / "pymixtral.json").read_text(encoding="utf-8"))
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def test_the_dashboard_and_the_autoscaler_ask_for_metrics_that_there_are() -> None:
    asked = {name for expression in expressions() for name in re.findall(r"pymixtral:\w+", expression)}
    assert len(asked) > 10
    assert asked | {"pymixtral:num_requests_waiting"} <= metrics()


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    board = json.loads((DEPLOY / "grafana" / "pymixtral.json").read_text(encoding="utf-8"))
    places = [panel["gridPos"] for panel in board["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
