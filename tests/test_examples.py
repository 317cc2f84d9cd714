"""Each program of examples/ runs, and what it prints is what the library computes by another way."""

from __future__ import annotations

import ast
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pymixtral import Mixtral, demo_chat_path, demo_path
from pymixtral.evaluation.perplexity import perplexity
from pymixtral.evaluation.pruning import expert_use
from pymixtral.inspection.inventory import Inventory
from pymixtral.inspection.mixes import mixed
from pymixtral.inspection.published import MODELS
from support.checkpoints import Shape
from support.holes import write_hole
from support.packed import Form, make_packed
from support.paths import ROOT
from support.programs import run

EXAMPLES = ROOT / "examples"
WORDS = ("good", "angry", "hungry")


def output(name: str, folder: Path, *arguments: str) -> str:
    return run([sys.executable, str(EXAMPLES / f"{name}.py"), *arguments], folder)


@pytest.fixture(scope="module")
def model() -> Iterator[Mixtral]:
    with Mixtral() as model:
        yield model


def test_every_example_has_a_test_and_says_what_it_shows() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert f"test_{path.stem}" in globals(), f"{path.name} has no test here"
        source = path.read_text(encoding="utf-8")
        assert source.startswith('"""')
        assert len(source.splitlines()) <= 60


def test_streaming(model: Mixtral, tmp_path: Path) -> None:
    prompt = "Once upon a time there was"
    want = model.generate(prompt, max_tokens=200, seed=4, stop=["\n", "The End"])
    text, _, rest = output("streaming", tmp_path).partition("\n\n")
    assert text == prompt + want.text
    assert f"ended by: {want.finish_reason}, after {len(want.tokens)} tokens\n" in rest
    assert f"prompt: {want.stats.prompt_tokens} tokens" in rest


def test_adapters(model: Mixtral, tmp_path: Path) -> None:
    printed = output("adapters", tmp_path)
    texts = re.findall(r"^(none|red|blue|\{.*\}): (['\"].*['\"]), alone the same: (True|False)$", printed, re.M)
    assert [name for name, _, _ in texts] == ["none", "red", "blue", "{'red': 0.5, 'blue': 0.5}"]
    assert len({text for _, text, _ in texts}) == 4
    assert {same for _, _, same in texts} == {"True"}
    want = model.generate("Once upon a time there was a king who had three daughters", seed=1, max_tokens=12).text
    assert texts[0][1] == repr(want)
    n = 4 * model.config.n_layers * (model.config.hidden + model.config.n_heads * model.config.head_dim)
    assert f"red: {model.config.n_layers} matrices of rank 4, {4 * n / 1e3:.0f} kB" in printed
    assert printed.endswith("left: blue\n")


def test_many_prompts(model: Mixtral, tmp_path: Path) -> None:
    printed = output("many_prompts", tmp_path)
    texts = dict(re.findall(r"^([\w ]+):'(.*)'$", printed, re.M))
    for who, text in texts.items():
        want = model.generate(f"Once upon a time there was a {who}", seed=1, max_tokens=12).text
        assert f"'{text}'" == f"{want!r:.80}"
    assert len(texts) == 6
    assert re.findall(r": (True|False)$", printed, re.M) == ["True", "True"]
    there, again = map(int, re.findall(r"^(\d+) texts were there, (\d+) were written again$", printed, re.M)[0])
    assert (there + again, 0 < there < 6) == (6, True)


@pytest.mark.ray
def test_cluster_prompts(model: Mixtral, tmp_path: Path) -> None:
    first, resumed, *same = output("cluster_prompts", tmp_path).splitlines()
    texts = [json.loads(line)["text"] for line in (tmp_path / "texts.jsonl").read_bytes().splitlines()]
    assert texts[7] == model.generate("Once upon a time there were 7 kings", seed=7, max_tokens=12).text
    assert re.fullmatch(r"100 texts by the cluster, \d+ tokens", first)
    there, again = map(int, re.findall(r"^(\d+) texts were there, (\d+) were written again$", resumed)[0])
    assert (there + again, 0 < there < 100) == (100, True)
    assert same == ["the same texts: True", "the texts of one process: True"]


