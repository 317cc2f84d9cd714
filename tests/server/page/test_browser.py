"""The page in Chromium, on a server with the demo model: browser.mjs says what is done there.

`pytest -m browser` runs these tests. They need Chromium (apt-get install chromium), Node, and
npm install --prefix FOLDER playwright-core@1.64.1 axe-core@4.14.1, where FOLDER is named by PYMIXTRAL_BROWSER.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pymixtral import Mixtral
from pymixtral.demo import demo_chat_path
from support.adapter_files import write_adapter
from support.serving import Server, Start

pytestmark = pytest.mark.browser

HERE = Path(__file__).parent
KEY = "sesame-open"


@pytest.fixture(scope="session")
def node() -> str:
    """Node, where everything that these tests need is there."""
    node = shutil.which("node")
    assert node, "expected Node, found none: install nodejs"
    return node


@pytest.fixture(scope="session")
def folder() -> str:
    """Where playwright-core and axe-core are; Chromium is there, too."""
    assert Path("/usr/bin/chromium").exists(), "expected /usr/bin/chromium, found none: apt-get install chromium"
    folder = os.environ.get("PYMIXTRAL_BROWSER", "")
    for package in ("playwright-core", "axe-core"):
        assert (Path(folder) / "node_modules" / package).is_dir(), (
            f"expected the folder of {package} in PYMIXTRAL_BROWSER, found {folder!r}: "
            "npm install --prefix FOLDER playwright-core@1.64.1 axe-core@4.14.1"
        )
    return folder


def play(node: str, folder: str, scenario: str, *arguments: str) -> None:
    """Plays a scenario of browser.mjs, which fails with what it says."""
    command = [node, str(HERE / "browser.mjs"), scenario, *arguments]
    done = subprocess.run(command, env={**os.environ, "PYMIXTRAL_BROWSER": folder}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


SCENARIOS = re.findall(r"(?m)^  async (\w+)\(\) \{", (HERE / "browser.mjs").read_text())


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name not in ("adapters", "key", "server")])
def test_scenario(node: str, folder: str, server: Server, scenario: str) -> None:
    play(node, folder, scenario, f"{server.url}/")


def test_key(node: str, folder: str, start: Start) -> None:
    play(node, folder, "key", f"{start(env={'PYMIXTRAL_API_KEYS': KEY}).url}/", KEY)


def test_adapters(node: str, folder: str, start: Start, tmp_path: Path) -> None:
    with Mixtral(demo_chat_path()) as model:
        paths = [write_adapter(tmp_path / f"{name}.gguf", model.config, i) for i, name in ((1, "tales"), (2, "polite"))]
    play(node, folder, "adapters", f"{start(*(word for path in paths for word in ('--adapter', path))).url}/")


def test_server_that_goes_away(node: str, folder: str, start: Start) -> None:
    server = start()
    play(node, folder, "server", f"{server.url}/", str(server.process.pid))


def test_modules(node: str, tmp_path: Path) -> None:
    """The parts that need no browser, on a trace whose numbers NumPy knows."""
    rng = np.random.default_rng(5)
    tokens, layers, k, n_experts = 40, 5, 2, 12
    experts = rng.permuted(np.tile(np.arange(n_experts, dtype=np.uint8), (tokens, layers, 1)), axis=2)[..., :k]
    first = rng.uniform(0.5, 1, (tokens, layers)).astype(np.float16)
    first[0, :4] = [1, 6e-8, 5e-5, 0]  # the largest, subnormal ones, none
    weights = np.stack([first, (1 - first).astype(np.float16)], axis=2)
    texts = [f" word{i}" if i % 3 else "ä\n" for i in range(tokens)]

    def piece(part: slice) -> dict[str, object]:
        return {
            "tokens": list(range(tokens))[part],
            "texts": texts[part],
            "experts": base64.b64encode(np.ascontiguousarray(experts[part]).tobytes()).decode(),
            "weights": base64.b64encode(np.ascontiguousarray(weights[part]).astype("<f2").tobytes()).decode(),
            "n_layers": layers,
            "k": k,
            "n_experts": n_experts,
        }

    work = np.zeros((layers, n_experts))
    for layer in range(layers):
        np.add.at(work[layer], experts[:, layer], weights[:, layer].astype(np.float64))
    told = {
        "whole": piece(slice(None)),
        "pieces": [piece(slice(a, a + 7)) for a in range(0, tokens, 7)] + [piece(slice(0, 0))],
        "experts": experts.tolist(),
        "weights": weights.astype(np.float64).tolist(),
        "shares": (work / work.sum(axis=1, keepdims=True)).tolist(),
    }
    (tmp_path / "trace.json").write_text(json.dumps(told))
    command = [node, str(HERE / "modules.mjs"), str(tmp_path / "trace.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
