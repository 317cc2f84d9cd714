"""The plugin for llm: its real command in processes of their own, and its Python interface.

No other plugin is loaded: the package of the real model in the tests is one, too, and is installed
without what it needs.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llm
import llm.plugins
import pytest
from click.testing import CliRunner
from llm.parts import TextPart, ToolCallPart, ToolResultPart
from pydantic import ValidationError

from pymixtral import Mixtral, llm_plugin
from pymixtral.demo import demo_chat_path
from support.adapter_files import write_adapter
from support.ggufs import rewrite
from support.paths import DATA

FIRST, SECOND = "Who are you?", "What did the wolf say?"
GREEDY = {"temperature": 0, "max_tokens": 12}
OPTIONS = ["-o", "temperature", "0", "-o", "max_tokens", "12"]


@pytest.fixture(scope="module")
def demo() -> Iterator[Mixtral]:
    with Mixtral(demo_chat_path()) as model:
        yield model


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, no other plugin, no model that the environment names."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "pymixtral")
    monkeypatch.setattr(llm.plugins, "LLM_LOAD_PLUGINS", "pymixtral")
    monkeypatch.delenv("PYMIXTRAL_MODEL", raising=False)


def process(*arguments: object) -> str:
    """What the command prints, in a process of its own."""
    command = [sys.executable, "-m", "llm", *map(str, arguments)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(*arguments: object, code: int = 0, **environment: str) -> str:
    """What the command prints, in this process; where it fails, what it says."""
    from llm.cli import cli  # which loads the plugins

    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], env=environment)
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


def asked(*texts: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


# --- The command --------------------------------------------------------------------------------------------------


def test_the_command_answers_and_goes_on(demo: Mixtral) -> None:
    first = demo.chat([{"role": "system", "content": "Be brief."}, *asked(FIRST)], **GREEDY).content
    assert process("-m", "pymixtral", FIRST, "--system", "Be brief.", *OPTIONS) == f"{first}\n"
    talk = [{"role": "system", "content": "Be brief."}, *asked(FIRST, first, SECOND)]
    assert process("-c", SECOND, *OPTIONS) == f"{demo.chat(talk, **GREEDY).content}\n"
    assert run("-m", "pymixtral", FIRST, "--async", *OPTIONS) == f"{demo.chat(asked(FIRST), **GREEDY).content}\n"
    assert run("-m", "pymixtral", FIRST, "--no-stream", *OPTIONS) == f"{demo.chat(asked(FIRST), **GREEDY).content}\n"
    logged = json.loads(run("logs", "-n", 1, "--json"))[0]
    answer = demo.chat(asked(FIRST), **GREEDY)
    assert logged["response_json"] == {"finish_reason": answer.finish_reason}
    assert logged["input_tokens"] == answer.completion.stats.prompt_tokens
    assert logged["output_tokens"] == answer.completion.stats.generated_tokens
    assert logged["resolved_model"] == demo_chat_path().name


def test_an_object_has_the_fields_of_its_schema_alone() -> None:
    schema = {"type": "object", "properties": {"legs": {"enum": [2, 4]}}, "required": ["legs"]}
    for seed in range(3):
        found = run("-m", "pymixtral", "--schema", json.dumps(schema), "How many?", "-o", "seed", seed)
        assert list(json.loads(found)) == ["legs"]
    more = json.dumps({**schema, "additionalProperties": {"enum": [1]}, "minProperties": 2})
    found = run("-m", "pymixtral", "--schema", more, "How many?", "-o", "seed", 1, "-o", "max_tokens", 60)
    assert not found.startswith(('{"legs":2}', '{"legs":4}'))


def test_a_schema_of_the_command_line(demo: Mixtral) -> None:
    schema = {"type": "object", "properties": {"legs": {"enum": [2, 4]}}, "required": ["legs"]}
    schema["additionalProperties"] = False
    found = run("-m", "pymixtral", "--schema", json.dumps(schema), "How many?", "-o", "seed", 1)
    assert json.loads(found)["legs"] in (2, 4)
    assert run("-m", "pymixtral", "How?", "-o", "regex", "[a-c]{3}", "-o", "seed", 1).strip("\n") == (
        demo.chat(asked("How?"), regex="[a-c]{3}", seed=1).content
    )


def test_files_have_names(tmp_path: Path) -> None:
    model = tmp_path / "small one.gguf"
    model.symlink_to(demo_chat_path())
    assert "expected a name of letters" in run("pymixtral", "add", model, code=1)
    assert run("pymixtral", "add", model, "--name", "small") == "pymixtral/small\n"
    assert run("pymixtral", "list") == f"pymixtral/small  {demo_chat_path().resolve()}\n"
    assert "pymixtral/small" in run("models")
    assert run("-m", "pymixtral/small", FIRST, *OPTIONS) == run("-m", "pymixtral", FIRST, *OPTIONS)
    no_model = tmp_path / "no.gguf"
    no_model.write_text("none", encoding="utf-8")
    assert "GGUF" in run("pymixtral", "add", no_model, "--name", "no", code=1)
    assert "expected one of the names small, found large" in run("pymixtral", "remove", "large", code=1)
    run("pymixtral", "remove", "pymixtral/small")
    assert run("pymixtral", "list") == ""
    for strange in ("[1]", "[" * 100_000):
        (tmp_path / "llm" / "pymixtral.json").write_text(strange, encoding="utf-8")
        assert "pymixtral" in run("models")  # llm starts


def test_the_environment_names_a_model(tmp_path: Path) -> None:
    assert "expected" in run("-m", "pymixtral", FIRST, code=1, PYMIXTRAL_MODEL=str(tmp_path / "none.gguf"))
    other = DATA.parent.parent / "pymixtral/data/tiny-mixtral-q8_0.gguf"
    found = run("-m", "pymixtral", FIRST, *OPTIONS, "-o", "chat_format", "mistral-v1", PYMIXTRAL_MODEL=str(other))
    with Mixtral(other) as model:
        assert found == model.chat(asked(FIRST), chat_format="mistral-v1", **GREEDY).content + "\n"


def test_help_needs_no_engine() -> None:
    program = (
        "import sys, llm, llm.cli; llm.get_models(); llm.cli.cli(['models'], standalone_mode=False); "
        "assert 'pymixtral.llm_plugin' in sys.modules; assert 'pymixtral.ops' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=300)


def test_what_is_wrong_is_said_before_a_model_is_opened(tmp_path: Path) -> None:
    none = {"PYMIXTRAL_MODEL": str(tmp_path / "none.gguf")}
    assert "expected temperature to be" in run("-m", "pymixtral", FIRST, "-o", "temperature", "-1", code=1, **none)
    assert "Extra inputs" in run("-m", "pymixtral", FIRST, "-o", "nothing", "1", code=1, **none)
    assert "expected one of" in run(
        "-m", "pymixtral", FIRST, "-o", "regex", "a", "-o", "json_object", "1", code=1, **none
    )


# --- The Python interface -----------------------------------------------------------------------------------------


def test_a_conversation_is_that_of_chat_and_uses_the_prefix_cache(demo: Mixtral) -> None:
    conversation = llm.get_model("pymixtral").conversation()
    first = conversation.prompt(FIRST, system="Be brief.", **GREEDY)
    pieces = list(first)
    assert len(pieces) > 1
    talk = [{"role": "system", "content": "Be brief."}, *asked(FIRST)]
    assert "".join(pieces) == demo.chat(talk, **GREEDY).content
    second = conversation.prompt(SECOND, **GREEDY)
    talk += asked("", first.text(), SECOND)[1:]
    assert second.text() == demo.chat(talk, **GREEDY).content
    usage = second.usage()
    assert (usage.input, usage.output) == (len(demo.chat_format().ids(talk)), 12)
    assert usage.details["cached_tokens"] > first.usage().input


def test_tasks_share_the_model_with_threads(demo: Mixtral) -> None:
    async def ask() -> list[str]:
        model = llm.get_async_model("pymixtral")
        return [await response.text() for response in [model.prompt(text, **GREEDY) for text in (FIRST, SECOND)]]

    llm.get_model("pymixtral").prompt(SECOND, **GREEDY).text()
    n_opened = llm_plugin._open.cache_info().misses
    assert asyncio.run(ask()) == [demo.chat(asked(text), **GREEDY).content for text in (FIRST, SECOND)]
    assert llm_plugin._open.cache_info().misses == n_opened


def test_options_are_those_of_pymixtral(demo: Mixtral) -> None:
    model = llm.get_model("pymixtral")
    how = {"temperature": 1.5, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.2, "seed": 7, "max_tokens": 20}
    assert model.prompt(FIRST, **how).text() == demo.chat(asked(FIRST), **how).content
    ended = model.prompt(FIRST, stop=" the", **how)
    assert ended.text() == demo.chat(asked(FIRST), stop=" the", **how).content
    assert model.prompt(FIRST, choice=["one", "two"]).text() in ("one", "two")
    for wrong in ({"top_p": 2}, {"temperature": "hot"}, {"seed": -1}, {"unknown": 1}, {"regex": "a", "lark": "b"}):
        with pytest.raises(ValidationError):
            model.prompt(FIRST, **wrong)


@pytest.fixture(scope="module")
def tales(demo: Mixtral, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapters") / "tales.gguf", demo.config, 1)


def test_adapters(demo: Mixtral, tales: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = write_adapter(tmp_path / "tales.gguf", demo.config, 2)  # the same name
    wanted = {}
    with Mixtral(demo_chat_path(), adapters={"tales": tales, "other": other}) as model:
        for scales in ({}, {"tales": 1.0}, {"tales": 0.5}, {"other": 1.0}, {"tales": 0.5, "other": -0.5}):
            wanted[tuple(scales.items())] = model.chat(asked(FIRST), adapter=scales, **GREEDY).content
    assert len(set(wanted.values())) == len(wanted)
    plain, whole, half, another, both = wanted.values()
    monkeypatch.chdir(tales.parent)
    assert process("-m", "pymixtral", FIRST, "-o", "adapter", "tales.gguf", *OPTIONS) == f"{whole}\n"
    assert run("-m", "pymixtral", FIRST, "-o", "adapter", f"{tales}:0.5", *OPTIONS) == f"{half}\n"
    model = llm.get_model("pymixtral")
    for folder, text in ((tales.parent, whole), (tmp_path, another)):  # which a name without a folder is of
        monkeypatch.chdir(folder)
        assert model.prompt(FIRST, adapter="tales.gguf", **GREEDY).text() == text
    assert model.prompt(FIRST, adapter=f"x={other}", **GREEDY).text() == another
    assert model.prompt(FIRST, adapter=[f"{tales}:0.5", f"{other}:-0.5"], **GREEDY).text() == both
    assert run("-m", "pymixtral", FIRST, "-o", "adapter", f'["{tales}:0.5", "{other}:-0.5"]', *OPTIONS) == f"{both}\n"
    assert model.prompt(FIRST, adapter=[f"{tales}:0.25", f"{tales}:0.25"], **GREEDY).text() == half
    assert model.prompt(FIRST, adapter=[f"{tales}:0.5", f"{tales}:0.5"], **GREEDY).text() == whole
    assert model.prompt(FIRST, **GREEDY).text() == plain

    async def ask() -> str:
        found: str = await llm.get_async_model("pymixtral").prompt(FIRST, adapter=str(tales), **GREEDY).text()
        return found

    n_loaded = llm_plugin._load.cache_info().misses
    assert asyncio.run(ask()) == whole
    assert llm_plugin._load.cache_info().misses == n_loaded  # a file is read once


def test_adapters_of_one_name(demo: Mixtral, tmp_path: Path) -> None:
    """Each gets another one, also where a file has the name that the next would get."""
    model = llm.get_model("pymixtral")
    for i, name in enumerate(("a/one (1)", "a/one", "b/one", "c/one", "d/one (1)")):
        path = tmp_path / f"{name}.gguf"
        path.parent.mkdir(exist_ok=True)
        write_adapter(path, demo.config, i)
        found = model.prompt(FIRST, adapter=str(path), **GREEDY).text()
        with Mixtral(demo_chat_path(), adapters={"x": path}) as one:
            assert found == one.chat(asked(FIRST), adapter="x", **GREEDY).content


def test_adapters_that_are_none(tales: Path, tmp_path: Path) -> None:
    model = llm.get_model("pymixtral")
    for wrong in ("", "x=", "=x", ["a", ""]):
        with pytest.raises(ValidationError, match="expected NAME=PATH"):
            model.prompt(FIRST, adapter=wrong)
    for wrong in ("[", "[1]", '["a"', '["a"] b', "[" * 10_000):
        with pytest.raises(ValidationError, match="expected several adapters as a list of JSON"):
            model.prompt(FIRST, adapter=wrong)
    (tmp_path / "round").symlink_to("round")
    for adapter, words in (
        (f"{tmp_path}/no.gguf", "found none of this name"),
        (f"{tmp_path}/round", "found none of this name"),
        ("a\0b", "adapter"),
        (f"{tales}:1001", "the scale of adapter"),
    ):
        with pytest.raises(llm.ModelError, match=words):
            model.prompt(FIRST, adapter=adapter).text()
    assert "no.gguf: expected an adapter" in run("-m", "pymixtral", FIRST, "-o", "adapter", "no.gguf", code=1)


def test_what_pymixtral_refuses_is_a_model_error(tmp_path: Path) -> None:
    model = llm.get_model("pymixtral")
    with pytest.raises(llm.ModelError, match="expected json_schema to be a grammar"):
        model.prompt(FIRST, schema={"type": "hiccup"}).text()
    with pytest.raises(llm.ModelError, match="chat format"):
        model.prompt(FIRST, chat_format="none").text()
    with pytest.raises(ValueError, match="tool"):  # llm itself: the demo calls none
        model.prompt(FIRST, tools=[llm.Tool("look")]).text()
    with pytest.raises(llm.ModelError, match="expected"):
        llm_plugin.LocalModel("x", tmp_path / "none.gguf").prompt(FIRST).text()
    picture = llm.user("a", llm.Attachment(type="image/png", content=b"a"))
    with pytest.raises(llm.ModelError, match="attachment"):
        model.prompt(messages=[picture]).text()


def test_an_answer_that_is_dropped_is_no_work_for_the_model() -> None:
    response = llm.get_model("pymixtral").prompt(FIRST, min_tokens=2000)
    pieces = iter(response)
    next(pieces)
    pieces.close()
    model = llm_plugin._opened(demo_chat_path())
    while model.stats().decoding:  # until it is noticed, which pytest would wait for in vain
        model.generate("a", max_tokens=1)
    assert model.stats().generated_tokens < 2000


def test_messages_of_llm_are_those_of_openai() -> None:
    given = [
        llm.system("Be brief."),
        llm.user("How warm", " is it?"),
        llm.assistant(ToolCallPart(name="look", arguments={"city": "Paris"}, tool_call_id="a")),
        llm.tool_message(ToolResultPart(name="look", output="22", tool_call_id="a")),
        llm.assistant(),
        llm.assistant(TextPart("22"), ToolCallPart(name="search", server_executed=True)),
        llm.user(""),
    ]
    call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": {"city": "Paris"}}}
    assert [message for one in given for message in llm_plugin._messages(one)] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "22", "tool_call_id": "a"},
        {"role": "assistant", "content": "22"},
        {"role": "user", "content": ""},
    ]


def test_calls_of_tools_reach_llm_and_results_the_model(tmp_path: Path) -> None:
    """The demo, its format ChatML, whose answer is the text of a call by its grammar."""
    template = "{{ '<|im_start|>' }}"
    path = rewrite(demo_chat_path(), tmp_path / "m.gguf", keys={"tokenizer.chat_template": template})
    model = llm_plugin.LocalModel("tools", path)
    seen = []

    def look(city: str) -> str:
        """How warm it is."""
        seen.append(city)
        return "22 degrees"

    call = r'<tool_call>\{"name": "look", "arguments": \{"city": "(Paris|Rome)"\}\}</tool_call>'
    conversation = model.conversation()
    responses = conversation.chain(FIRST, tools=[look], options={"regex": call, "seed": 1}, chain_limit=2).responses()
    for second in (next(responses), next(responses)):
        second.text()
    with pytest.raises(ValueError, match="limit"):  # its grammar makes it call again and again
        next(responses)
    assert seen[0] in ("Paris", "Rome")
    assert len(seen) == 1
    *_, asks, result = [message for one in second.prompt.messages for message in llm_plugin._messages(one)]
    assert asks["tool_calls"][0]["function"] == {"name": "look", "arguments": {"city": seen[0]}}
    assert result == {"role": "tool", "content": "22 degrees", "tool_call_id": asks["tool_calls"][0]["id"]}
    with Mixtral(path) as other:  # which has read the result, too
        tools = [{"type": "function", "function": {"name": "look", "description": "How warm it is.", "parameters": {}}}]
        tools[0]["function"]["parameters"] = second.prompt.tools[0].input_schema
        read = other.chat_format().ids([{"role": "user", "content": FIRST}, asks, result], tools)
        assert second.usage().input == len(read)
