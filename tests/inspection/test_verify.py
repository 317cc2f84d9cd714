"""Verification: a sound file passes; one damaged number anywhere is named, whatever its type."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType, GGUFReader, quants

from pymixtral.cli import main
from pymixtral.errors import InvalidArgumentError, ModelConfigError, ModelFileError
from pymixtral.files.header import Tensor
from pymixtral.files.types import block_bytes
from pymixtral.inspection import verify as verification
from pymixtral.inspection.verify import verify
from support.ggufs import damaged, rewrite
from support.variants import TYPES, matrix, set_iq1_m_scales

Type = GGMLQuantizationType


def test_a_sound_model_has_as_many_tensors_as_its_header_says(tiny_q8_0: Path, tiny_f32: Path) -> None:
    for path in (tiny_q8_0, tiny_f32):
        assert verify(path, progress=False) == len(GGUFReader(path).tensors)
    assert verify(tiny_q8_0, n_threads=1, progress=False) == verify(tiny_q8_0, n_threads=5, progress=False)


def test_damage_is_named_by_tensor_row_and_block(tiny_q8_0: Path, tmp_path: Path) -> None:
    reader = {tensor.name: tensor for tensor in GGUFReader(tiny_q8_0).tensors}
    experts = reader["blk.1.ffn_down_exps.weight"].data  # [experts, rows, row bytes]
    row_bytes = experts.shape[2]
    at = (2 * experts.shape[1] + 17) * row_bytes + 3 * 34
    for value in (np.nan, np.inf, -np.inf):
        path = damaged(tiny_q8_0, tmp_path / "m.gguf", "blk.1.ffn_down_exps.weight", at, np.float16(value).tobytes())
        with pytest.raises(
            ModelFileError,
            match=r"m\.gguf: tensor 'blk\.1\.ffn_down_exps\.weight' \(Q8_0\): .* block 3 of row \[2, 17\]: ",
        ):
            verify(path, progress=False)
    path = damaged(tiny_q8_0, tmp_path / "n.gguf", "output_norm.weight", 4 * 9, np.float32(np.nan).tobytes())
    with pytest.raises(ModelFileError, match=r"'output_norm\.weight' \(F32\): .* weight 9 of row \[\]: "):
        verify(path, progress=False)


def test_of_several_the_first_in_the_file_is_named(
    tiny_q8_0: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "_CHUNK_BYTES", 1000)
    names = [tensor.name for tensor in GGUFReader(tiny_q8_0).tensors if tensor.tensor_type == Type.Q8_0]
    path = damaged(tiny_q8_0, tmp_path / "m.gguf", names[5], 34 * 40, np.float16(np.nan).tobytes())
    path = damaged(path, path, names[2], 34 * 100, np.float16(np.nan).tobytes())
    with pytest.raises(ModelFileError, match=names[2]):
        verify(path, n_threads=4, progress=False)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name.lower())
def test_damage_is_what_dequantizes_to_nan_or_infinity(kind: Type) -> None:
    """All values of 16 bits at every even byte of a block; of one with 8 bits at every byte."""
    sound = matrix(kind, 1, 256, 3).data.reshape(-1)[: block_bytes(kind)]
    size, words = len(sound), np.arange(0, 1 << 16, 61 if kind != Type.F32 else 1).astype(np.uint16)
    blocks = []
    for at in range(0, size - 1, 2) if size > 4 else [size - 2]:
        some = np.repeat(sound[None], len(words), axis=0)
        some[:, at : at + 2] = words[:, None].view(np.uint8)
        blocks.append(some[:: max(1, size // 16)])
    every = np.concatenate(blocks)
    if kind == Type.IQ1_M:
        f16 = np.repeat(sound[None], 1 << 16, axis=0)
        set_iq1_m_scales(f16, np.arange(1 << 16).astype(np.uint16))
        every = np.concatenate([every, f16[::7]])
    if kind == Type.MXFP4:
        full = np.repeat(np.full((1, size), 0x77, np.uint8), 256, axis=0)  # the largest value
        full[:, 0] = np.arange(256)
        every = full
    with np.errstate(invalid="ignore", over="ignore"):
        floats = {Type.F32: np.float32, Type.F16: np.float16}
        values = every.view(floats[kind]) if kind in floats else quants.dequantize(every, kind)
        want = ~np.isfinite(values).all(axis=1)
    got = verification._nonfinite(kind, every)
    assert want.any()
    assert not want.all()
    np.testing.assert_array_equal(got, want)


def test_shapes_and_missing_tensors(tiny_q8_0: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError, match=r"'blk\.0\.attn_q\.weight' is missing"):
        verify(rewrite(tiny_q8_0, tmp_path / "a.gguf", without=("blk.0.attn_q.weight",)), progress=False)
    with pytest.raises(ModelConfigError, match="expected shape"):
        verify(rewrite(tiny_q8_0, tmp_path / "b.gguf", keys={"llama.feed_forward_length": 64}), progress=False)


def test_every_shard_is_read(tiny_q8_0: Path, tmp_path: Path) -> None:
    first = rewrite(tiny_q8_0, tmp_path / "m.gguf", shard_tensors=20)
    assert verify(first, progress=False) == len(GGUFReader(tiny_q8_0).tensors)
    last = sorted(tmp_path.glob("m-*.gguf"))[-1]
    tensor = GGUFReader(last).tensors[-1]
    damaged(last, last, tensor.name, 0, b"\xff" * 4)
    with pytest.raises(ModelFileError, match=tensor.name):
        verify(first, progress=False)


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["inspect", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_what_is_verified_is_the_model_with_its_overrides(tiny_q8_0: Path, tmp_path: Path) -> None:
    odd = rewrite(tiny_q8_0, tmp_path / "odd.gguf", keys={"llama.feed_forward_length": 64})
    assert verify(odd, overrides={"llama.feed_forward_length": 512}, progress=False) == verify(
        tiny_q8_0, progress=False
    )
    assert run(str(odd), "--verify", "--override-kv", "llama.feed_forward_length=int:512")[0] == 0
    assert run(str(odd), "--verify")[0] == 2
    with pytest.raises(InvalidArgumentError, match="experts_used of at most the model's 8 experts, found 9"):
        verify(tiny_q8_0, experts_used=9, progress=False)
    assert run(str(tiny_q8_0), "--verify", "--experts-used", "9")[0] == 2


def test_the_command(tiny_q8_0: Path, tmp_path: Path) -> None:
    n = len(GGUFReader(tiny_q8_0).tensors)
    code, text, _ = run(str(tiny_q8_0), "--verify")
    assert (code, text.splitlines()[-1]) == (0, f"Verified: {n} tensors")
    code, text, _ = run(str(tiny_q8_0), "--verify", "--json")
    assert code == 0
    assert '"verified": true' in text
    path = damaged(tiny_q8_0, tmp_path / "m.gguf", "blk.0.attn_k.weight", 34, b"\x00\x7c")
    code, text, errors = run(str(path), "--verify")
    assert (code, text) == (2, "")
    assert errors.count("\n") == 1
    assert "'blk.0.attn_k.weight' (Q8_0)" in errors
    assert "block 1 of row [0]" in errors
    assert run(str(path))[0] == 0  # the header alone is sound


def test_a_file_that_is_shortened_meanwhile_does_not_pass(
    tiny_q8_0: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_q8_0.read_bytes())
    damage = verification._damage

    def shorten(tensor: Tensor, begin: int, blocks: np.ndarray) -> str:  # type: ignore[type-arg]
        os.truncate(path, tiny_q8_0.stat().st_size - 8)  # inside the last page, which then reads as zeros
        return damage(tensor, begin, blocks)

    monkeypatch.setattr(verification, "_damage", shorten)
    with pytest.raises(ModelFileError, match="shortened while it was in use"):
        verify(path, progress=False)