def test_seeds(model: Mixtral, tmp_path: Path) -> None:
    printed = output("seeds", tmp_path)
    texts = dict(re.findall(r"^(\w.*):\n    (.*)\n", printed, re.M))
    same = re.findall(r"in pieces: (\w+)$", printed, re.M)
    assert same == ["True"] * len(texts) != []
    assert (
        texts["seed 1"]
        == texts["seed 1 again"]
        == f"{model.generate('The wolf said:', max_tokens=24, seed=1).text!r:.90}"
    )
    assert len(set(texts.values())) == len(texts) - 1


def test_next_token(model: Mixtral, tmp_path: Path) -> None:
    likely, _, endings = output("next_token", tmp_path).partition("How likely")
    prompt = "The princess lived in a"
    ids = model.tokenize(prompt)
    logits = model.logits(ids)[-1].astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    best = [f"{probabilities[i]:.2%}" for i in np.argsort(-logits)[:5]]
    assert re.findall(r"\d+\.\d\d%", likely) == best
    castle, forest, telephone = (float(number) for number in re.findall(r"\d\.\d\de[-+]\d\d", endings))
    (last,) = model.tokenize(f"{prompt} castle")[len(ids) :]
    assert castle == pytest.approx(probabilities[last], rel=0.01)
    assert castle > forest > telephone > 0


def test_threads(model: Mixtral, tmp_path: Path) -> None:
    *texts, same, listed = output("threads", tmp_path).splitlines()
    assert same == "the same texts as one after the other: True"
    assert listed == "the same texts as a list: True"
    assert len(texts) == 4
    assert texts[0] == f"Once upon a time{model.generate('Once upon a time', max_tokens=30, seed=7).text!r:.70}"


def test_tasks(model: Mixtral, tmp_path: Path) -> None:
    *texts, cancelled, deadline = output("tasks", tmp_path).splitlines()
    prompts = ["Once upon a time", "The wolf said:", "The king had three sons"]
    whole = [prompt + model.generate(prompt, seed=7).text for prompt in prompts]
    assert texts == [repr(text.partition(".")[0] + ".") for text in whole]
    assert cancelled == "cancelled after 0.1 s"
    n_tokens = re.fullmatch(r"ended by: deadline, with (\d+) tokens", deadline)
    assert n_tokens
    assert int(n_tokens[1]) < model.n_ctx


def test_choices(model: Mixtral, tmp_path: Path) -> None:
    lines = output("choices", tmp_path).splitlines()
    question = ""
    best: list[str] = []
    for line in lines:
        if line.endswith(" ..."):
            question = line.removesuffix(" ...")
            continue
        found = re.fullmatch(r" +(-\d+\.\d\d)(.*) \(tokens: (\d+)\)(.*)", line)
        assert found
        n_before = len(model.tokenize(question))
        ids = model.tokenize(question + found[2])
        logits = model.logits(ids).astype(np.float64)[n_before - 1 : -1]
        new = ids[n_before:]
        logprobs = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))[range(len(new)), new]
        assert float(found[1]) == pytest.approx(logprobs.sum(), abs=0.006)
        assert int(found[3]) == len(new)
        assert ("temperature 0" in found[4]) == (logits.argmax(axis=1).tolist() == new)
        best += [found[2]] if found[4] else []
    assert best == [" sons", " sheep", " marriage"]


def test_similarity(model: Mixtral, tmp_path: Path) -> None:
    lines = output("similarity", tmp_path).splitlines()
    sentences = lines[::2]
    vectors = model.embed(sentences)
    assert lines[1::2] == [f"  {cosine(vectors[i], vectors[j]):.3f} {sentences[j]}" for i, j in enumerate([1, 0, 3, 2])]
    assert cosine(vectors[0], vectors[1]) > max(cosine(a, b) for a in vectors[:2] for b in vectors[2:])


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_no_repeats(model: Mixtral, tmp_path: Path) -> None:
    printed = output("no_repeats", tmp_path)
    free, bound = re.split(r"^0 times three tokens come again:\n", printed, flags=re.M)
    prompt = "There was once a poor"
    want = prompt + model.generate(prompt, max_tokens=80, temperature=0).text
    again = re.fullmatch(r"(\d+) times three tokens come again:\n(.*)", free.rstrip("\n"), re.S)
    assert again
    assert again[2] == want.rstrip("\n")
    assert int(again[1]) > 10
    assert bound.startswith(prompt)
    assert bound.strip() != want.strip()


