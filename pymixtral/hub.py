"""Model files of the Hugging Face Hub: fetched once, and kept in its cache."""

from __future__ import annotations

import os
import re
from fnmatch import fnmatch
from pathlib import Path

from pymixtral.arguments import path_of, shown, text_of
from pymixtral.errors import InvalidArgumentError, ModelFileError, UnsupportedError

_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf$")


def fetch(
    repository: str,
    filename: str = "*.gguf",
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
) -> Path:
    """Find a model of the Hub, and download what is not in the cache yet.

    A download that was interrupted goes on where it was, and its size is checked against the Hub's.

    Args:
        repository: "organization/name".
        filename: the file's name in the repository, or a pattern with * and ? that one model fits.
            The shards of a split model count as one.
        revision: a branch, tag or commit; None: the main branch.
        cache_dir: where files are kept; None: the Hub's own folder (HF_HOME).
        offline: use only what is in the cache.

    Returns:
        The file, or the first shard.

    Raises:
        InvalidArgumentError: if no file or several models fit the pattern, and for arguments of
            another type.
        ModelFileError: if the repository cannot be reached or read.
        UnsupportedError: if the package huggingface_hub is missing.
    """
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError:
        raise UnsupportedError(
            "expected the package huggingface_hub, found none: install it with `pip install huggingface_hub`"
        ) from None
    repository, filename = text_of("repository", repository), text_of("filename", filename)
    cache = None if cache_dir is None else path_of("cache_dir", cache_dir)
    try:
        if offline:
            folder = Path(str(snapshot_download(repository, revision=revision, cache_dir=cache, local_files_only=True)))
            names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.gguf"))]
        else:
            names = sorted(HfApi().list_repo_files(repository, revision=revision))
        chosen = _chosen(names, filename, repository)
        found = snapshot_download(
            repository, revision=revision, cache_dir=cache, local_files_only=offline, allow_patterns=chosen
        )
    except (InvalidArgumentError, KeyboardInterrupt):
        raise
    except Exception as error:  # of many classes, of several packages
        raise ModelFileError(
            f"{shown(repository)}: expected to fetch {shown(filename)}, found {type(error).__name__}: "
            "check the name and the network"
        ) from error
    return Path(str(found)) / chosen[0]


def _chosen(names: list[str], pattern: str, repository: str) -> list[str]:
    """The files of the one model that fits a pattern."""
    files = [name for name in names if name.endswith(".gguf")]
    fitting = [name for name in files if fnmatch(name, pattern) or _fits_shard(name, pattern)]
    models = {match[1] if (match := _SHARD.match(name)) else name for name in fitting}
    if len(models) == 1:
        return fitting
    found = "none" if not models else f"{len(models)}: {', '.join(sorted(models)[:8])}"
    choice = ", ".join(files) if not models else ""
    raise InvalidArgumentError(
        f"expected one model that fits {shown(pattern)} in {shown(repository)}, found {found}: name it exactly"
        + (f", such as one of {shown(choice)}" if choice else "")
    )


def _fits_shard(name: str, pattern: str) -> bool:
    """Whether the name without its number of a shard fits, as in *Q4_K_M.gguf."""
    match = _SHARD.match(name)
    return match is not None and fnmatch(f"{match[1]}.gguf", pattern)
