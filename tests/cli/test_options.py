"""One rule for the options of all commands."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pymixtral import InvalidArgumentError, Mixtral
from pymixtral.arguments import number
from pymixtral.cli import choices, sampling
from pymixtral.demo import demo_path
from pymixtral.evaluation.pruning import CRITERIA
from pymixtral.evaluation.tasks import catalogue
from pymixtral.files import imatrix
from pymixtral.inspection import mixes, probe, published
from pymixtral.model.kv_cache import KV_TYPES
from pymixtral.quantize import recipe
from pymixtral.questions import POOLINGS
from pymixtral.sampling.parameters import SamplingParameters
from pymixtral.text import chat
from support import tasks
from support.command_line import DEMO_NOTE, commands, options, refused, run

COMMANDS = commands()
TEXT = "Once upon a time there was a king who had three daughters. " * 40
OF_A_MODEL = [name for name, command in COMMANDS.items() if "--model" in options(command)]


@pytest.fixture(autouse=True)
def no_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is known already."""
    monkeypatch.setattr(probe, "read_bandwidth", lambda counts, *_, **__: dict.fromkeys(counts, 50.0))
    monkeypatch.setattr(probe, "int8_rate", lambda *_: SimpleNamespace(gmacs=100.0))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


# --- Letters and names --------------------------------------------------------------------------------------------


def test_a_letter_means_one_thing() -> None:
    meanings = defaultdict(set)
    for command in COMMANDS.values():
        for long, option in options(command).items():
            for letter in set(option.opts) - {long}:
                meanings[letter].add(long)
    assert meanings == {
        "-m": {"--model"},
        "-p": {"--prompt"},
        "-f": {"--file"},
        "-o": {"--output"},
        "-c": {"--context"},
        "-n": {"--max-tokens"},
        "-t": {"--threads"},
        "-r": {"--repetitions"},
    }
    page = Path(__file__).parents[2] / "docs" / "command-line.md"
    for letter, (long,) in meanings.items():
        assert f"| `{letter}`, `{long}` |" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name",
    [
        "--model",
        "--threads",
        "--kv-type",
        "--override-kv",
        "--experts-used",
        "--expert-min-p",
        "--force",
        "--json",
        "--ray",
    ],
)
def test_an_option_of_several_commands_is_the_same_in_all(name: str) -> None:
    found = [options(command)[name].to_info_dict() for command in COMMANDS.values() if name in options(command)]
    assert len(found) > 1
    assert all(one == found[0] for one in found)


def test_an_adapter_is_the_same_where_it_is_used_and_where_it_is_served() -> None:
    of_a_model = {name: options(COMMANDS[name]) for name in OF_A_MODEL}
    found = {name: given["--adapter"].to_info_dict() for name, given in of_a_model.items() if "--adapter" in given}
    served = [found.pop(name) for name in ("serve", "batch")]
    assert set(found) == {"generate", "chat", "score", "embed", "perplexity", "evaluate", "routing", "bench"}
    for infos in (list(found.values()), served):
        assert all(info == infos[0] for info in infos)


def test_a_prompt_is_the_same_in_all_but_where_there_may_be_several() -> None:
    found = {name: options(command)["--prompt"] for name, command in COMMANDS.items() if "--prompt" in options(command)}
    several = found.pop("embed")
    assert len(found) > 2
    assert all(one.to_info_dict() == found["generate"].to_info_dict() for one in found.values())
    assert (several.multiple, several.metavar, several.opts) == (True, "TEXT", found["generate"].opts)


def test_what_commands_have_in_common() -> None:
    for name, command in COMMANDS.items():
        assert "--json" in options(command), name
        writes = {"dest", "output", "html", "png"} & {param.name for param in command.params}
        assert ("--force" in options(command)) == bool(writes), name
    assert {"generate", "tokenize", "perplexity", "bench", "inspect", "plan", "calibrate"} <= set(OF_A_MODEL)


