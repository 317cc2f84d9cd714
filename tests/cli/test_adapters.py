"""`--adapter`, in every command that computes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymixtral import Mixtral
from pymixtral.evaluation.perplexity import perplexity
from support import tasks
from support.adapter_files import write_adapter
from support.command_line import commands, options, refused, run

TEXT = "Once upon a time there was a king who had three daughters. " * 20


@pytest.fixture(scope="module")
def files(tiny_q8_0: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("files")
    with Mixtral(tiny_q8_0, n_ctx=64) as model:
        for i, name in enumerate(("a", "b")):
            write_adapter(place / f"{name}.gguf", model.config, i)
    (place / "text.txt").write_text(TEXT)
    return place


@pytest.fixture(scope="module")
def model(tiny_q8_0: Path, files: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0, n_ctx=256, adapters={name: files / f"{name}.gguf" for name in "ab"}) as model:
        yield model


def test_commands_give_what_the_library_gives(tiny_q8_0: Path, files: Path, model: Mixtral) -> None:
    a, b = f"{files}/a.gguf", f"b={files}/b.gguf:-0.5"
    for more, adapter in (
        ([], {}),
        (["--adapter", a], "a"),
        (["--adapter", f"{a}:2"], {"a": 2}),
        (["--adapter", a, "--adapter", b], {"a": 1, "b": -0.5}),
    ):
        same: Any = ["-m", tiny_q8_0, "-c", 256, *more]
        text = run("generate", *same, "-p", "Once", "-n", 9, "--seed", 1).stdout
        assert text.rstrip("\n") == model.generate("Once", max_tokens=9, seed=1, adapter=adapter).text.rstrip("\n")
        answer = run("chat", *same, "-p", "Once", "-n", 9, "--seed", 1, "--chat-format", "mistral-v1", "--json").stdout
        asked: Any = [{"role": "user", "content": "Once"}]
        wanted: Any = {"max_tokens": 9, "seed": 1, "chat_format": "mistral-v1", "adapter": adapter}
        assert json.loads(answer)["content"] == model.chat(asked, **wanted).content
        (score,) = json.loads(run("score", *same, "-p", "Once", "--continuation", " upon", "--json").stdout)
        assert score["logprob"] == model.score("Once", [" upon"], adapter=adapter)[0].logprob
        vectors = json.loads(run("embed", *same, "-p", "Once", "--json").stdout)["embeddings"]
        assert vectors == model.embed(["Once"], adapter=adapter).tolist()


def test_perplexity(tiny_q8_0: Path, files: Path) -> None:
    same: Any = ["perplexity", "-m", tiny_q8_0, "-f", files / "text.txt", "-c", 64, "--windows", 2]
    base = files / "text.base"
    without = json.loads(run(*same, "--save-base", base, "--json").stdout)
    adapted: Any = [*same, "--adapter", f"{files}/a.gguf:0.5", "--kl-against", base, "--json"]
    found = json.loads(run(*adapted).stdout)
    with Mixtral(tiny_q8_0, n_ctx=64, adapters={"a": files / "a.gguf"}, adapter={"a": 0.5}) as opened:
        assert found["perplexity"] == perplexity(opened, TEXT, n_ctx=64, n_windows=2, progress=False).perplexity
    assert found["perplexity"] != without["perplexity"]
    assert found["kl"]["base_perplexity"] == pytest.approx(without["perplexity"])
    assert found["kl"]["mean"] > 0


def test_the_answers_of_evaluate_are_of_their_adapter(tiny_q8_0: Path, files: Path, tmp_path: Path) -> None:
    """Another one asks anew; the same one, under whatever name and path, asks nothing twice."""
    tasks.hellaswag(tmp_path / "data" / "hellaswag")
    there = tmp_path / "answers.jsonl"
    (tmp_path / "copy.gguf").write_bytes((files / "a.gguf").read_bytes())

    def evaluated(*more: str) -> Any:
        line: Any = ["evaluate", "-m", tiny_q8_0, "--tasks", "hellaswag", "--data", tmp_path / "data", "-o", there]
        (found,) = json.loads(run(*line, "--json", *more).stdout)["results"]
        return found

    runs = {}
    for more in ((), ("--adapter", f"{files}/a.gguf"), ("--adapter", f"{files}/a.gguf:0.5")):
        found = evaluated(*more)
        assert found["resumed"] == 0
        runs[found["run"]] = more
    assert len(runs) == 3
    assert evaluated()["model"]["overrides"] == {}
    again = evaluated("--adapter", f"another={tmp_path}/copy.gguf")
    assert again["resumed"] == again["items"]
    assert runs[again["run"]] == ("--adapter", f"{files}/a.gguf")
    with Mixtral(tiny_q8_0, n_ctx=64, adapters={"a": files / "a.gguf"}) as opened:
        digest = opened.adapters["a"].digest.hex()
    assert again["model"]["overrides"] == {f"adapter {digest[:16]}": 1.0}


def test_prompts_of_a_file_have_adapters_of_their_own(
    tiny_q8_0: Path, files: Path, model: Mixtral, tmp_path: Path
) -> None:
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "texts.jsonl"
    choices: list[Any] = [None, "a", {"b": 0.5}, {}, "c"]
    lines = [
        {"prompt": "Once", "max_tokens": 5, "seed": 1} | ({"adapter": c} if c is not None else {}) for c in choices
    ]
    prompts.write_text("\n".join(map(json.dumps, lines[:-1])))
    line: Any = ["generate", "-m", tiny_q8_0, "-c", 256, "--prompts", prompts, "-o", output, "--json"]
    loaded = ("--adapter", f"{files}/a.gguf", "--adapter", f"{files}/b.gguf:2")
    assert json.loads(run(*line, *loaded).stdout)["resumed"] == 0
    found = [json.loads(record)["text"] for record in output.read_text().splitlines()]
    expected = [{"a": 1, "b": 2}, "a", {"b": 0.5}, {}]
    wanted: Any = {"max_tokens": 5, "seed": 1}
    assert found == [model.generate("Once", adapter=adapter, **wanted).text for adapter in expected]
    assert json.loads(run(*line, *loaded).stdout)["resumed"] == 4
    changed = ("--adapter", f"a={files}/b.gguf", "--adapter", f"b={files}/a.gguf:2")  # the same names
    refused(run(*line, *changed), "--force")
    prompts.write_text(json.dumps(lines[-1]))
    assert "'c'" in run(*line, *loaded, "--force").stderr


def test_batches_pick_an_adapter_by_model(tiny_q8_0: Path, files: Path, model: Mixtral, tmp_path: Path) -> None:
    names = ("half", tiny_q8_0.stem, None, "nobody")
    requests = tmp_path / "requests.jsonl"
    body = {"prompt": "Once", "max_tokens": 5, "temperature": 0}
    requests.write_text(
        "\n".join(
            json.dumps(
                {"custom_id": str(i), "url": "/v1/completions", "body": body | ({"model": name} if name else {})}
            )
            for i, name in enumerate(names)
        )
    )
    adapter = f"half={files}/a.gguf:0.5"
    run("batch", "-m", tiny_q8_0, "-c", 256, requests, tmp_path / "answers", "--adapter", adapter)
    answers = [json.loads(line)["response"] for line in (tmp_path / "answers").read_text().splitlines()]
    assert [answer["status_code"] for answer in answers] == [200, 200, 200, 404]
    texts = [answer["body"]["choices"][0]["text"] for answer in answers[:3]]
    plain = model.generate("Once", max_tokens=5, temperature=0).text
    assert texts == [model.generate("Once", max_tokens=5, temperature=0, adapter={"a": 0.5}).text, plain, plain]
    assert [answer["body"]["model"] for answer in answers[:3]] == ["half", tiny_q8_0.stem, tiny_q8_0.stem]


def test_requests_of_batches_have_scales_of_their_own(
    tiny_q8_0: Path, files: Path, model: Mixtral, tmp_path: Path
) -> None:
    choices: list[Any] = [{"a": 0.5, "b": -0.25}, "a", {"c": 1}]
    body = {"prompt": "Once", "max_tokens": 5, "temperature": 0}
    lines = [
        {"custom_id": str(i), "url": "/v1/completions", "body": body | {"adapter": c}} for i, c in enumerate(choices)
    ]
    (tmp_path / "requests.jsonl").write_text("\n".join(map(json.dumps, lines)))
    loaded = [word for name in "ab" for word in ("--adapter", f"{files}/{name}.gguf:2")]
    run("batch", "-m", tiny_q8_0, "-c", 256, tmp_path / "requests.jsonl", tmp_path / "answers", *loaded)
    *good, bad = [json.loads(line)["response"] for line in (tmp_path / "answers").read_text().splitlines()]
    wanted = [model.generate("Once", max_tokens=5, temperature=0, adapter=c).text for c in (choices[0], {"a": 2})]
    assert [answer["body"]["choices"][0]["text"] for answer in good] == wanted
    assert (bad["status_code"], bad["body"]["error"]["param"]) == (400, "adapter")


NAMES = st.text(st.characters(exclude_characters="="), min_size=1, max_size=8)
PATHS = st.text(min_size=1, max_size=12)


def parsed(*texts: str) -> dict[str, Any]:
    option = options(commands()["generate"])["--adapter"]
    assert option.callback
    found: dict[str, Any] = option.callback(click.Context(commands()["generate"]), option, texts)
    return found


@given(name=NAMES, path=PATHS, scale=st.floats(allow_nan=False), other=NAMES)
def test_whatever_stands_around_the_colon(name: str, path: str, scale: float, other: str) -> None:
    """A scale is what stands after the last colon and is a number; every other colon is the path's."""
    found = parsed(f"{name}={path}:{scale!r}")
    assert found == {"adapters": {name: Path(path)}, "adapter": {name: scale}}
    assert parsed(f"{name}={path}:{scale!r}:x")["adapters"] == {name: Path(f"{path}:{scale!r}:x")}
    assert parsed(f"{name}=x/{path}.gguf")["adapters"] == {name: Path(f"x/{path}.gguf")}
    if other != name:
        assert list(parsed(f"{other}=a", f"{name}=b")["adapter"]) == [other, name]
    assert parsed("x/tales.gguf:0.5") == {"adapters": {"tales": Path("x/tales.gguf")}, "adapter": {"tales": 0.5}}


