"""The command `pymixtral routing`, and the page that it writes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pymixtral import Mixtral
from pymixtral.cli import main
from pymixtral.evaluation import routing_page
from pymixtral.evaluation.routing import Domain, Usage, trace, usage
from pymixtral.quantize import quantize
from support.checkpoints import Shape, make_checkpoint
from support.command_line import refused
from support.paths import DATA

TALE = DATA / "texts" / "tale.txt"
PROGRAM = DATA / "texts" / "program.txt"
HOSTILE = (
    "a </script><script>alert(1)</script><!-- & \x1b[31m \u202e \u2028 漢 'q' \"q\" <img src=//x.example onerror=x>"
)


def run(*arguments: object, input: str | None = None) -> Result:
    return CliRunner().invoke(main, ["routing", *map(str, arguments)], input=input, prog_name="pymixtral")


@pytest.fixture(scope="module")
def model(tiny_q8_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0, n_ctx=512) as model:
        yield model


@pytest.fixture(scope="module")
def domains(model: Mixtral) -> list[Domain]:
    texts = [("tale", TALE), ("py", PROGRAM)]
    return trace(model, [(name, path.read_text().removesuffix("\n")) for name, path in texts])


@pytest.fixture(scope="module")
def usages(domains: list[Domain]) -> list[Usage]:
    return [usage(domain) for domain in domains]


# --- Tables and JSON ------------------------------------------------------------------------------


def test_people_read_the_numbers(tiny_q8_0: Path, usages: list[Usage]) -> None:
    result = run("-m", tiny_q8_0, "-f", f"tale={TALE}", "-f", f"py={PROGRAM}")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    at = 0
    for used in usages:
        at = lines.index(f"{used.name}: {used.n_tokens} tokens. Shares of the experts, in %:", at)
        for layer in range(4):
            row = lines[at + 2 + layer].split()
            assert row == [str(layer), *(f"{100 * share:.1f}" for share in used.either[layer])]
        at = next(i for i in range(at, len(lines)) if lines[i].split()[:3] == ["layer", "first", "any"])
        for layer in range(4):
            row = lines[at + 1 + layer].split()
            assert row[:3] == [str(layer), *(f"{100 * r[layer]:.1f}%" for r in (used.repeats_first, used.repeats_any))]
            assert row[3:5] == [f"{used.entropy[layer]:.2f}", f"{used.first_weight[layer]:.2f}"]
            assert row[5:8] == [f"{100 * used.hits[layer, n]:.1f}%" for n in (2, 3, 4)]
            a, b = map(int, row[8].split("+"))
            assert used.pairs[layer, a, b] == used.pairs[layer].max()
        assert lines[at + 5].split()[:4] == ["chance", "12.5%", "46.4%", "3.00"]
    assert re.search(r"^  tale, py( +[\d.]+%){4}$", result.stdout, re.M)


def test_programs_read_json(tiny_q8_0: Path, usages: list[Usage]) -> None:
    result = run("-m", tiny_q8_0, "-f", f"tale={TALE}", "-f", f"py={PROGRAM}", "--json", "-t", 1)
    assert json.loads(result.stdout) == {"domains": [used.plain() for used in usages], "outputs": []}
    used = json.loads(run("-m", tiny_q8_0, "-f", TALE, "--json", "-c", 64, "--windows", 2, "--experts-used", 3).stdout)
    (one,) = used["domains"]
    assert (one["name"], one["n_tokens"], one["n_experts_used"]) == ("tale", 2 * 63, 3)
    left = ["--experts-used", "1,2,2,3", "--expert-min-p", "0.2"]
    (one,) = json.loads(run("-m", tiny_q8_0, "-f", TALE, "--json", "--windows", 1, *left).stdout)["domains"]
    assert one["used"][0] == 1
    assert 1 < one["used"][1] < 2
    assert 1 < one["used"][3] < 3
    (one,) = json.loads(run("-m", tiny_q8_0, "--json", input="Once\n").stdout)["domains"]
    assert (one["name"], one["n_tokens"], one["repeats_first"]) == ("text", 1, [None] * 4)


def test_a_domain_may_have_several_files_and_any_name(tiny_q8_0: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a=b.txt"
    odd.write_text("Once upon a time")
    arguments = ["-f", f"x={odd}", "-f", odd, "-f", f"x={TALE}", "-f", f"\x1b[31m={odd}", "--json", "-c", "64"]
    found = json.loads(run("-m", tiny_q8_0, *arguments, "--windows", 1).stdout)["domains"]
    assert [(one["name"], one["n_tokens"]) for one in found] == [("x", 4 + 63), ("a=b", 4), ("\x1b[31m", 4)]
    assert "\x1b" not in run("-m", tiny_q8_0, "-f", f"\x1b[31m={odd}").stdout


def test_layers_are_chosen(tiny_q8_0: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", Shape(n_layers=12), seed=1)
    quantize(tmp_path / "hf", tmp_path / "m.gguf", "f16", progress=False)
    rows = re.findall(r"^ +(\d+) .*%", run("-m", tmp_path / "m.gguf", "-f", TALE, "--windows", 1).stdout, re.M)
    assert rows == ["0", "5", "11"]
    rows = re.findall(r"^ +(\d+) .*%", run("-m", tiny_q8_0, "-f", TALE, "--layer", 3, "--layer", 1).stdout, re.M)
    assert rows == ["3", "1"]


def test_many_experts_fit_into_80_columns(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", Shape(n_layers=9, n_experts=40, n_experts_used=3), seed=1)
    quantize(tmp_path / "hf", tmp_path / "m.gguf", "f16", progress=False)
    arguments = ["-m", tmp_path / "m.gguf", "-f", f"{'long' * 20}={TALE}", "-f", PROGRAM, "-c", 32, "--windows", 1]
    shown = run(*arguments, "--layer", 8).stdout
    assert max(map(len, shown.splitlines())) <= 80
    used = json.loads(run(*arguments, "--json").stdout)["domains"][0]
    shares = used["either"][8]
    most = sorted(range(40), key=lambda e: -shares[e])
    row = " +".join(rf"{e}: {100 * shares[e]:.1f}" for e in (*most[:6], most[-1]))
    assert re.search(rf"^ +8  {row}$", shown, re.M)
    assert used["dead"][8]
    assert f"never used: layer 8: {', '.join(map(str, used['dead'][8]))}"[:60] in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-f", "{tale}", "--layer", "0", "--layer", "4"], "expected --layer from 0 to 3, found 4"),
        (["-f", "{tale}", "--layer", "x"], "'x' is not a valid integer"),
        (["-f", "={tale}"], "expected NAME=FILE"),
        (["-f", "code=/nowhere.py"], "'/nowhere.py' does not exist"),
        (["-f", "{tale}", "--full"], "expected --full with --trace"),
        (["-f", "{tale}", "--force"], "expected --force with --trace, --html or --png"),
        (["-f", "{tale}", "--html", "{tale}"], "a file of its own"),
        (["-f", "{tale}", "--html", "{new}", "--trace", "{new}"], "a file of its own"),
        (["-f", "{tale}", "--trace", "{new}/x"], "expected a place in a directory"),
        (["-f", "{empty}"], "empty: expected a text of at least one token, found none"),
        (["-f", "{latin}"], "expected UTF-8"),
        (["-f", "{tale}", "-c", "1000000"], "at most"),
    ],
)
def test_what_it_refuses(tiny_q8_0: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "latin").write_bytes(b"\xe9")
    places = {"tale": TALE, "new": tmp_path / "new", "empty": tmp_path / "empty", "latin": tmp_path / "latin"}
    refused(run("-m", tiny_q8_0, *(argument.format(**places) for argument in arguments)), words)
    assert not (tmp_path / "new").exists()


def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", Shape(n_experts=0), seed=1)
    quantize(tmp_path / "hf", tmp_path / "m.gguf", "f16", progress=False)
    refused(run("-m", tmp_path / "m.gguf", "-f", TALE), "expected a model with experts, found a dense one")


# --- Files ----------------------------------------------------------------------------------------


def test_the_trace(tiny_q8_0: Path, tmp_path: Path, domains: list[Domain]) -> None:
    path = tmp_path / "t.npz"
    result = run("-m", tiny_q8_0, "-f", f"tale={TALE}", "-f", f"py={PROGRAM}", "--trace", path, "--full")
    assert f"{path}: written" in result.stdout
    with np.load(path) as saved:
        assert saved["names"].tolist() == ["tale", "py"]
        for i, domain in enumerate(domains):
            mine = saved["domain"] == i
            for name in ("ids", "experts", "weights"):
                assert (saved[name][mine] == domain.joined(name)).all()
        assert saved["probabilities"].shape == (len(saved["ids"]), 4, 8)


def test_the_picture(tiny_q8_0: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "r.png"
    assert run("-m", tiny_q8_0, "-f", f"$x$={TALE}", "-f", PROGRAM, "--png", path).exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG\r\n")


def test_a_picture_needs_matplotlib(tiny_q8_0: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    result = run("-m", tiny_q8_0, "-f", TALE, "--png", tmp_path / "r.png")
    refused(result, "expected matplotlib for a picture, found none: pip install 'pymixtral[plot]'")


class Page(HTMLParser):
    """The elements of a page, with what stands in its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.inside.append((self.tags[-1][0], data))


