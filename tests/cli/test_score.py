"""`pymixtral score` and `pymixtral embed`, and log-probabilities and several texts of `generate`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pymixtral import Mixtral
from support.command_line import refused, run

CONTEXT, ENDINGS = "The king had a", (" daughter", " telephone", " daughter\x1b[2J")


@pytest.fixture(scope="module")
def model(tiny_q8_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0) as model:
        yield model


def continuations() -> list[str]:
    return [word for ending in ENDINGS for word in ("--continuation", ending)]


# --- score --------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_library(tiny_q8_0: Path, model: Mixtral, tmp_path: Path) -> None:
    expected = model.score(CONTEXT, ENDINGS)
    result = run("score", "-m", tiny_q8_0, "-p", CONTEXT, *continuations(), "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert [one["continuation"] for one in found] == list(ENDINGS)
    for one, score in zip(found, expected, strict=True):
        assert (one["logprob"], one["tokens"], one["greedy"]) == (score.logprob, score.tokens, score.greedy)
        assert one["per_token"] == score.logprob / len(score.tokens)
    (tmp_path / "context.txt").write_text(CONTEXT + "\n")
    for more, input in ((["-f", tmp_path / "context.txt"], None), ([], CONTEXT)):
        assert run("score", "-m", tiny_q8_0, *more, *continuations(), "--json", input=input).stdout == result.stdout


def test_the_table_of_scores_is_for_people(tiny_q8_0: Path, model: Mixtral) -> None:
    result = run("score", "-m", tiny_q8_0, "-p", CONTEXT, *continuations(), "--continuation", " long" * 30)
    head, *rows = result.stdout.splitlines()
    assert head.split() == ["logprob", "per", "token", "tokens", "greedy", "continuation"]
    assert max(map(len, result.stdout.splitlines())) <= 80
    score = model.score(CONTEXT, ENDINGS[:1])[0]
    assert re.fullmatch(rf" +{score.logprob:.3f} +{score.logprob:.3f} +1  no +' daughter'", rows[0])
    assert "\\x1b[2J" in rows[2]


def test_the_most_likely_continuation_is_greedy(tiny_q8_0: Path, model: Mixtral) -> None:
    text = model.generate(CONTEXT, max_tokens=5, temperature=0).text
    result = run("score", "-m", tiny_q8_0, "-p", CONTEXT, "--continuation", text, "--json")
    assert json.loads(result.stdout)[0]["greedy"] is True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "a"], "--continuation"),
        (["-p", "a", "--continuation", ""], "of at least one token"),
        (["-p", "a", "--continuation", "b" * 99, "-c", "8"], "of at most 8 tokens (--context)"),
        (["-p", "a", "-f", __file__, "--continuation", "b"], "expected -p or -f, found both"),
    ],
)
def test_wrong_scores_are_refused(tiny_q8_0: Path, arguments: list[str], words: str) -> None:
    refused(run("score", "-m", tiny_q8_0, *arguments), words)


# --- embed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"pooling": "last"}, {"normalize": True}])
def test_vectors_are_those_of_the_library(
    tiny_q8_0: Path, model: Mixtral, tmp_path: Path, options: dict[str, object]
) -> None:
    texts = [f"The king had {i} daughters." for i in range(70)] + ["", "the end"]  # more than a group
    expected = model.embed(texts, **options)  # type: ignore[arg-type]
    words = [*(["--pooling", "last"] if "pooling" in options else []), *(["--normalize"] if len(options) else [])]
    words = [word for word in words if word != "--normalize" or "normalize" in options]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    result = run("embed", "-m", tiny_q8_0, "-f", tmp_path / "texts.txt", "-o", tmp_path / "v.npy", *words)
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'v.npy'}: 72 vectors of 256 numbers\n")
    found = np.load(tmp_path / "v.npy")
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)
    given = [word for text in texts[:2] for word in ("-p", text)]
    json_ = json.loads(run("embed", "-m", tiny_q8_0, *given, "--json", *words).stdout)
    assert (json_["texts"], json_["dimensions"]) == (2, 256)
    assert np.array_equal(np.float32(json_["embeddings"]), expected[:2])


@pytest.mark.parametrize("text", ["", "\n"])
def test_no_text_has_no_vector(tiny_q8_0: Path, tmp_path: Path, text: str) -> None:
    refused(run("embed", "-m", tiny_q8_0, input=text), "in each line of standard input, found none")
    (tmp_path / "texts.txt").write_text(text)
    refused(run("embed", "-m", tiny_q8_0, "-f", tmp_path / "texts.txt"), "texts.txt, found none")
    assert run("embed", "-m", tiny_q8_0, "-p", "", input=text).exit_code == 0


def test_the_table_of_vectors_is_for_people(tiny_q8_0: Path) -> None:
    result = run("embed", "-m", tiny_q8_0, "--normalize", "-p", "a\x1b[2J", "-p", "long " * 30)
    head, *rows = result.stdout.splitlines()
    assert head.split() == ["length", "first", "numbers", "text"]
    assert [row.split()[0] for row in rows] == ["1.000", "1.000"]
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_vectors_replace_a_file_with_force_alone(tiny_q8_0: Path, tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    path.write_text("mine")
    line = ["embed", "-m", tiny_q8_0, "-p", "a", "-o", path]
    refused(run(*line), "replace it with --force")
    assert path.read_text() == "mine"
    assert run(*line, "--force").exit_code == 0
    assert np.load(path).shape == (1, 256)
    refused(run("embed", "-m", tiny_q8_0, "-p", "a", "-o", tiny_q8_0, "--force"), "file of its own")
    refused(run("embed", "-m", tiny_q8_0, "-p", "a", "--force"), "expected --force with -o")
    refused(run("embed", "-m", tiny_q8_0, "-p", "a", "-f", __file__), "expected -p or -f, found both")
    assert [path.name for path in tmp_path.iterdir()] == ["v.npy"]


# --- generate -----------------------------------------------------------------------------------------------------


def test_log_probabilities_are_in_the_json(tiny_q8_0: Path, model: Mixtral) -> None:
    options = ["--logprobs", 2, "--prompt-logprobs", 1, "--seed", 3, "-n", 4]
    found = json.loads(run("generate", "-m", tiny_q8_0, "-p", CONTEXT, *options, "--json").stdout)
    expected = model.generate(CONTEXT, logprobs=2, prompt_logprobs=1, seed=3, max_tokens=4)
    for name in ("logprobs", "prompt_logprobs"):
        for one, token in zip(found[name], getattr(expected, name), strict=True):
            if token is None:
                assert one is None
            else:
                assert one == {"id": token.id, "logprob": token.logprob, "top": [list(pair) for pair in token.top]}
    assert "logprobs" not in json.loads(run("generate", "-m", tiny_q8_0, "-p", "a", "-n", 1, "--json").stdout)


def test_the_reason_of_the_end_is_in_the_json(tiny_q8_0: Path, model: Mixtral) -> None:
    line = ["generate", "-m", tiny_q8_0, "-p", CONTEXT, "-n", 30, "--temperature", 0, "--json"]
    assert json.loads(run(*line).stdout)["stop_reason"] is None
    word = model.generate(CONTEXT, max_tokens=30, temperature=0).text.split()[2]
    found = json.loads(run(*line, "--stop", word).stdout)
    assert (found["finish_reason"], found["stop_reason"]) == ("stop", word)


def test_several_texts_of_a_prompt(tiny_q8_0: Path, model: Mixtral) -> None:
    line = ["generate", "-m", tiny_q8_0, "-p", CONTEXT, "-n", 6, "--seed", 5, "--samples", 3]
    texts = model.generate(CONTEXT, n=3, max_tokens=6, seed=5).choices
    result = run(*line)
    assert result.stdout == "".join(
        f"--- {i} of 3 ---\n{text.text.removesuffix(chr(10))}\n" for i, text in enumerate(texts, 1)
    )
    first, last = result.stderr.splitlines()
    assert re.fullmatch(r"prompt: 5 tokens, [\d.]+ tokens/s", first)
    assert re.fullmatch(r"generated: 18 tokens in 3 texts, [\d.]+ tokens/s together", last)
    found = json.loads(run(*line, "--json").stdout)
    assert [one["text"] for one in (found, *found["others"])] == [text.text for text in texts]
    assert all(one["stats"]["generated_tokens"] == 6 for one in (found, *found["others"]))


def test_prompt_lookup_changes_no_text_and_a_time_ends_it(tiny_q8_0: Path) -> None:
    line = ["generate", "-m", tiny_q8_0, "-p", CONTEXT * 9, "-n", 60, "--seed", 5]
    assert run(*line, "--prompt-lookup", 4).stdout == run(*line).stdout
    result = run("generate", "-m", tiny_q8_0, "-p", "a", "--ignore-eos", "--timeout", 0, "--json")
    assert json.loads(result.stdout)["finish_reason"] == "deadline"
    assert result.stderr == "The time of 0 s was over; a longer --timeout lets the text go on.\n"


def test_the_memory_and_the_sharing_of_the_model_are_checked(tiny_q8_0: Path) -> None:
    line = ["generate", "-m", tiny_q8_0, "-p", "a", "-n", 2]
    assert run(*line, "--cache-size", "20MB", "--max-batch", 2, "--pace", 0.5).exit_code == 0
    refused(run(*line, "--cache-size", "1kB"), "expected --cache-size of at least")
    refused(run(*line, "--cache-size", "many"), "--cache-size", "expected a size such as")
    refused(run(*line, "--pace", 0), "expected --pace to be a number")
    refused(run(*line, "--max-batch", 0), "--max-batch")


def test_a_text_goes_on_when_the_context_is_full(tiny_q8_0: Path) -> None:
    line = ["generate", "-m", tiny_q8_0, "-p", CONTEXT, "-c", 192, "-n", 250, "--ignore-eos", "--seed", 5, "--json"]
    assert json.loads(run(*line).stdout)["finish_reason"] == "context"
    found = json.loads(run(*line, "--context-shift", 5).stdout)
    assert (found["finish_reason"], len(found["tokens"])) == ("length", 250)
    refused(run(*line, "--context-shift", 192), "expected --context-shift to leave a whole page")
