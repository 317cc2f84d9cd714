"""The commands and programs of README.md, CONTRIBUTING.md and docs/ run, and print what the pages
say.
"""

from __future__ import annotations

import re
import sys
from inspect import signature
from pathlib import Path
from typing import get_args

import pytest

import pymixtral
from pymixtral import AsyncMixtral, Mixtral, ops
from pymixtral.engine.completion import FinishReason
from pymixtral.options import Options
from pymixtral.sampling.parameters import Sampling
from support.fenced import Block, blocks, is_output
from support.paths import ROOT
from support.programs import run

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def check(block: Block, folder: Path) -> None:
    """Runs a block, and compares what it prints with what the page says."""
    program = ["bash", "-euo", "pipefail", "-c"] if block.language == "sh" else [sys.executable, "-c"]
    printed = run([*program, block.code], folder)
    if block.output is not None:
        assert is_output(block.output, printed), f"{block.code}\nprints\n{printed}\nand not\n{block.output}"


@pytest.mark.parametrize("page", PAGES)
def test_what_a_reader_copies_runs(page: str, tmp_path: Path) -> None:
    """From top to bottom, in one folder, where the repository's tests and examples are at hand."""
    for name in ("tests", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    for block in blocks((ROOT / page).read_text(encoding="utf-8")):
        if block.runs:
            check(block, tmp_path)


def test_the_reference_has_every_public_name() -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs/reference").glob("*.md"))
    entries = set(re.findall(r"^::: (\S+)$", pages, re.M))
    names = [name for name in pymixtral.__all__ if name != "__version__" and not name.endswith("Error")]
    assert entries >= {f"pymixtral.{name}" for name in names}
    assert entries >= {"pymixtral.quantize", "pymixtral.ops", "pymixtral.errors"}  # whole modules


def test_the_floors_of_the_house_are_those_that_are_checked() -> None:
    plan = re.search(r"^layers = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S)
    assert plan
    layers = [set(re.findall(r"\w+", layer)) - {"__main__"} for layer in re.findall(r'"(.+)"', plan[1])]
    told: dict[int, set[str]] = {}
    for floor, rooms in re.findall(
        r"^\| (\d+) \| `([^`]+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M
    ):
        told.setdefault(int(floor), set()).update(re.sub(r"\.py|/", "", rooms).split())
    assert [told[floor] for floor in sorted(told, reverse=True)] == [rooms for rooms in layers if rooms]


def test_the_modules_of_the_engine_are_listed() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page[page.index("## The engine") : page.index("## The server")]
    rows = [row for row in re.findall(r"^\| (.+?) \|", section, re.M) if row.startswith("`")]
    listed = [name for row in rows for name in re.findall(r"`(\w+\.py)`", row)]
    modules = {path.name for path in (ROOT / "pymixtral/engine").glob("*.py")} - {"__init__.py"}
    assert sorted(listed) == sorted(modules)


def test_every_option_and_every_end_of_a_text_is_told() -> None:
    page = (ROOT / "docs/engine.md").read_text(encoding="utf-8")
    firsts = "\n".join(re.findall(r"^\| (`.+?) \|", page, re.M))
    told = set(re.findall(r"`\"?(\w+)\"?`", firsts)) - {"finish_reason"}  # the head of a table
    options = set(Options.__annotations__) - set(Sampling.__annotations__)
    keywords = {"max_batch", "n_ctx", "cache_bytes", "pace", "n_batch"}
    assert told == {*options, *get_args(FinishReason), "tool_calls", *keywords, "n", "best_of", "progress"}
    assert keywords <= set(signature(Mixtral).parameters)


def test_the_help_of_generate_names_every_option() -> None:
    told = set(re.findall(r"\w+", (Mixtral.generate.__doc__ or "").partition("**options:")[2].partition("Returns:")[0]))
    assert told >= set(Options.__annotations__)


def test_the_methods_for_tasks_are_told() -> None:
    methods = {name for name, value in vars(AsyncMixtral).items() if callable(value) and not name.startswith("_")}
    for page, begin, end in (("docs/engine.md", "## Tasks", "```"), ("README.md", "For programs that await", "[Many")):
        text = (ROOT / page).read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]
        assert {name for name in methods if re.search(rf"`(await )?(\w+\.)?{name}(\(\))?`", text)} == methods


def test_every_error_is_in_the_chapter() -> None:
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\| `(\w+Error)` \|", page, re.M))
    assert told == {name for name in pymixtral.__all__ if name.endswith("Error")} - {"PymixtralError"}


def test_the_first_two_blocks_of_the_readme_install_and_test() -> None:
    install, test = blocks((ROOT / "README.md").read_text(encoding="utf-8"))[:2]
    assert install.code.startswith("pip install -e . && pymixtral generate ")
    assert test.code.startswith("pip install -e '.[dev]' && pytest ")
    assert not install.runs
    assert not test.runs


def test_blocks_are_found_and_told_apart() -> None:
    page = """
```sh
echo one
```

```text
one
```

- In a list:

    ```sh
    # needs a checkpoint
    false
    ```

```sh
pip install nothing
```

Words between.

```text
no output of the block above
```

```python
--8<-- "examples/streaming.py"
```
"""
    first, second, third, fourth = blocks(page)
    assert first == Block("sh", "echo one\n", "one\n")
    assert first.runs
    assert (second.code, second.runs) == ("# needs a checkpoint\nfalse\n", False)
    assert (third.output, third.runs) == (None, False)
    assert fourth.code.startswith('"""Print a text while it is written')


@pytest.mark.parametrize(
    "block",
    [Block("sh", "exit 3"), Block("sh", "false | true"), Block("python", "1 / 0"), Block("sh", "echo 1", "2\n")],
)
def test_a_block_that_fails_or_prints_something_else_is_found(block: Block, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check(block, tmp_path)


def test_dots_stand_for_a_part_of_a_line_or_for_lines() -> None:
    printed = "12 tokens, 34 tokens/s\n\nmore\nand more\n"
    for page in (printed, "12 tokens, ... tokens/s\n...\n", "...\nmore\n...\nand ...\n", "...\n"):
        assert is_output(page, printed)
    for page in ("12 tokens\n...\n", "...\nmore\n", "12 ... more\n...\n", "...\nless\n...\n", ""):
        assert not is_output(page, printed)


def test_the_version_of_the_contract_is_told() -> None:
    page = (ROOT / "docs/numerics.md").read_text(encoding="utf-8")
    assert f"which is {ops.NUMERICS_VERSION} (`pymixtral.ops.NUMERICS_VERSION`)" in page
