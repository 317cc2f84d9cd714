"""Models of the Hub, from a cache as the Hub's own package keeps it. Nothing is downloaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pymixtral import Mixtral
from pymixtral.demo import demo_path
from pymixtral.errors import InvalidArgumentError, ModelFileError
from pymixtral.hub import _chosen, fetch

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with a repository of two models."""
    repository = tmp_path / "models--tales--tiny"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for i, name in enumerate(("tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf")):
        shutil.copyfile(demo_path(), blobs / f"{i}")
        (snapshot / name).symlink_to(blobs / f"{i}")
    return tmp_path


def test_a_model_is_opened_from_the_cache(cache: Path) -> None:
    with Mixtral.from_pretrained("tales/tiny", "*Q8_0.gguf", cache_dir=cache, offline=True, n_ctx=64) as model:
        assert model.path.name == "tiny-Q8_0.gguf"
        assert model.n_ctx == 64
        assert model.generate("Once", max_tokens=2).tokens


def test_a_pattern_fits_one_model(cache: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"found 2: tiny-Q4_K_M.gguf, tiny-Q8_0.gguf: name it exactly"):
        fetch("tales/tiny", "*.gguf", cache_dir=cache, offline=True)
    with pytest.raises(InvalidArgumentError, match=r"found none: name it exactly, such as one of 'tiny-Q4_K_M.gguf"):
        fetch("tales/tiny", "*Q5_K_M.gguf", cache_dir=cache, offline=True)


def test_shards_are_one_model() -> None:
    shards = [f"q4/m-Q4_K_M-0000{i}-of-00002.gguf" for i in (1, 2)]
    names = ["README.md", *shards, "m-Q8_0.gguf"]
    assert _chosen(names, "*Q4_K_M.gguf", "a/b") == shards
    assert _chosen(names, "*Q4_K_M*", "a/b") == shards
    assert _chosen(names, "m-Q8_0.gguf", "a/b") == ["m-Q8_0.gguf"]


@pytest.mark.parametrize("repository", ["tales/none", "no such name!", ""])
def test_what_is_not_there_is_an_error_with_advice(cache: Path, repository: str) -> None:
    with pytest.raises(ModelFileError, match="check the name and the network"):
        fetch(repository, cache_dir=cache, offline=True)