def test_choices_are_those_that_there_are() -> None:
    assert tuple(KV_TYPES) == choices.KV_TYPES
    assert tuple(published.MODELS) == choices.MODELS
    assert tuple(mixes.MIXES) == choices.MIXES
    assert recipe.RECIPES == choices.RECIPES
    assert CRITERIA == choices.CRITERIA
    assert POOLINGS == choices.POOLINGS
    assert chat.NAMES == choices.CHAT_FORMATS
    assert tuple(catalogue.TASKS) == choices.TASKS


# --- The model ----------------------------------------------------------------------------------------------------


def data(folder: Path) -> Path:
    """A folder of data for evaluate."""
    tasks.hellaswag(folder / "data" / "hellaswag")
    return folder / "data"


def arguments(command: str, text: Path) -> list[object]:
    """A quick run of a command that takes a model, which is not named."""
    requests = text.with_name("requests.jsonl")
    requests.write_text('{"custom_id": "1", "url": "/v1/completions", "body": {"prompt": "Once", "max_tokens": 1}}')
    return {
        "batch": [requests, text.with_name("answers.jsonl"), "--force"],
        "generate": ["-p", "Once", "-n", 1],
        "chat": ["-p", "Once", "-n", 1, "--chat-format", "mistral-v1"],
        "score": ["-p", "Once", "--continuation", " upon"],
        "embed": ["-p", "Once"],
        "tokenize": ["-p", "Once"],
        "perplexity": ["-f", text, "-c", 32, "--windows", 1],
        "routing": ["-f", text, "--windows", 1],
        "evaluate": ["--tasks", "hellaswag", "--data", data(text.parent), "--limit", 1],
        "bench": ["--prompt-tokens", 4, "-n", 1, "-r", 1, "-t", 1],
        "inspect": [],
        "plan": ["-t", 1],
        "calibrate": ["-f", text, "-c", 32, "--windows", 1, "-o", text.parent / "i.gguf", "--force"],
    }[command]


@pytest.mark.parametrize("command", [name for name in OF_A_MODEL if name != "serve"])  # which has no end
def test_the_model_is_named_or_of_the_environment_or_the_demo(command: str, text: Path, tiny_q8_0: Path) -> None:
    rest = arguments(command, text)
    demo = run(command, *rest)
    assert demo.exit_code == 0
    assert demo.stderr.startswith(DEMO_NOTE)
    for result in (run(command, "-m", tiny_q8_0, *rest), run(command, *rest, env={"PYMIXTRAL_MODEL": str(tiny_q8_0)})):
        assert result.exit_code == 0
        assert "demo" not in result.stderr
    other = {"PYMIXTRAL_MODEL": "other.gguf"}
    refused(run(command, *rest, env=other), "other.gguf")
    assert run(command, "-m", tiny_q8_0, *rest, env=other).exit_code == 0
    assert run(command, *rest, env={"PYMIXTRAL_MODEL": ""}).stderr.startswith(DEMO_NOTE)


@pytest.mark.parametrize(
    "command", [name for name in OF_A_MODEL if any(p.name == "subject" for p in COMMANDS[name].params)]
)
def test_the_model_may_stand_alone_and_be_named_twice_if_both_are_equal(
    command: str, text: Path, tiny_q8_0: Path
) -> None:
    rest = arguments(command, text)
    for named in ([tiny_q8_0], [tiny_q8_0, "-m", tiny_q8_0], ["-m", tiny_q8_0, tiny_q8_0]):
        assert run(command, *named, *rest, env={"PYMIXTRAL_MODEL": "other.gguf"}).exit_code == 0
    for named in ([tiny_q8_0, "-m", "other.gguf"], ["-m", "other.gguf", tiny_q8_0]):
        refused(run(command, *named, *rest), "expected one model, found two", str(tiny_q8_0), "other.gguf")


def test_commands_that_need_no_model_leave_that_of_the_environment_alone(text: Path, tmp_path: Path) -> None:
    environment = {"PYMIXTRAL_MODEL": "missing.gguf"}
    assert run("plan", "--params", "7b", "-t", 1, env=environment).exit_code == 0
    first, both = tmp_path / "first.gguf", tmp_path / "both.gguf"
    assert run("calibrate", "-f", text, "-c", 32, "--windows", 1, "-o", first).exit_code == 0
    assert run("calibrate", "--merge", first, "--merge", first, "-o", both, env=environment).exit_code == 0
    assert imatrix.read(both).n_windows == 2


