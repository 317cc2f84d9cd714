"""What calibration and types for a size are worth.

It is the divergence of tiny-mixtral's predictions, on texts that it wrote itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pymixtral import Mixtral
from pymixtral.evaluation.calibration import calibrate
from pymixtral.evaluation.perplexity import perplexity
from pymixtral.files import imatrix
from pymixtral.quantize import quantize
from support.checkpoints import TINY_MIXTRAL

Divergence = Callable[..., tuple[float, float]]


@pytest.fixture(scope="module")
def imatrix_and_base(tiny_f32: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[int]]:
    """An importance matrix from one text, the predictions of another, and its tokens."""
    directory = tmp_path_factory.mktemp("quality")
    with Mixtral(tiny_f32, n_ctx=320) as model:
        texts = [model.generate("Once upon a time", max_tokens=300, seed=seed, ignore_eos=True) for seed in (1, 2)]
        imatrix.write(
            calibrate(model, [("first", texts[0].text)], n_ctx=64, progress=False), directory / "i.gguf", force=True
        )
        perplexity(model, texts[1].tokens, n_ctx=100, save_base=directory / "base", progress=False)
    return directory / "i.gguf", directory / "base", texts[1].tokens


@pytest.fixture(scope="module")
def divergence(imatrix_and_base: tuple[Path, Path, list[int]], tmp_path_factory: pytest.TempPathFactory) -> Divergence:
    """Bits per weight, and mean divergence from f32, of a quantization with these options."""
    imatrix, base, tokens = imatrix_and_base
    directory = tmp_path_factory.mktemp("models")

    def measure(calibrated: bool, **options: Any) -> tuple[float, float]:
        path = directory / "m.gguf"
        importance = imatrix if calibrated else None
        report = quantize(TINY_MIXTRAL, path, imatrix=importance, force=True, progress=False, **options)
        with Mixtral(path, n_ctx=128) as model:
            kl = perplexity(model, tokens, n_ctx=100, kl_against=base, progress=False).kl
        assert kl
        return report.bits_per_weight, kl.mean

    return measure


@pytest.mark.parametrize("mix", ["q2_k", "q3_k_s", "q4_k_m"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_types_for_a_size_diverge_less_than_the_mix_of_that_size(
    divergence: Divergence, mix: str, calibrated: bool
) -> None:
    size, of_mix = divergence(calibrated, type=mix)
    chosen, of_choice = divergence(calibrated, target_bpw=size)
    assert size - 0.05 < chosen <= size
    assert of_choice < 0.95 * of_mix


@pytest.mark.parametrize(("calibrated", "bpw"), [(False, 2.85), (True, 2.8)])
def test_types_per_expert_diverge_less_than_those_per_matrix(
    divergence: Divergence, calibrated: bool, bpw: float
) -> None:
    """Where one step of a merged matrix is a large part of the bits above the least."""
    merged, of_merged = divergence(calibrated, target_bpw=bpw)
    own, of_own = divergence(calibrated, target_bpw=bpw, per_expert=True)
    assert abs(own - merged) < 0.01
    assert of_own < 0.95 * of_merged


def test_more_bits_diverge_less(divergence: Divergence) -> None:
    found = [divergence(True, target_bpw=bpw)[1] for bpw in (3, 4, 5, 6)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < found[0] / 8
