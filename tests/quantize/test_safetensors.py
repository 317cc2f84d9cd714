"""The strict safetensors reader: real files, and each way to break one (hostile input, row 17)."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from pymixtral.errors import CheckpointError
from pymixtral.files import safetensors as reader
from pymixtral.quantize.sources.safetensors import read_safetensors
from support.checkpoints import write_safetensors

Header = dict[str, Any]
A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {"dtype": "F16", "shape": [4], "data_offsets": [24, 32]}


def raw(header: Header | bytes, data: bytes = bytes(32), n_header: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if n_header is None else n_header) + text + data


def refused(tmp_path: Path, content: bytes, *words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_safetensors(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message


def test_reads_the_real_checkpoint_as_safetensors_does(tiny_checkpoint: Path) -> None:
    path = tiny_checkpoint / "model.safetensors"
    ours = read_safetensors(path)
    with safe_open(path, "numpy") as theirs:
        assert set(ours) == set(theirs.keys())
        for name in ours:
            part = theirs.get_slice(name)
            assert ours[name].shape == tuple(part.get_shape())
            assert ours[name].type.name == part.get_dtype()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_widens_every_dtype_exactly(tmp_path: Path, dtype: str) -> None:
    # Values that bfloat16 and float16 both hold exactly, subnormals of the format included.
    values = np.array(
        [[1, -0.0, 0.5, -3], [2**-14, -(2**-24) if dtype == "float16" else 2.0**-130, 65280, 1.0078125]], np.float32
    )
    write_safetensors(tmp_path / "x", {"x": values}, dtype=dtype)
    tensor = read_safetensors(tmp_path / "x")["x"]
    np.testing.assert_array_equal(tensor.floats(slice(None)).view(np.uint32), values.view(np.uint32))
    np.testing.assert_array_equal(tensor.floats(np.array([1, 0])), values[[1, 0]])
    np.testing.assert_array_equal(tensor.floats(slice(1, 2)), values[1:])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_a_transposed_tensor(tmp_path: Path, dtype: str) -> None:
    values = np.arange(35, dtype=np.float32).reshape(7, 5)
    write_safetensors(tmp_path / "x", {"y": np.ones(3, np.float32), "x": values}, dtype=dtype)
    tensor = replace(read_safetensors(tmp_path / "x")["x"], shape=(5, 7), transposed=True)
    for rows in (slice(None), slice(1, 3), slice(4, 4), np.array([3, 1, 3]), np.array([4])):
        np.testing.assert_array_equal(tensor.floats(rows), values.T[rows])


def test_reads_a_file_of_the_safetensors_package(tmp_path: Path) -> None:
    arrays: dict[str, NDArray[Any]] = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(5, np.float16)}
    arrays["empty"] = np.zeros((0, 4), np.float32)
    save_file(arrays, tmp_path / "x", metadata={"format": "pt"})
    tensors = read_safetensors(tmp_path / "x")
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name].floats(slice(None)), array)


def test_file_that_shrinks_after_it_was_opened_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_safetensors(path, {"x": np.ones((4, 8), np.float32)})
    tensor = read_safetensors(path)["x"]
    os.truncate(path, path.stat().st_size - 5)
    np.testing.assert_array_equal(tensor.floats(slice(0, 3)), np.ones((3, 8)))
    with pytest.raises(CheckpointError, match=r"expected 32 bytes at byte .* found 27: the file was shortened"):
        tensor.floats(slice(3, 4))


def test_valid_sample_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(raw({"a": A, "b": B, "__metadata__": {"format": "pt"}}))
    assert read_safetensors(path).keys() == {"a", "b"}


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_safetensors(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("n_bytes", [0, 4, 8, 9])
def test_file_without_room_for_a_header(tmp_path: Path, n_bytes: int) -> None:
    refused(tmp_path, bytes(n_bytes), f"{n_bytes} bytes", "at least 10")


@pytest.mark.parametrize("n_header", [0, 1, reader.MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_header_length_out_of_range(tmp_path: Path, n_header: int) -> None:
    refused(tmp_path, raw({"a": A, "b": B}, n_header=n_header), f"found {n_header}", "header length at offset 0")


def test_header_length_beyond_the_file(tmp_path: Path) -> None:
    refused(tmp_path, raw({"a": A, "b": B}, n_header=5000), "5000 bytes", "truncated")


@pytest.mark.parametrize(
    "text", [b"{]", b'{"a": }', b"nonsense", b'{"a": NaN}', b'{"a": 1' + b"0" * 5000 + b"}", b"[" * 100_000, b"{}}"]
)
def test_header_is_no_json(tmp_path: Path, text: bytes) -> None:
    refused(tmp_path, raw(text), "header", "JSON")


def test_header_is_no_utf8(tmp_path: Path) -> None:
    refused(tmp_path, raw(b'{"\xff": 1}'), "UTF-8", "offset 2")


def test_header_is_no_object(tmp_path: Path) -> None:
    refused(tmp_path, raw(b"[1, 2]"), "expected a JSON object")


def test_duplicate_names(tmp_path: Path) -> None:
    one, two = json.dumps(A), json.dumps(B)
    refused(tmp_path, raw(f'{{"a": {one}, "a": {two}}}'.encode()), "found 'a' twice")


def test_duplicate_keys_in_an_entry(tmp_path: Path) -> None:
    refused(
        tmp_path,
        raw(b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}'),
        "found 'dtype' twice",
    )


def test_overlapping_offsets(tmp_path: Path) -> None:
    refused(tmp_path, raw({"a": A, "b": {**B, "data_offsets": [20, 28]}}, bytes(28)), "'b'", "expected 24", "overlaps")


def test_two_tensors_at_the_same_offsets(tmp_path: Path) -> None:
    refused(tmp_path, raw({"a": A, "b": A}, bytes(24)), "'b'", "overlaps")


def test_hole_between_tensors(tmp_path: Path) -> None:
    refused(tmp_path, raw({"a": A, "b": {**B, "data_offsets": [26, 34]}}, bytes(34)), "'b'", "hole")


def test_hole_before_the_first_tensor(tmp_path: Path) -> None:
    refused(tmp_path, raw({"b": B}, bytes(32)), "'b'", "expected 0", "hole")


def test_offsets_past_the_end(tmp_path: Path) -> None:
    refused(tmp_path, raw({"a": A, "b": B}, bytes(31)), "'b'", "31 bytes", "truncated")


def test_bytes_that_belong_to_no_tensor(tmp_path: Path) -> None:
    refused(tmp_path, raw({"a": A, "b": B}, bytes(40)), "40 bytes", "cover 32")


@pytest.mark.parametrize("dtype", ["F64", "I32", "U8", "F8_E4M3", "f32", "", None, 3, ["F32"]])
def test_unknown_dtype(tmp_path: Path, dtype: Any) -> None:
    refused(tmp_path, raw({"a": {**A, "dtype": dtype}, "b": B}), "'a'", "dtype", "BF16")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.weight", "a.scales", "a.biases"], "found 'U32' with scales and biases, as MLX"),
        (["a.qweight", "a.qzeros"], "as GPTQ and AWQ"),
        (["a.weight", "a.weight.absmax"], "with absmax, as bitsandbytes"),
    ],
)
def test_quantized_weights_are_refused_by_who_made_them(tmp_path: Path, names: list[str], words: str) -> None:
    entries = {name: {"dtype": "U32", "shape": [2], "data_offsets": [8 * i, 8 * i + 8]} for i, name in enumerate(names)}
    refused(tmp_path, raw(entries, bytes(8 * len(names))), words, "quantize from the unquantized checkpoint")


@pytest.mark.parametrize("shape", [[-2, -3], [2.0, 3], [True, 6], "6", None, {}, [2**63, 1], [1] * 9])
def test_shape_that_is_none(tmp_path: Path, shape: Any) -> None:
    refused(tmp_path, raw({"a": {**A, "shape": shape}, "b": B}), "'a'", "shape")


@pytest.mark.parametrize("shape", [[2, 4], [6, 2], [0], [2**62, 2**62], []])
def test_shape_that_contradicts_the_offsets(tmp_path: Path, shape: list[int]) -> None:
    refused(tmp_path, raw({"a": {**A, "shape": shape}, "b": B}), "'a'", "takes", "hold 24")


@pytest.mark.parametrize("offsets", [[24, 0], [-24, 0], [0], [0, 24, 24], [0.0, 24.0], "0-24", None, [0, 2**64]])
def test_offsets_that_are_none(tmp_path: Path, offsets: Any) -> None:
    refused(tmp_path, raw({"a": {**A, "data_offsets": offsets}, "b": B}), "'a'", "data_offsets")


@pytest.mark.parametrize("entry", [None, 3, [], {}, {"dtype": "F32", "shape": [2, 3]}, {**A, "extra": 1}])
def test_entry_that_is_none(tmp_path: Path, entry: Any) -> None:
    refused(tmp_path, raw({"a": entry, "b": B}), "'a'", "expected an object")


def _flip(content: bytearray, draw: Callable[[int, int], int]) -> None:
    content[draw(0, len(content) - 1)] = draw(0, 255)


def _cut(content: bytearray, draw: Callable[[int, int], int]) -> None:
    del content[draw(1, len(content) - 1) :]


def _repeat(content: bytearray, draw: Callable[[int, int], int]) -> None:
    start = draw(0, len(content) - 1)
    content[start:start] = content[start : start + draw(1, 40)]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_mutated_files_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(raw({"a": A, "b": B, "__metadata__": {"format": "pt"}}))
    for _ in range(data.draw(st.integers(1, 4))):
        change = data.draw(st.sampled_from([_flip, _cut, _repeat]))
        if len(content) > 1:
            change(content, lambda low, high: data.draw(st.integers(low, high)))
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(content)
    try:
        tensors = read_safetensors(path)
    except CheckpointError:
        return
    assert sum(2 * math.prod(tensor.shape) for tensor in tensors.values()) <= len(content)