@pytest.fixture(scope="module")
def hostile(model: Mixtral, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a tale, and of a text and a name by somebody who means ill."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "bad.txt").write_text(HOSTILE)
    path = folder / "page.html"
    result = run("-m", model.path, "-f", f"tale={TALE}", "-f", f"</script><b>={folder}/bad.txt", "--html", path)
    assert result.exit_code == 0, result.output
    return path


def test_the_page_is_safe_and_loads_nothing(hostile: Path) -> None:
    text = hostile.read_text(encoding="utf-8")
    page = Page(text)
    names = [tag for tag, _ in page.tags]
    assert names.count("script") == 2  # the data, and the program
    assert not {"img", "link", "iframe", "object", "b"} & {*names}
    assert not any({"src", "href", "onerror", "onclick"} & {*attributes} for _, attributes in page.tags)
    program_alone = re.sub(r'id="data">.*?<', "", text).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//\w+\.\w", program_alone)
    assert "\x1b" not in text
    assert "\u202e" not in text
    program, style = (next(data for tag, data in page.inside if tag == name) for name in ("script", "style"))
    program = next(data for tag, data in page.inside if tag == "script" and "use strict" in data)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy") or ""
    for kind, content in (("script", program), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(", program)


def data_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(next(d for t, d in Page(path.read_text()).inside if d.startswith('{"about')))
    return found


def test_the_page_has_the_traces(model: Mixtral, hostile: Path) -> None:
    data = data_of(hostile)
    domains = trace(model, [("tale", TALE.read_text().removesuffix("\n")), ("</script><b>", HOSTILE)])
    assert (data["n_layers"], data["n_experts"], data["n_used"]) == (4, 8, 2)
    for told, domain in zip(data["domains"], domains, strict=True):
        assert told["name"] == domain.name
        assert told["usage"] == json.loads(json.dumps(usage(domain).plain()))
        n = len(told["tokens"])
        assert told["ids"] == domain.joined("ids").tolist()
        experts = np.frombuffer(base64.b64decode(told["experts"]), np.uint8).reshape(n, 4, 2)
        weights = np.frombuffer(base64.b64decode(told["weights"]), np.uint8).reshape(n, 4, 2)
        assert (experts == domain.joined("experts")).all()
        assert np.abs(weights / 255 - domain.joined("weights")).max() < 0.5 / 255 + 1e-3
    assert "".join(data["domains"][0]["tokens"]).lstrip() == TALE.read_text().removesuffix("\n")
    assert data["domains"][0]["begins"] == np.cumsum([w.n_tokens for w in domains[0].windows])[:-1].tolist()


def test_a_long_text_is_counted_whole_and_shown_in_part(
    model: Mixtral, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, domains: list[Domain]
) -> None:
    monkeypatch.setattr(routing_page, "SHOWN", 100)
    routing_page.write(model, domains, tmp_path / "p.html")
    for told, domain in zip(data_of(tmp_path / "p.html")["domains"], domains, strict=True):
        assert len(told["tokens"]) == len(told["ids"]) == 100
        assert told["usage"]["n_tokens"] == domain.n_tokens
        assert told["begins"] == []


def test_programs_are_shown_as_such(model: Mixtral, tmp_path: Path, domains: list[Domain]) -> None:
    routing_page.write(model, domains, tmp_path / "p.html")
    assert [told["code"] for told in data_of(tmp_path / "p.html")["domains"]] == [False, True]


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: chromium or google-chrome")
def test_a_browser_draws_the_page(hostile: Path, tmp_path: Path) -> None:
    """Its program runs under its own policy, and makes the texts, the maps and the curves."""
    assert CHROMIUM
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *flags, hostile.as_uri()], capture_output=True, text=True, timeout=300)
    page, data = Page(done.stdout), data_of(hostile)
    spans = [attributes for tag, attributes in page.tags if tag == "span"]
    experts = []
    for told in data["domains"]:
        chosen = np.frombuffer(base64.b64decode(told["experts"]), np.uint8).reshape(-1, 4, 2)
        experts += chosen[:, 3, 0].tolist()  # the last layer's first expert
    assert [int(a["data-expert"] or -1) for a in spans] == experts
    assert [a["data-colour"] for a in spans] == [str(e % 8) for e in experts]
    names = [tag for tag, _ in page.tags]
    assert not {"img", "b"} & {*names}
    assert names.count("polyline") == 2 * 2
    assert sum(bool((a.get("title") or "").startswith("layer ")) for tag, a in page.tags if tag == "td") == 2 * 4 * 8