def test_sessions(model: Mixtral, tmp_path: Path) -> None:
    first, *same, one, other = output("sessions", tmp_path).splitlines()
    n, pages = map(int, re.findall(r"^(\d+) tokens, (\d+) pages", first)[0])
    assert pages == -(-n // 64) > 1
    assert same == ["the same text as before: True", "tokens of the prompt that were computed: 1"]
    for line, turn in ((one, "One day the king"), (other, "But the youngest")):
        n_new = len(model.tokenize(turn, add_bos=False))
        assert line.startswith(f"after {n_new} more tokens: ... {turn} ")


def test_structured(model: Mixtral, tmp_path: Path) -> None:
    shown, forced, king, wolf, chapter, names = output("structured", tmp_path).splitlines()
    animal = ast.literal_eval(shown)
    assert list(animal) == ["name", "kind", "legs", "friends"]
    assert animal["kind"] in ("wolf", "fox", "cat")
    n_tokens, n_passes, n_forced = map(int, re.findall(r"\d+", forced))
    assert n_tokens == n_passes + n_forced
    assert n_forced > n_passes
    for line in (king, wolf):
        prompt, _, word = line.rpartition(" ")
        ids = {other: model.tokenize(f"{prompt} {other}")[len(model.tokenize(prompt))] for other in WORDS}
        logits = model.logits(model.tokenize(prompt), last_only=True)
        assert word == max(WORDS, key=lambda other: float(logits[ids[other]]))
    assert re.fullmatch(r" [IVX]{1,4}\. The [A-Z][a-z]{2,9}", chapter)
    assert re.fullmatch(r"( [A-Z][a-z]{2,6},){2} and [A-Z][a-z]{2,6}", names)


def test_two_types(tmp_path: Path) -> None:
    printed = output("two_types", tmp_path)
    bits = [float(number) for number in re.findall(r"([\d.]+) bits per weight", printed)]
    errors = [float(number) for number in re.findall(r"gate: \w+, error ([\d.]+)%", printed)]
    divergences = [float(number) for number in re.findall(r"divergence ([\d.]+)", printed)]
    agreements = [float(number) for number in re.findall(r"token at ([\d.]+)%", printed)]
    assert bits == sorted(bits, reverse=True) != []
    assert 0 < errors[0] < errors[1]
    assert 0 < divergences[0] < divergences[1] < 0.1
    assert 100 > agreements[0] > agreements[1] > 80


def test_few_bits(tmp_path: Path) -> None:
    printed = output("few_bits", tmp_path)
    bits = [float(number) for number in re.findall(r"([\d.]+) bits", printed)]
    divergences = [float(number) for number in re.findall(r"divergence ([\d.]+)", printed)]
    assert bits[0] > bits[1] > bits[2] == bits[3]
    three, two, without, least = divergences
    assert 0 < three < two < least < without < 0.1


def test_activations(tmp_path: Path) -> None:
    first, same = output("activations", tmp_path).splitlines()
    divergence, agreement = re.findall(r"is ([\d.]+) nats .* at (\d+)%", first)[0]
    assert 0 < float(divergence) < 0.01
    assert int(agreement) > 90
    assert same.endswith(": True")


def test_time_of_a_token(tmp_path: Path) -> None:
    first, *parts, last = output("time_of_a_token", tmp_path).splitlines()
    assert float(re.findall(r"takes (\d+) ", first)[0]) > 0
    assert sum(float(number) for number in re.findall(r"^(-?[\d.]+)% ", "\n".join(parts), re.M)) == pytest.approx(
        100, abs=1
    )
    assert last.endswith(" is the longest part")


@pytest.mark.parametrize("form", [Form(32), Form(32, 1)], ids=["awq", "gptq"])
def test_packed_checkpoint(form: Form, tmp_path: Path) -> None:
    make_packed(tmp_path / "packed", Shape(n_vocab=64, n_layers=1), form)
    printed = output("packed_checkpoint", tmp_path, str(tmp_path / "packed"), str(tmp_path / "m.gguf"))
    assert float(re.findall(r"of ([\d.]+) MB", printed)[0]) == round((tmp_path / "m.gguf").stat().st_size / 1e6, 3)
    assert len(re.findall(r": q4_1, error 0\.0\d\d%", printed)) == 4
    with Mixtral(tmp_path / "m.gguf") as model:
        assert printed.endswith(f"the best one is {model.logits([1, 2, 3], last_only=True).argmax()}\n")


def test_routing(model: Mixtral, tmp_path: Path) -> None:
    printed = output("routing", tmp_path)
    ids = model.tokenize("The king had a daughter.")
    chosen = re.findall(r"(\d)\+(\d)", printed)
    assert len(chosen) == len(ids) * 4
    observers = model.observers()
    model.observe(ids, observers)
    for layer, observer in enumerate(observers):
        pairs = chosen[layer * len(ids) : (layer + 1) * len(ids)]
        assert np.bincount(np.array(pairs, int).ravel(), minlength=8).tolist() == observer.n_tokens.tolist()
    text = model.generate("The king had", max_tokens=6, temperature=0).text
    rows = re.findall(r"^ *('.*'): expert (\d) \(0\.(\d\d)\)", printed, re.M)
    assert "".join(ast.literal_eval(piece) for piece, _, _ in rows) in "The king had" + text
    assert all(int(weight) >= 50 for _, _, weight in rows)


def test_layers(model: Mixtral, tmp_path: Path) -> None:
    printed = output("layers", tmp_path)
    observers = model.observers()
    model.observe(model.tokenize("The king had a daughter."), observers)
    used = np.sum([observer.n_tokens for observer in observers], axis=0).tolist()
    assert f"tokens for each expert, all layers: {used}" in printed
    assert "logits equal Mixtral's, bit for bit: True" in printed
    chosen = re.findall(r"(\d)\+(\d)", printed)
    assert len(chosen) == sum(used) / 2
    assert all(first < second for first, second in chosen)


@pytest.mark.parametrize(
    ("memory", "best"), [("32GiB", "q4_1"), ("24GiB", "q3_k_m"), ("64GiB", "q8_0"), ("8GiB", None)]
)
def test_planning(tmp_path: Path, memory: str, best: str | None) -> None:
    printed = output("planning", tmp_path, memory, "60")
    rows = re.findall(r"^ *(\w+) +[\d.]+ bits +([\d.]+) GB +(\w+) +([\d.]+) tokens/s(.*)$", printed, re.M)
    available = (int(memory[:-3]) - 2) * 2**30 / 1e9
    assert len(rows) > 15
    assert [row[0] for row in rows if row[2] == "fits"] == [row[0] for row in rows if float(row[1]) <= available]
    assert [row[0] for row in rows if row[4]] == ([best] if best else [])
    rates = [float(row[3]) for row in rows]
    assert rates == sorted(rates)


def test_larger_than_memory(model: Mixtral, tmp_path: Path) -> None:
    config = MODELS["8x22b"]
    large = write_hole(tmp_path / "large.gguf", config, mixed(Inventory.of_model(config), "f32").parts, tokens=True)
    refused, opened, *rest = output("larger_than_memory", tmp_path, str(large), str(demo_path())).splitlines()
    assert re.fullmatch(r"large\.gguf does not fit: (choose \w+, the largest|give it more memory).*", refused)
    assert opened.startswith(f"{demo_path().name}: a token reads ")
    assert "\n".join(rest).endswith(model.generate("Once upon a time", max_tokens=20, temperature=0).text)


def test_pruning(model: Mixtral, tmp_path: Path) -> None:
    printed = output("pruning", tmp_path)
    topics = ("a king", "a wolf", "a poor fisherman", "three sisters")
    told = [model.generate(f"Once there was {topic}", max_tokens=300, seed=1).text for topic in topics]
    calibration, held_out = " ".join(told[:2]), " ".join(told[2:])
    whole = perplexity(model, held_out, n_ctx=64, progress=False).perplexity
    assert printed.startswith(f"8 experts: perplexity {whole:.1f}\n")
    saliency = expert_use(model, [("told", calibration)], n_ctx=64, progress=False).saliency
    lines = re.findall(
        r"^(\d) experts, ([\d.]+) MB: perplexity ([\d.]+), divergence ([\d.]+);.* keeps (.*)$", printed, re.M
    )
    assert [int(line[0]) for line in lines] == [7, 6, 4]
    for n, megabytes, worse, divergence, kept in lines:
        best = sorted(np.argsort(-saliency[0])[: int(n)].tolist())
        assert kept == ", ".join(map(str, best))
        assert float(megabytes) * 1e6 < model.path.stat().st_size
        assert float(worse) > whole
        assert float(divergence) > 0


def test_openai_client(tmp_path: Path) -> None:
    printed = dict(re.findall(r"^(\w+): +(.*)$", output("openai_client", tmp_path), re.M))
    with Mixtral(demo_chat_path(), n_threads=1) as model:
        openai: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "penalty_window": 0, "seed": 1}
        answer = model.chat([{"role": "user", "content": "Who are you?"}], max_tokens=30, **openai)
        mood = model.generate("The wolf was", choice=["good", "angry"], **openai)
    assert printed["model"] == demo_chat_path().stem
    assert printed["whole"] == printed["pieces"] == repr(answer.content)
    assert printed["choice"] == mood.text


