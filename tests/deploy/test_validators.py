"""The files of deploy/, checked by the programs that they are for or by their own schemas, offline.

pytest -m deploy, after the lines of tests/deploy/requirements.txt.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.paths import ROOT

from .tools import REQUIREMENTS, program, python, run

pytestmark = pytest.mark.deploy

DEPLOY = ROOT / "deploy"
OTHERS = ("kustomization.yaml", "prometheus-adapter.yaml")  # of other programs, see test_files.py
KUBERNETES = sorted(path for path in (DEPLOY / "kubernetes").glob("*.yaml") if path.name not in OTHERS)


def package(name: str) -> Any:
    try:
        return __import__(name)
    except ModuleNotFoundError:
        pytest.fail(f"expected the package {name}, found none: {REQUIREMENTS}")


# --- compose ------------------------------------------------------------------------------------------------------


def composed(path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    compose = program("docker-compose", "docker-compose")
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run([compose, "-f", str(path), "config"], env=environment, capture_output=True, text=True)


def test_the_compose_file() -> None:
    done = composed(DEPLOY / "compose.yaml", MODEL="m.gguf", PYMIXTRAL_API_KEYS="key", MODELS="/srv/models")
    assert done.returncode == 0, done.stderr
    assert "- /models/m.gguf" in done.stdout
    assert "- /srv/models:/models:ro" in done.stdout
    assert "127.0.0.1:8000:8000" in done.stdout
    assert re.search(r"context: (.+)", done.stdout)[1] == str(ROOT)  # type: ignore[index]


def test_a_compose_file_without_a_key_or_with_a_wrong_word_is_refused(tmp_path: Path) -> None:
    assert "give one key" in composed(DEPLOY / "compose.yaml", MODEL="m.gguf").stderr
    wrong = (DEPLOY / "compose.yaml").read_text(encoding="utf-8").replace("read_only:", "readonly:")
    (tmp_path / "compose.yaml").write_text(wrong, encoding="utf-8")
    done = composed(tmp_path / "compose.yaml", MODEL="m.gguf", PYMIXTRAL_API_KEYS="key")
    assert done.returncode != 0
    assert "readonly" in done.stderr


# --- Kubernetes ---------------------------------------------------------------------------------------------------


def validated(path: Path) -> subprocess.CompletedProcess[str]:
    package("kubernetes_validate")
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", "--kubernetes-version", "1.36", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.stem)
def test_a_kubernetes_manifest(path: Path) -> None:
    done = validated(path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count(" passed ") == path.read_text(encoding="utf-8").count("\nkind: ")


def test_a_wrong_kubernetes_manifest_is_refused(tmp_path: Path) -> None:
    right = (DEPLOY / "kubernetes" / "deployment.yaml").read_text(encoding="utf-8")
    for old, new in (("periodSeconds: 5", "periodSeconds: often"), ("readinessProbe:", "readyProbe:")):
        (tmp_path / "wrong.yaml").write_text(right.replace(old, new), encoding="utf-8")
        assert validated(tmp_path / "wrong.yaml").returncode != 0


# --- systemd ------------------------------------------------------------------------------------------------------


def test_the_systemd_unit(tmp_path: Path) -> None:
    unit = (DEPLOY / "systemd" / "pymixtral.service").read_text(encoding="utf-8")
    command = tmp_path / "pymixtral"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    (tmp_path / "pymixtral.service").write_text(unit.replace("/opt/pymixtral/bin/pymixtral", str(command)))
    analyze = program("systemd-analyze", "systemd")
    assert run(analyze, "verify", "--man=no", tmp_path / "pymixtral.service") == ""
    # The lower the safer, from 0 to 10; in tenths.
    run(analyze, "security", "--offline=true", "--threshold=20", tmp_path / "pymixtral.service")


def test_a_wrong_systemd_unit_is_found(tmp_path: Path) -> None:
    unit = (DEPLOY / "systemd" / "pymixtral.service").read_text(encoding="utf-8")
    unit = unit.replace("/opt/pymixtral/bin/pymixtral", "/bin/true").replace("TimeoutStopSec", "TimeoutStop")
    (tmp_path / "wrong.service").write_text(unit)
    assert "TimeoutStop" in run(program("systemd-analyze", "systemd"), "verify", "--man=no", tmp_path / "wrong.service")


# --- SkyPilot -----------------------------------------------------------------------------------------------------

CHECK = Path(__file__).with_name("skypilot.py")


@pytest.mark.parametrize("path", sorted((DEPLOY / "skypilot").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_skypilot_service(path: Path, tmp_path: Path) -> None:
    python(CHECK, path)
    for old, new in (("cpus:", "cpu:"), ("replica_policy:", "replicas_policy:"), ("run: |", "runs: |")):
        (tmp_path / "wrong.yaml").write_text(path.read_text(encoding="utf-8").replace(old, new))
        done = subprocess.run([sys.executable, CHECK, tmp_path / "wrong.yaml"], capture_output=True, text=True)
        assert done.returncode == 1, done.stderr
        assert new.partition(":")[0] in done.stdout


@pytest.mark.parametrize("path", sorted((DEPLOY / "skypilot").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_commands_of_a_skypilot_service_are_shell(path: Path) -> None:
    task = package("yaml").safe_load(path.read_text(encoding="utf-8"))
    for script in (task["setup"], task["run"]):
        run("bash", "-n", "-c", script)


# --- Grafana ------------------------------------------------------------------------------------------------------


def test_the_expressions_of_the_dashboard() -> None:
    parser = package("promql_parser")
    board = json.loads((DEPLOY / "grafana" / "pymixtral.json").read_text(encoding="utf-8"))
    for panel in board["panels"]:
        for target in panel["targets"]:
            parser.parse(target["expr"].replace("$__rate_interval", "5m"))
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        parser.parse("sum(rate(a[5m])")
