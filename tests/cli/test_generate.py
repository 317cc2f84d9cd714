"""`pymixtral generate`: the text alone on standard output, and the closing lines."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pymixtral import Mixtral
from pymixtral.cli.work import summary
from pymixtral.engine.completion import Stats
from support.command_line import COMMAND, DEMO_NOTE, SUMMARY, refused, run

PROMPT = "Once upon a time there was a king"


@pytest.fixture(scope="module")
def engine(tiny_q8_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0) as engine:
        yield engine


def test_the_completion_alone_is_on_stdout_and_the_summary_on_stderr(tiny_q8_0: Path, engine: Mixtral) -> None:
    expected = engine.generate(PROMPT, max_tokens=20, temperature=0)
    result = run("generate", "-m", tiny_q8_0, "-p", PROMPT, "-n", 20, "--temperature", 0)
    assert (result.exit_code, result.stdout) == (0, expected.text + "\n")
    match = SUMMARY.fullmatch(result.stderr.removesuffix("\n"))
    assert match is not None
    assert match.groups() == (str(expected.stats.prompt_tokens), "20")


def test_the_prompt_comes_from_the_option_a_file_or_standard_input(tiny_q8_0: Path, tmp_path: Path) -> None:
    options = ["generate", "-m", tiny_q8_0, "-n", 12, "--temperature", 0]
    expected = run(*options, "-p", PROMPT).stdout
    (tmp_path / "prompt.txt").write_text(PROMPT + "\n")
    assert run(*options, "-f", tmp_path / "prompt.txt").stdout == expected
    assert run(*options, input=PROMPT + "\n").stdout == expected
    assert run(*options, input=PROMPT).stdout == expected
    assert run(*options, "-p", PROMPT, input="something else").stdout == expected
    assert run(*options, input=PROMPT + "\n\n").stdout == run(*options, "-p", PROMPT + "\n").stdout


def test_an_empty_prompt_begins_a_text(tiny_q8_0: Path, engine: Mixtral) -> None:
    expected = engine.generate("", max_tokens=10, temperature=0).text + "\n"
    assert run("generate", "-m", tiny_q8_0, "-n", 10, "--temperature", 0, "-p", "").stdout == expected


def test_any_unicode_and_nul_may_be_in_the_prompt(tiny_q8_0: Path) -> None:
    result = run("generate", "-m", tiny_q8_0, "-n", 3, input="a\0b \u4f60\u597d \U0001f600\r\n".encode())
    assert result.exit_code == 0


def test_options_reach_the_engine(tiny_q8_0: Path, engine: Mixtral) -> None:
    base = ["generate", "-m", tiny_q8_0, "-p", PROMPT, "-n", 25]
    assert run(*base, "--seed", 5).stdout == engine.generate(PROMPT, max_tokens=25, seed=5).text + "\n"
    assert run(*base, "--seed", 5).stdout != run(*base, "--seed", 6).stdout
    hot = engine.generate(PROMPT, max_tokens=25, seed=5, temperature=2.0, top_k=0, top_p=0.5).text
    assert run(*base, "--seed", 5, "--temperature", 2, "--top-k", 0, "--top-p", 0.5).stdout == hot + "\n"
    greedy = run(*base, "--temperature", 0, "-t", 1, "-c", 100, "--kv-type", "f32").stdout
    with Mixtral(tiny_q8_0, kv_type="f32") as exact:
        assert greedy == exact.generate(PROMPT, max_tokens=25, temperature=0).text + "\n"
    words = greedy.split()
    stopped = run(*base, "--temperature", 0, "--kv-type", "f32", "--stop", "never there", "--stop", words[4]).stdout
    assert stopped == greedy[: greedy.index(words[4])] + "\n"


def test_weights_are_locked_and_read_ahead(tiny_q8_0: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr("pymixtral.model.residence.lock", lambda maps: called.append(f"lock {len(list(maps))}"))
    monkeypatch.setattr(
        "pymixtral.model.residence.prefault", lambda _, n, progress: (called.append(f"prefault {n}"), progress(1, 1))
    )
    result = run("generate", "-m", tiny_q8_0, "-p", "a", "-n", 0, "-t", 1, "--lock", "--prefault")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "\n", "prompt: 2 tokens; nothing generated\n")
    assert called == ["lock 1", "prefault 1"]
    called.clear()
    assert run("generate", "-m", tiny_q8_0, "-p", "a", "-n", 0).exit_code == 0
    assert called == []


def test_nothing_to_write(tiny_q8_0: Path) -> None:
    result = run("generate", "-m", tiny_q8_0, "-p", "a", "-n", 0)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "\n", "prompt: 2 tokens; nothing generated\n")


def test_the_closing_lines_have_80_columns_and_no_rates_of_nothing(tiny_q8_0: Path) -> None:
    result = run("generate", "-m", tiny_q8_0, "-p", "", "-n", 1)
    first, last = result.stderr.splitlines()
    assert first.startswith("prompt: 1 token, ")
    assert last == "generated: 1 token"
    largest = SimpleNamespace(tokens=[1], stats=Stats(1 << 20, 0, 1 << 20, 99.999, 84.5, 1 << 20, 10**7))
    lines = f"{summary(largest)} (interrupted)".splitlines()  # type: ignore[arg-type]
    assert len(lines) == 2
    assert max(map(len, lines)) <= 80


def test_without_a_model_the_demo_writes_and_says_so() -> None:
    result = run("generate", "-p", PROMPT, "-n", 20, "--temperature", 0)
    with Mixtral() as demo:
        assert (result.exit_code, result.stdout) == (0, demo.generate(PROMPT, max_tokens=20, temperature=0).text + "\n")
    first, last = result.stderr.split("\n", 1)
    assert first + "\n" == DEMO_NOTE
    assert SUMMARY.fullmatch(last.removesuffix("\n"))


def test_the_demo_ends_where_nobody_says_when(tiny_q8_0: Path) -> None:
    line = ["generate", "-p", PROMPT, "--ignore-eos", "--seed", 1]
    assert "generated: 200 tokens" in run(*line).stderr
    assert "generated: 201 tokens" in run(*line, "-n", 201).stderr
    assert "The context of 2048 tokens is full" in run(*line, "-m", tiny_q8_0).stderr


def test_a_full_context_is_named_with_what_makes_it_longer(tiny_q8_0: Path) -> None:
    line = ["generate", "-m", tiny_q8_0, "-p", PROMPT, "--ignore-eos", "--seed", 1]
    for more in ([], ["--json"]):
        result = run(*line, "-c", 16, *more)
        assert (
            result.stderr.splitlines()[-1] == "The context of 16 tokens is full; --context makes it longer, up to 2048."
        )
    assert "full" not in run(*line, "-c", 16, "-n", 3).stderr
    assert (
        run(*line).stderr.splitlines()[-1] == "The context of 2048 tokens is full; the model was trained for no more."
    )


def test_stdout_is_utf8_whatever_the_locale(tiny_q8_0: Path, engine: Mixtral) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    options = ["generate", "-m", tiny_q8_0, "-p", "\u2018Oh\u2019, said the \u4f60", "-n", "40", "--seed", "3"]
    process = subprocess.run([*COMMAND, *map(str, options)], env=environment, capture_output=True)
    expected = engine.generate("\u2018Oh\u2019, said the \u4f60", max_tokens=40, seed=3).text
    assert process.stdout.decode("utf-8") == expected + "\n"
    assert not expected.isascii()


def test_a_text_of_a_form(tiny_q8_0: Path, tmp_path: Path) -> None:
    base = ["generate", "-m", tiny_q8_0, "-p", "The wolf was", "--seed", 1, "-n", 90]
    schema, lark, wrong = (tmp_path / name for name in ("schema.json", "grammar.lark", "wrong.json"))
    schema.write_text('{"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 2, "maxItems": 3}')
    lark.write_text('start: " x" /[a-z]{1,3}/ "!"')
    wrong.write_text('{"type": "hiccup"}')
    with Mixtral(tiny_q8_0) as model:
        want = {
            form: model.generate("The wolf was", seed=1, max_tokens=90, **{form: value}).text  # type: ignore[call-overload]
            for form, value in {
                "json_schema": schema.read_text(),
                "json_object": True,
                "regex": "[a-z]{3,9}",
                "choice": [" good", " bad"],
                "lark": lark.read_text(),
            }.items()
        }
    assert run(*base, "--json-schema", schema).stdout == want["json_schema"] + "\n"
    assert run(*base, "--json-object").stdout == want["json_object"] + "\n"
    assert run(*base, "--regex", "[a-z]{3,9}").stdout == want["regex"] + "\n"
    assert run(*base, "--choice", " good", "--choice", " bad").stdout == want["choice"] + "\n"
    assert run(*base, "--lark", lark).stdout == want["lark"] + "\n"
    refused(run(*base, "--json-schema", wrong), "--json-schema", "Invalid type: hiccup")
    refused(run(*base, "--regex", "a("), "unclosed group")
    refused(run(*base, "--regex", ""), "only the empty text")
    assert "found all of them" in run(*base, "--regex", "a", "--choice", "b").stderr
    schema.write_bytes(b"\xff")
    refused(run(*base, "--json-schema", schema), "expected UTF-8")
