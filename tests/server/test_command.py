"""The command `pymixtral serve`: what it refuses, and its examples."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from pymixtral import Mixtral
from pymixtral.cli.serve import serve
from pymixtral.demo import demo_chat_path
from support.adapter_files import write_adapter
from support.command_line import options, refused, run
from support.serving import LONG, Server, Start

NAME = "n\n\x1b[2J\x9b"
NUMBERS = ("nan", "inf", "-inf", "1e400", "", "x", "0x10", "1_0 0", "-1", "1" + "0" * 30, "9" * 5000)


def numeric() -> list[str]:
    """The options that take a number, a size or a choice, and are refused before the model is opened."""
    texts = ("--name", "--host", "--cors-origin", "--override-kv", "--pace", "--expert-min-p", "--adapter", "--ray")
    return [
        option
        for option, param in options(serve).items()
        if not param.is_flag and not isinstance(param.type, click.Path) and option not in texts
    ]


@pytest.mark.parametrize("option", numeric())
def test_numbers_that_are_none_or_too_large(option: str) -> None:
    for value in NUMBERS:
        if (option, value) not in (("--context", "1" + "0" * 30), ("--experts-used", "1" + "0" * 30)):
            refused(run("serve", "--port", "0", option, value))


@pytest.mark.parametrize(
    "words",
    [
        ("--pace", "nan"),
        ("--expert-min-p", "nan"),
        ("--expert-min-p", "1.1"),
        ("-c", "1" + "0" * 30),
        ("--experts-used", "1" + "0" * 30),
        ("--cache-size", "1"),
        ("-m", f"missing{NAME}"),
        ("--override-kv", "llama.rope.freq_base=float:nan"),
        ("--adapter", f"x=missing{NAME}"),
        ("--adapter", "/dev/null"),
    ],
    ids=lambda words: words[0],
)
def test_a_model_that_is_refused(start: Start, words: tuple[str, str]) -> None:
    model = () if "-m" in words else ("-m", str(demo_chat_path()))
    server = start(*model, *words, wait=False)
    assert server.wait() == 2
    assert server.lines[0].startswith("Serving on ")
    assert [line.startswith("Error: ") for line in server.lines[1:]] == [True]
    assert all(line.isprintable() for line in server.lines)


def test_replicas_are_of_a_cluster() -> None:
    refused(run("serve", "--port", "0", "--replicas", "2"), "expected --replicas beside --ray, found it alone")
    for value in ("2:1", "0:2", ":", "1:", "1:2:3"):
        refused(run("serve", "--port", "0", "--ray", "--replicas", value), "or two of them as 2:8")


def test_addresses_that_are_none() -> None:
    for host in ("256.1.1.1", "no.such.host.invalid", "192.0.2.1", "", "x" * 300, NAME, "a..b"):
        refused(run("serve", "--port", "0", "--host", host), "expected --host to be a name or an address of this")


def test_the_model_is_named_or_of_the_environment_or_the_demo(start: Start, tiny_q8_0: Path) -> None:
    def name(server: Server) -> str:
        with server.client() as client:
            found: str = client.get("/v1/models").json()["data"][0]["id"]
        return found

    assert name(start()) == demo_chat_path().stem
    assert name(start(env={"PYMIXTRAL_MODEL": str(tiny_q8_0)})) == tiny_q8_0.stem
    assert name(start("--name", "mine", "-m", str(tiny_q8_0))) == "mine"


def test_adapters_are_models(start: Start, tmp_path: Path) -> None:
    with Mixtral(demo_chat_path(), n_ctx=256) as model:
        path = write_adapter(tmp_path / "tales.gguf", model.config, 1)
        model.load_adapter("tales", path)
        expected = [
            model.generate("Once", max_tokens=5, temperature=0, adapter=adapter).text
            for adapter in ({}, {"tales": 1}, {"tales": 0.5})
        ]
    arguments = ("--adapter", str(path), "--adapter", f"half={path}:0.5", "--allow-adapter-loading", str(tmp_path))
    server = start("-m", str(demo_chat_path()), *arguments)
    assert any(line.rstrip().endswith("; adapters: tales, half.") for line in server.lines)
    with server.client() as client:

        def text(name: str) -> str:
            body = {"model": name, "prompt": "Once", "max_tokens": 5, "temperature": 0}
            found: str = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
            return found

        names = [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert names == [demo_chat_path().stem, "tales", "half"]
        assert [text(name) for name in names] == expected
        assert client.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "tales.gguf"}).is_success
        assert text("x") == expected[1]
        assert client.post("/v1/unload_lora_adapter", json={"lora_name": "half"}).is_success
        assert client.post("/v1/completions", json={"model": "half", "prompt": "a"}).status_code == 404
    refused(run("serve", "--port", "0", "--allow-adapter-loading", "nowhere"), "expected --allow-adapter-loading to be")
    refused(run("serve", "--port", "0", "--adapter", "a=x", "--adapter", "a=y"), "'a' twice")


def examples() -> list[str]:
    text = (serve.epilog or "").replace("\\\n", " ")
    lines = [" ".join(line.split()) for line in text.splitlines() if line.startswith("  ")]
    return [line for line in lines if "--ray" not in line]  # tests/cluster


@pytest.mark.parametrize("line", examples())
def test_the_examples_serve(line: str, tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("key\n")
    with Mixtral(demo_chat_path(), n_ctx=64) as model:
        write_adapter(tmp_path / "tales.gguf", model.config, 1)
    (tmp_path / "mixtral-instruct.gguf").symlink_to(demo_chat_path())
    _, command, *words = shlex.split(line)
    assert command == "serve"
    words = [word for i, word in enumerate(words) if "--port" not in words[max(i - 1, 0) : i + 1]]
    program = [sys.executable, "-m", "pymixtral", command, *words, "--port", "0"]
    process = subprocess.Popen(program, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    for text in process.stderr:
        if text.startswith("Ready"):
            process.send_signal(signal.SIGTERM)
    assert process.wait(LONG) == 0
