"""The Dockerfile: rules that a good one keeps, and its very commands in a bare environment.

There is no daemon to build an image with. So its instructions are followed here: RUN in a shell,
COPY as copies, with the container's folders in a temporary one. What only a container can have,
packages of the system and its users, is left out, by name. The server then runs as the container's
user, without a right to write anywhere but in its /tmp.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pytest

from support.paths import ROOT

from .tools import REQUIREMENTS, program, run

pytestmark = pytest.mark.deploy

DEPLOY = ROOT / "deploy"
LEFT_OUT = ("apt-get ", "useradd ")
"""Beginnings of RUN that need a container."""


@dataclass
class Stage:
    """A stage of the Dockerfile: its name, and its instructions in order."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def stages() -> list[Stage]:
    try:
        from dockerfile_parse import DockerfileParser
    except ModuleNotFoundError:
        pytest.fail(f"expected the package dockerfile_parse, found none: {REQUIREMENTS}")
    found: list[Stage] = []
    arguments = {}
    with (DEPLOY / "Dockerfile").open("rb") as file:
        structure = DockerfileParser(fileobj=file).structure
    for step in structure:
        word, value = step["instruction"], step["value"]
        if word == "ARG" and not found:
            name, _, arguments["${" + name + "}"] = value.partition("=")
        elif word == "FROM":
            base, _, name = value.partition(" AS ")
            for variable, text in arguments.items():
                base = base.replace(variable, text)
            found.append(Stage(base, name))
        elif word != "COMMENT":
            found[-1].steps.append((word, value))
    return found


def steps(word: str, stage: Stage) -> list[str]:
    return [value for name, value in stage.steps if name == word]


def one(word: str) -> str:
    """What the image's only instruction of a kind says."""
    (value,) = steps(word, stages()[-1])
    return value


# --- Rules --------------------------------------------------------------------------------------------------------


def test_stages_have_a_version_and_names() -> None:
    found = stages()
    assert len(found) == 3
    for stage in found:
        image, _, tag = stage.base.partition(":")
        assert (image, tag != "latest", bool(re.search(r"\d", tag))) == ("python", True, True)
    assert all(stage.name for stage in found[:-1])


def test_the_image_runs_as_a_user_with_a_number_and_holds_no_compiler() -> None:
    image = stages()[-1]
    words = [word for word, _ in image.steps]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", one("USER"))
    assert f"--uid {one('USER').partition(':')[0]} " in " ".join(steps("RUN", image))
    assert words.index("USER") > max(i for i, word in enumerate(words) if word in ("RUN", "COPY"))
    assert not any(re.search(r"\b(apt-get|pip|gcc)\b", value) for value in steps("RUN", image))
    assert steps("COPY", image) == ["--from=environment /opt/pymixtral /opt/pymixtral"]


def test_rules_of_instructions() -> None:
    for stage in stages():
        assert {word for word, _ in stage.steps} <= {
            *("RUN", "COPY", "WORKDIR", "USER", "ENV", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT", "CMD")
        }  # no ADD, MAINTAINER, SHELL, ONBUILD
        for command in steps("RUN", stage):
            assert not re.search(r"\b(sudo|curl|wget|ssh|apt)\s", command)
            if "apt-get install" in command:
                assert command.startswith("apt-get update && apt-get install -y --no-install-recommends ")
                assert command.endswith("rm -rf /var/lib/apt/lists/*")
            if re.search(r"\bpip (install|wheel)\b", command):
                assert "--no-cache-dir" in command
        for value in steps("WORKDIR", stage):
            assert value.startswith("/")
    image = stages()[-1]
    for value in (one("ENTRYPOINT"), one("CMD"), one("HEALTHCHECK").partition(" CMD ")[2]):
        assert isinstance(json.loads(value), list)
    assert one("STOPSIGNAL") == "SIGTERM"
    assert json.loads(one("ENTRYPOINT"))[-1] == one("EXPOSE")
    assert not steps("ADD", image)


def test_what_is_copied_is_there_and_part_of_the_context() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    names = [stage.name for stage in stages()]
    copied = set()
    for i, stage in enumerate(stages()):
        for value in steps("COPY", stage):
            if value.startswith("--from="):
                assert value.removeprefix("--from=").split()[0] in names[:i]
            else:
                copied |= set(value.split()[:-1])
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)
    assert any(fnmatch("pymixtral/_pmx.abi3.so", line) for line in lines)  # it is built there


