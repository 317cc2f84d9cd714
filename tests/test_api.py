"""The package as its users import it."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest

import pymixtral
from pymixtral import Completion, Mixtral, Stats


def test_every_public_name_is_there() -> None:
    for name in pymixtral.__all__:
        assert getattr(pymixtral, name) is not None
        assert name in dir(pymixtral)
    with pytest.raises(AttributeError, match="mixtrals"):
        _ = pymixtral.mixtrals
    assert pymixtral.__version__ == version("pymixtral")
    assert (files("pymixtral") / "py.typed").is_file()


def test_nothing_imports_a_cluster_that_nobody_asks_for() -> None:
    modules = "pymixtral, pymixtral.cluster.prefixes, pymixtral.cluster.pipeline, pymixtral.cluster.worker"
    code = f"import sys, {modules}; from pymixtral.cli import generate, serve"
    code += "; print({'ray', 'pyarrow', 'fastapi'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "set()\n"


def test_errors_are_pymixtral_errors() -> None:
    errors = [getattr(pymixtral, name) for name in pymixtral.__all__ if name.endswith("Error")]
    assert len(errors) == 16
    assert all(issubclass(error, pymixtral.PymixtralError) for error in errors)


def test_star_import_gives_the_public_names() -> None:
    code = "from pymixtral import *; import pymixtral; assert set(pymixtral.__all__) <= set(globals())"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_writes_text_out_of_the_box() -> None:
    with Mixtral() as model:
        assert model.is_demo
        assert (model.config.n_experts, model.config.n_experts_used, model.n_ctx) == (8, 2, 2048)
        completion = model.generate("Once upon a time there was", max_tokens=30, temperature=0)
        assert isinstance(completion, Completion)
        assert isinstance(completion.stats, Stats)
        assert completion.stats.pass_bytes > 1_000_000
        words = str(completion).split()
        assert len(words) > 10
        assert {"a", "the", "and"} & set(words)  # a tale, not noise
        assert model.detokenize(model.tokenize("Hansel and Gretel")) == "Hansel and Gretel"


def test_only_one_module_knows_the_extension() -> None:
    """The floors' rule sees Python modules only, and the extension is none."""
    package = Path(str(files("pymixtral")))
    found = [path for path in package.rglob("*.py") if re.search(r"(from|import) .*\b_pmx\b", path.read_text())]
    assert [path.relative_to(package).as_posix() for path in found] == ["ops/native.py"]