@pytest.mark.ray
def test_replicas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # short, as names of sockets must be
        for name, value in (("RAY_TMPDIR", folder), ("RAY_AUTH_MODE", "token"), ("RAY_AUTH_TOKEN", "t" * 32)):
            monkeypatch.setenv(name, value)
        ready, *lines = output("replicas", tmp_path).splitlines()
    assert ready.endswith(", 2 replicas.")
    found = [re.fullmatch(r"(the \w+): (\d+) tokens, (\d+) of them remembered", line) for line in lines]
    turns = [(match[1], int(match[2]), int(match[3])) for match in found if match]
    assert [someone for someone, _, _ in turns] == ["the fox"] * 3 + ["the king"] * 3
    for first, *others in (turns[:3], turns[3:]):
        before = first[1]
        for _, n, cached in others:
            assert before <= cached < n
            before = n


@pytest.mark.ray
def test_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # short, as names of sockets must be
        for name, value in (("RAY_TMPDIR", folder), ("RAY_AUTH_MODE", "token"), ("RAY_AUTH_TOKEN", "t" * 32)):
            monkeypatch.setenv(name, value)
        lines = [line for line in output("pipeline", tmp_path).splitlines() if "(raylet)" not in line]  # of Ray
    *stages, same, lost, afterwards = lines
    found = [re.fullmatch(r"layers (\d) to (\d): (.+) MB, in memory (.+) MB of the file", line) for line in stages]
    assert [match and (match[1], match[2]) for match in found] == [("0", "1"), ("2", "3")]
    for match in found:
        assert match
        assert float(match[3]) <= float(match[4]) < float(match[3]) + 1
    assert (same, afterwards) == ("the same as in one process: True", "afterwards: True")
    assert lost.startswith("lost: expected all hosts of the model, found that the one with layers 2 to 3 is gone")


def test_evaluation(model: Mixtral, tmp_path: Path) -> None:
    two, one, difference, again = output("evaluation", tmp_path).splitlines()
    text = (EXAMPLES / "evaluation.py").read_text(encoding="utf-8")
    tales = ast.literal_eval(text[text.index("TALES = ") + 8 : text.index("}\n") + 1])
    endings = list(tales.values())
    right = []
    for i, who in enumerate(tales):
        choices = [f" {ending}" for ending in (endings * 2)[i : i + 4]]
        logprobs = [score.logprob for score in model.score(f"A tale: {who}", choices)]
        right.append(logprobs.index(max(logprobs)) == 0)
    error = np.std(right, ddof=1) / 8**0.5
    assert two == f"2 experts: accuracy {np.mean(right):.3f} ± {error:.3f}"
    changed = float(one.split()[3]) - np.mean(right)
    assert difference.startswith(f"difference {changed:+.3f}, between ")
    assert again == "asked again: 0 of 8 questions"