# --- Its commands -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """The folder that stands for the container's root, after all stages."""
    program("setpriv", "util-linux")
    base = Path(tempfile.mkdtemp(prefix="container-", dir="/tmp"))  # not pytest's, which others cannot enter
    base.chmod(0o755)
    try:
        for stage in stages():
            _follow(stage, base)
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _inside(text: str, base: Path) -> str:
    """A text with the container's folders inside the base."""
    return re.sub(r"(?<![\w.])/(opt/pymixtral|wheels|src|tmp)\b", rf"{base}/\1", text)


def _follow(stage: Stage, base: Path) -> None:
    folder = base
    # The system's own Python, as in the image; one in root's home cannot be entered by others.
    system = base / "system"
    system.mkdir(exist_ok=True)
    if not (system / "python").exists():
        (system / "python").symlink_to("/usr/bin/python3")
    environment = {
        "PATH": f"{system}:{os.environ['PATH']}",
        "HOME": str(base),
        **{name: value for name, value in os.environ.items() if name.startswith("PIP_")},
    }
    if stage.name == "wheel":
        environment["PATH"] = f"{_with_pip(base)}:{environment['PATH']}"
    for word, value in stage.steps:
        if word == "WORKDIR":
            folder = Path(_inside(value, base))
            folder.mkdir(parents=True, exist_ok=True)
        elif word == "COPY" and not value.startswith("--from="):
            *sources, dest = value.split()
            for name in sources:
                place = folder / dest
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("*.so", "__pycache__", "_pmx.c"))
                else:
                    shutil.copy(ROOT / name, place)
        elif word == "RUN" and not value.startswith(LEFT_OUT):
            run("bash", "-euc", _inside(value, base), env=environment, cwd=folder)


def _with_pip(base: Path) -> Path:
    """The folder of a python that has pip, as the image's has."""
    if not (base / "bare").exists():
        run("/usr/bin/python3", "-m", "venv", base / "bare")
    return base / "bare" / "bin"


@pytest.fixture
def server(root: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The container's command as its user, with its own /tmp and no other place to write."""
    user, _, group = one("USER").partition(":")
    home = root / "tmp"
    home.mkdir(exist_ok=True)
    os.chown(home, int(user), int(group))
    command = [_inside(word, root) for word in [*json.loads(one("ENTRYPOINT")), *json.loads(one("CMD"))]]
    name, _, value = one("ENV").partition(" ")[0].partition("=")
    assert name == "PATH"
    environment = {
        "PATH": _inside(value, root).replace("$PATH", "/usr/bin:/bin"),
        "PYTHONUNBUFFERED": "1",
        "HOME": str(home),
        "PYMIXTRAL_API_KEYS": "sesame",
    }
    identity = ["setpriv", "--reuid", user, "--regid", group, "--clear-groups", "--no-new-privs", "--bounding-set=-all"]
    process = subprocess.Popen(
        [*identity, *command, "--port", "0", "--drain", "5"],
        cwd=home,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    try:
        first = process.stderr.readline()
        found = re.search(r"http://\S+:(\d+)", first)
        assert found, first + process.stderr.read()
        yield process, found[1]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def health(port: str, root: Path) -> int:
    """The exit code of the container's health check."""
    command = json.loads(one("HEALTHCHECK").partition(" CMD ")[2])
    program_ = command[2].replace(":8000/", f":{port}/")
    assert program_ != command[2]
    return subprocess.run(
        [root / "opt/pymixtral/bin/python", *command[1:2], program_], stderr=subprocess.DEVNULL
    ).returncode


def test_the_container_answers_is_healthy_and_ends_with_0(
    root: Path, server: tuple[subprocess.Popen[str], str]
) -> None:
    process, port = server
    while health(port, root):  # while it loads
        assert process.poll() is None
    assert Path(f"/proc/{process.pid}").stat().st_uid == int(one("USER").partition(":")[0])
    question = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 4}
    address, body = f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(question).encode()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer sesame"}
    with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=120) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == 4
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(urllib.request.Request(address, body, {"Content-Type": "application/json"}), timeout=120)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    assert health(port, root) == 1


def test_the_environment_has_the_wheel_and_what_its_extras_need(root: Path) -> None:
    python = root / "opt/pymixtral/bin/python"
    run(python, "-m", "pip", "check")
    where = run(
        python, "-c", "import pymixtral, jinja2, llguidance, huggingface_hub; print(pymixtral.__file__)", cwd=root
    )
    assert where.startswith(str(root / "opt"))
    assert (root / "opt/pymixtral/bin/hf").exists()