@given(text=st.text(max_size=12))
def test_whatever_is_given(text: str) -> None:
    try:
        found = parsed(text)
    except click.BadParameter:
        return
    assert list(found["adapters"]) == list(found["adapter"])
    assert all(found["adapters"])


@pytest.mark.parametrize(
    ("adapters", "words"),
    [
        (["=x.gguf"], "expected NAME=PATH[:SCALE]"),
        (["x="], "expected NAME=PATH[:SCALE]"),
        ([""], "expected NAME=PATH[:SCALE]"),
        (["a.gguf", "a=b.gguf"], "'a' twice"),
        (["missing.gguf"], "missing.gguf"),
        (["a.gguf:nan"], "expected the scale of adapter 'a' to be a number from -1000 to 1000"),
        (["a.gguf:1e4"], "expected the scale of adapter 'a'"),
        (["a.gguf:x"], "a.gguf:x"),
        (["text.txt"], "text.txt"),
    ],
)
def test_what_is_no_adapter(
    tiny_q8_0: Path, files: Path, monkeypatch: pytest.MonkeyPatch, adapters: list[str], words: str
) -> None:
    monkeypatch.chdir(files)
    more = [word for one in adapters for word in ("--adapter", one)]
    for command in (["generate", "-p", "a", "-n", 1], ["score", "-p", "a", "--continuation", "b"]):
        refused(run(*command, "-m", tiny_q8_0, *more), words)


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/run-0.5", "run-0.5"), ("a/run-0.5/", "run-0.5"), ("v0.1-lora.gguf", "v0.1-lora"), ("a.bin", "a.bin")],
)
def test_the_name_of_an_adapter_is_that_of_its_place(path: str, name: str) -> None:
    """Folders have dots in their names, too, such as those of versions."""
    assert parsed(path) == {"adapters": {name: Path(path)}, "adapter": {name: 1.0}}
    assert parsed(f"{path}:2") == {"adapters": {name: Path(path)}, "adapter": {name: 2.0}}


def test_quantize_takes_what_other_commands_take() -> None:
    option = options(commands()["quantize"])["--adapter"]
    assert option.callback
    found = option.callback(click.Context(commands()["quantize"]), option, ("x=a.gguf:0.5", "b.gguf", "c=d:e"))
    assert found == [(Path("a.gguf"), 0.5), (Path("b.gguf"), 1.0), (Path("d:e"), 1.0)]
    with pytest.raises(click.BadParameter, match="'a' twice"):
        option.callback(click.Context(commands()["quantize"]), option, ("a.gguf", "x/a.gguf"))