# --- Sampling -----------------------------------------------------------------------------------------------------


def test_each_sampling_parameter_is_an_option() -> None:
    found = options(COMMANDS["generate"])
    for field in dataclasses.fields(SamplingParameters):
        option = found[f"--{field.name.replace('_', '-')}"]
        assert (option.name, option.help) == (field.name, field.metadata["help"])
        assert option.default == field.default or field.default is None


def test_a_new_sampling_parameter_needs_no_line_in_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def between_0_and_1(name: str, value: Any) -> float:
        return number(name, value, 0, 1)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class More(SamplingParameters):
        smoothing: float = dataclasses.field(default=0.1, metadata={"help": "New here.", "check": between_0_and_1})

    monkeypatch.setattr(sampling, "SamplingParameters", More)

    @click.command()
    @sampling.sampling_options
    def command(**values: Any) -> None:
        click.echo(json.dumps(values["smoothing"]))

    assert CliRunner().invoke(command, ["--smoothing", "0.5"]).output == "0.5\n"
    assert CliRunner().invoke(command, []).output == "0.1\n"
    assert isinstance(CliRunner().invoke(command, ["--smoothing", "2"]).exception, InvalidArgumentError)
    assert "New here.  [default: 0.1]" in CliRunner().invoke(command, ["--help"]).output


@pytest.mark.parametrize("value", ["-1", "x"])
def test_a_sampling_parameter_is_checked_before_the_model_is_opened(value: str) -> None:
    refused(run("generate", "-m", "missing.gguf", "-p", "a", "--top-k", value), "--top-k")


# --- JSON ---------------------------------------------------------------------------------------------------------


def test_generate_in_json(tiny_q8_0: Path) -> None:
    result = run("generate", "-m", tiny_q8_0, "-p", "Once", "-n", 12, "--seed", 3, "--json")
    found = json.loads(result.stdout)
    with Mixtral(tiny_q8_0) as engine:
        expected = engine.generate("Once", max_tokens=12, seed=3)
    assert (result.exit_code, result.stderr) == (0, "")
    assert (found["text"], found["tokens"], found["finish_reason"]) == (expected.text, expected.tokens, "length")
    assert (found["stats"]["prompt_tokens"], found["stats"]["generated_tokens"]) == (2, 12)


def test_an_interrupt_leaves_the_json_of_what_there_is(tiny_q8_0: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pymixtral.engine.stream import Generation

    following = Generation.__next__

    def interrupted(self: Generation) -> str:
        if len(self.tokens) >= 3:
            raise KeyboardInterrupt
        return following(self)

    monkeypatch.setattr(Generation, "__next__", interrupted)
    result = run("generate", "-m", tiny_q8_0, "-p", "Once", "--json")
    assert (result.exit_code, result.stderr) == (130, "")
    found = json.loads(result.stdout)
    assert len(found["tokens"]) >= 3
    assert (found["finish_reason"], found["stop_reason"]) == (None, None)


def test_calibrate_convert_layout_and_quantize_in_json(text: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    matrix, model, copy = tmp_path / "i.gguf", tmp_path / "m.gguf", tmp_path / "c.gguf"
    found = json.loads(
        run("calibrate", "-m", demo_path(), "-f", text, "-c", 32, "--windows", 2, "-o", matrix, "--json").stdout
    )
    assert (found["output"], found["tensors"], found["windows"], found["context"]) == (str(matrix), 29, 2, 32)
    assert found["hardly_seen"]["blk.0"].keys() <= set(map(str, range(8)))

    quantize = ["quantize", tiny_checkpoint, model, "--type", "q4_0", "--json"]
    planned = json.loads(run(*quantize, "--dry-run").stdout)
    written = json.loads(run(*quantize).stdout)
    assert planned["type"] == written["type"] == "q4_0"
    assert [t["type"] for t in planned["tensors"]] == [t["type"] for t in written["tensors"]]
    assert planned["bits_per_weight"] == written["bits_per_weight"]
    assert written["file_bytes"] == model.stat().st_size

    assert json.loads(run("convert-layout", model, copy, "--json").stdout) == {"files": [str(copy)]}
