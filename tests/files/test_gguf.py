"""The GGUF reader: what valid files say, and one typed error for every hostile one."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFEndian, GGUFWriter
from gguf.quants import quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pymixtral.errors import ModelFileError, PymixtralError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.header import MAX_HEADER_BYTES, MAX_KEYS, MAX_STRINGS, MAX_TENSORS, read_shard
from support.gguf_bytes import F32, Q8_0, V, build, key, refused, string, tensor, u32, u64
from support.ggufs import finish

VALID = build(
    [
        key("general.architecture", V.STRING, string("llama")),
        key("general.alignment", V.UINT32, u32(32)),
        key("tokens", V.ARRAY, u32(V.STRING) + u64(3) + string("a") + string("") + string("é")),
        key("scores", V.ARRAY, u32(V.FLOAT32) + u64(3) + struct.pack("<3f", 1, 2, 3)),
        key("flag", V.BOOL, b"\1"),
    ],
    [tensor("norm", [8], F32, 0), tensor("matrix", [32, 2], Q8_0, 32)],
    bytes(range(100)),
)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write


# --- Valid files --------------------------------------------------------------------------------------------------


def test_reads_back_what_the_gguf_package_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    arrays: dict[str, NDArray[Any]] = {
        "vector": rng.standard_normal(7).astype(np.float32),
        "half": rng.standard_normal((5, 3)).astype(np.float16),
        "experts": rng.standard_normal((3, 4, 64)).astype(np.float32),
    }
    quantized = quantize(arrays["experts"], GGMLQuantizationType.Q4_0)
    tokens = [f"▁piece{i}" for i in range(100)] + ["", "\n", "<0x00>"]
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_custom_alignment(64)
    scalars = {
        V.UINT8: 255,
        V.INT8: -128,
        V.UINT16: 65535,
        V.INT16: -32768,
        V.UINT32: 2**32 - 1,
        V.INT32: -(2**31),
        V.FLOAT32: 0.1,
        V.BOOL: True,
        V.STRING: "naïve",
        V.UINT64: 2**64 - 1,
        V.INT64: -(2**63),
        V.FLOAT64: 0.1,
    }
    for kind, value in scalars.items():
        writer.add_key_value(f"scalar.{kind.name}", value, kind)
        if kind != V.STRING:
            writer.add_key_value(f"array.{kind.name}", [value, value], V.ARRAY, kind)
    writer.add_array("tokens", tokens)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.add_tensor("quantized", quantized, raw_dtype=GGMLQuantizationType.Q4_0)
    finish(writer)

    with GGUFFile(tmp_path / "x.gguf") as file:
        assert (file.version, file.alignment) == (3, 64)
        assert file.metadata["general.architecture"] == "llama"
        assert file.metadata["tokens"] == tokens
        for kind, value in scalars.items():
            expected = float(np.float32(0.1)) if kind == V.FLOAT32 else value
            found = file.metadata[f"scalar.{kind.name}"]
            assert type(found) is type(expected)
            assert found == expected
            if kind != V.STRING:
                pair = file.metadata[f"array.{kind.name}"]
                assert isinstance(pair, np.ndarray)
                assert pair.tolist() == [expected, expected]
        assert list(file.tensors) == [*arrays, "quantized"]
        for name, array in arrays.items():
            found_tensor = file.tensors[name]
            assert (found_tensor.name, found_tensor.shape) == (name, array.shape)
            assert np.array_equal(found_tensor.data.view(array.dtype), array)
        last = file.tensors["quantized"]
        assert (last.type, last.shape, last.data.shape) == (GGMLQuantizationType.Q4_0, (3, 4, 64), (3, 4, 36))
        assert np.array_equal(last.data, quantized)


def test_version_2_and_a_file_without_tensors(write: Callable[[bytes], Path]) -> None:
    file = GGUFFile(write(build([key("a", V.UINT8, b"\7")], [], version=2)))
    assert (file.version, file.metadata, file.tensors, file.alignment) == (2, {"a": 7}, {}, 32)


def test_tensors_are_read_only_views_that_survive_close(write: Callable[[bytes], Path]) -> None:
    with GGUFFile(write(VALID)) as file:
        data = file.tensors["matrix"].data
        assert not data.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            data[0, 0] = 1
    assert not file.tensors
    assert data.reshape(-1).tolist() == list(range(32, 100))
    file.close()


def test_opening_reads_the_header_only(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    rows = 1 << 23
    path.write_bytes(build([], [tensor("large", [1024, rows], F32, 0)]))
    try:
        os.truncate(path, path.stat().st_size + 4096 * rows)  # 32 GB, a hole
    except OSError:
        pytest.skip("the file system has no sparse files")
    begin = time.perf_counter()
    with GGUFFile(path) as file:
        assert file.tensors["large"].data.shape == (rows, 4096)
        assert file.tensors["large"].data[-1, -1] == 0
    assert time.perf_counter() - begin < 0.5


def test_a_vocabulary_of_32000_is_read_in_a_blink(write: Callable[[bytes], Path]) -> None:
    tokens = [f"▁token{i}" for i in range(32000)]
    path = write(build([key("tokens", V.ARRAY, u32(V.STRING) + u64(32000) + b"".join(map(string, tokens)))], []))
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        assert GGUFFile(path).metadata["tokens"] == tokens
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 0.1


def test_gaps_between_tensors_and_any_order_are_allowed(write: Callable[[bytes], Path]) -> None:
    content = build([], [tensor("b", [4], F32, 64), tensor("a", [4], F32, 0)], bytes(range(80)))
    file = GGUFFile(write(content))
    assert file.tensors["a"].data.tolist() == list(range(16))
    assert file.tensors["b"].data.tolist() == list(range(64, 80))


# --- Hostile files, by the row of the list of hostile inputs ------------------------------------------------------


def test_row_1_not_a_readable_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="No such file"):
        GGUFFile(tmp_path / "absent.gguf")
    with pytest.raises(ModelFileError, match="found a directory: name a GGUF file"):
        GGUFFile(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="not a regular file"):
        GGUFFile(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="can be opened"):
        GGUFFile(f"{tmp_path}/nul\0byte")


def test_row_1_magic(write: Callable[[bytes], Path]) -> None:
    refused(write(b""), "empty")
    refused(write(b"GGUF"), "version", "byte 4", "found 0 left")
    refused(write(b"GGU"), "magic", "found 3 left")
    refused(write(b"GGML" + VALID[4:]), "magic", "b'GGUF'", "b'GGML'")


@pytest.mark.parametrize("version", [0, 1, 4, 2**32 - 1])
def test_row_1_version(write: Callable[[bytes], Path], version: int) -> None:
    refused(write(VALID[:4] + u32(version) + VALID[8:]), "version", "byte 4", "expected 2 or 3", str(version))


def test_row_1_big_endian(write: Callable[[bytes], Path], tmp_path: Path) -> None:
    refused(write(VALID[:4] + struct.pack(">I", 3) + VALID[8:]), "big-endian (version 3)")
    writer = GGUFWriter(tmp_path / "big.gguf", "llama", endianess=GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    refused(tmp_path / "big.gguf", "big-endian")


@pytest.mark.parametrize("n", [6, 2**31 - 1, 2**32 - 1, 2**64 - 1])
@pytest.mark.parametrize(("offset", "field"), [(8, "number of tensors"), (16, "number of metadata keys")])
def test_row_2_counts(write: Callable[[bytes], Path], n: int, offset: int, field: str) -> None:
    content = b"GGUF" + u32(3) + u64(0) + u64(0) + bytes(60)
    content = content[:offset] + u64(n) + content[offset + 8 :]
    refused(write(content), field, f"byte {offset}", f"bytes for {n} entries")


def test_row_2_counts_that_fit_one_by_one_but_not_together(write: Callable[[bytes], Path]) -> None:
    refused(
        write(b"GGUF" + u32(3) + u64(1) + u64(2) + bytes(40)),
        "numbers of tensors and metadata keys",
        "61 bytes",
        "found 40 left",
    )


def test_row_2_counts_beyond_the_limits(write: Callable[[bytes], Path]) -> None:
    body = bytes(40 * (MAX_KEYS + 1))
    refused(
        write(b"GGUF" + u32(3) + u64(0) + u64(MAX_KEYS + 1) + body),
        "number of metadata keys",
        f"at most {MAX_KEYS} entries",
    )
    refused(
        write(b"GGUF" + u32(3) + u64(MAX_TENSORS + 1) + u64(0) + body),
        "number of tensors",
        f"at most {MAX_TENSORS} entries",
    )
    strings = key("k", V.ARRAY, u32(V.STRING) + u64(MAX_STRINGS + 1) + bytes(8 * (MAX_STRINGS + 1)))
    refused(write(build([strings], [])), "'k'", f"at most {MAX_STRINGS} entries")


@pytest.mark.parametrize("length", [10, 2**31, 2**64 - 1])
def test_row_3_string_lengths(write: Callable[[bytes], Path], length: int) -> None:
    broken = u64(length) + b"012345678"
    refused(write(build([broken], [])), "metadata key 0", f"expected {length} bytes", "found 9 left")
    refused(write(build([key("name", V.STRING, broken)], [])), "'name'", f"expected {length} bytes", "found 9 left")
    array = key("name", V.ARRAY, u32(V.STRING) + u64(1) + broken)
    refused(write(build([array], [])), "string in metadata key 'name'", f"expected {length} bytes", "found 9 left")


def test_row_3_a_header_beyond_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(build([key("name", V.STRING, u64(MAX_HEADER_BYTES))], []))
    os.truncate(path, 2 * MAX_HEADER_BYTES)
    refused(path, "'name'", f"expected {MAX_HEADER_BYTES} bytes", f"of the {MAX_HEADER_BYTES} that a header may have")


@pytest.mark.parametrize("count", [3, 2**62, 2**64 - 1])
@pytest.mark.parametrize("kind", [V.STRING, V.UINT64])
def test_row_3_array_counts(write: Callable[[bytes], Path], count: int, kind: V) -> None:
    content = build([key("name", V.ARRAY, u32(kind) + u64(count) + bytes(16))], [])
    refused(
        write(content),
        "array of metadata key 'name'",
        f"at least {8 * count} bytes for {count} entries",
        "found 16 left",
    )


def test_row_3_nested_arrays(write: Callable[[bytes], Path]) -> None:
    inner = u32(V.ARRAY) + u64(1)
    refused(write(build([key("name", V.ARRAY, inner * 1000 + u32(V.UINT8) + u64(0))], [])), "'name'", "nested")


def test_row_3_unknown_value_type(write: Callable[[bytes], Path]) -> None:
    refused(write(build([key("name", 13, bytes(8))], [])), "'name'", "0 to 12", "found 13")
    refused(write(build([key("name", V.ARRAY, u32(77) + bytes(8))], [])), "element type", "'name'", "found 77")


def test_row_3_booleans_are_0_or_1(write: Callable[[bytes], Path]) -> None:
    refused(write(build([key("name", V.BOOL, b"\2")], [])), "'name'", "found 2")
    refused(write(build([key("name", V.ARRAY, u32(V.BOOL) + u64(2) + b"\1\xff")], [])), "'name'", "found 255")


def test_row_4_keys(write: Callable[[bytes], Path]) -> None:
    good = key("good", V.UINT8, b"\1")
    refused(write(build([good, key("", V.UINT8, b"\1")], [])), "metadata key 1", "byte 41", "empty")
    refused(write(build([good, good], [])), "'good'", "byte 41", "twice")
    refused(write(build([key(b"\xff\xfe", V.UINT8, b"\1")], [])), "metadata key 0", "UTF-8")
    refused(
        write(build([key("k" * 65536, V.UINT8, b"\1")], [])), "metadata key 0", "at most 65535 bytes", "found 65536"
    )
    refused(write(build([key("name", V.STRING, string(b"\xed\xa0\x80"))], [])), "'name'", "UTF-8")
    refused(write(build([key("split.count", V.STRING, string("2"))], [])), "'split.count'", "integer", "'2'")


def test_row_4_names_in_messages_are_short_and_escaped(write: Callable[[bytes], Path]) -> None:
    refused(write(build([key("\x1b[2J\n" + "x" * 5000, 99, b"")], [])), "\\x1b[2J\\n", "...")


@pytest.mark.parametrize("alignment", [0, 4, 13, 48, 2**31])
def test_row_5_alignment(write: Callable[[bytes], Path], alignment: int) -> None:
    refused(
        write(build([key("general.alignment", V.UINT32, u32(alignment))], [])),
        "'general.alignment'",
        "power of two",
        str(alignment),
    )


@pytest.mark.parametrize(
    ("kind", "value"),
    [(V.FLOAT32, struct.pack("<f", 32)), (V.STRING, string("32")), (V.BOOL, b"\1"), (V.ARRAY, u32(V.UINT32) + u64(0))],
)
def test_row_5_alignment_is_an_integer(write: Callable[[bytes], Path], kind: V, value: bytes) -> None:
    refused(write(build([key("general.alignment", kind, value)], [])), "'general.alignment'", "power of two")


def test_row_6_truncated_at_every_byte(write: Callable[[bytes], Path]) -> None:
    GGUFFile(write(VALID))
    for n in range(len(VALID)):
        path = write(VALID[:n])
        with pytest.raises(ModelFileError, match=r"empty|found \d+ left|found \d+ in the file"):
            GGUFFile(path)


def test_row_6_truncated_inside_a_tensor(write: Callable[[bytes], Path]) -> None:
    begin = len(VALID) - 100
    refused(write(VALID[:-1]), "'matrix'", f"expected 68 bytes from byte {begin + 32}", "found 67 in")
    refused(write(VALID[: begin + 5]), "'norm'", f"expected 32 bytes from byte {begin}", "found 5 in")


@pytest.mark.parametrize("n_dims", [0, 5, 255])
def test_row_7_number_of_dimensions(write: Callable[[bytes], Path], n_dims: int) -> None:
    content = build([], [tensor("name", [32] * n_dims, F32, 0)], bytes(128))
    refused(write(content), "number of dimensions of tensor 'name'", "expected 1 to 4", str(n_dims))


@pytest.mark.parametrize("dims", [[0], [32, 0], [2**63], [32, 2**64 - 1]])
def test_row_7_dimensions(write: Callable[[bytes], Path], dims: list[int]) -> None:
    refused(write(build([], [tensor("name", dims, F32, 0)], bytes(128))), "dimensions of tensor 'name'", str(dims[-1]))


@pytest.mark.parametrize(
    ("dims", "n_bytes"),
    [
        ([2**32, 2**32], 2**66),
        ([2**62, 4], 2**66),
        ([2**62], 2**64),
        ([32, 2**59 + 1], 2**66 + 128),
        ([2**16] * 4, 2**66),
    ],
)
def test_row_7_products_that_wrap_64_bits(write: Callable[[bytes], Path], dims: list[int], n_bytes: int) -> None:
    refused(write(build([], [tensor("name", dims, F32, 0)], bytes(128))), "'name'", f"take {n_bytes} bytes")


def test_row_8_types(write: Callable[[bytes], Path]) -> None:
    refused(write(build([], [tensor("name", [32], 999, 0)], bytes(128))), "type of tensor 'name'", "999")
    for number, name in [(4, "Q4_2"), (5, "Q4_3"), (31, "Q4_0_4_4"), (38, "IQ4_NL_8_8")]:
        content = build([], [tensor("name", [32], number, 0)], bytes(128))
        refused(write(content), "'name'", name, "retired", error=UnsupportedError)


@pytest.mark.parametrize(("kind", "n", "block"), [("Q8_0", 48, 32), ("Q4_0", 1, 32), ("Q4_K", 128, 256)])
def test_row_8_rows_of_whole_blocks(write: Callable[[bytes], Path], kind: str, n: int, block: int) -> None:
    content = build([], [tensor("name", [n, 32], int(GGMLQuantizationType[kind]), 0)], bytes(8192))
    refused(write(content), "'name'", f"multiple of {block}", kind, f"found {n}")


def test_row_9_offsets(write: Callable[[bytes], Path]) -> None:
    refused(
        write(build([], [tensor("name", [4], F32, 16)], bytes(128))),
        "offset of tensor 'name'",
        "alignment 32",
        "found 16",
    )
    refused(write(build([], [tensor("name", [4], F32, 128)], bytes(128))), "'name'", "expected 16 bytes", "found 0 in")
    refused(
        write(build([], [tensor("name", [4], F32, 2**64 - 32)], bytes(128))),
        "'name'",
        "expected 16 bytes",
        "found 0 in",
    )
    coarse = key("general.alignment", V.UINT32, u32(64))
    refused(
        write(build([coarse], [tensor("name", [4], F32, 32)], bytes(128), alignment=64)), "alignment 64", "found 32"
    )


@pytest.mark.parametrize(("first", "second"), [((16, 0), (4, 32)), ((4, 32), (16, 0)), ((4, 0), (4, 0))])
def test_row_9_overlap(write: Callable[[bytes], Path], first: tuple[int, int], second: tuple[int, int]) -> None:
    content = build(
        [], [tensor("one", [first[0]], F32, first[1]), tensor("two", [second[0]], F32, second[1])], bytes(128)
    )
    refused(write(content), "'one'", "'two'", "inside")


def test_row_10_names(write: Callable[[bytes], Path]) -> None:
    one = tensor("name", [4], F32, 0)
    refused(write(build([], [one, tensor("name", [4], F32, 32)], bytes(128))), "'name'", "twice")
    refused(write(build([], [tensor("", [4], F32, 0)], bytes(128))), "name of tensor 0", "empty")
    refused(
        write(build([], [tensor("n" * 64, [4], F32, 0)], bytes(128))),
        "name of tensor 0",
        "at most 63 bytes",
        "found 64",
    )
    refused(write(build([], [tensor(b"\x80", [4], F32, 0)], bytes(128))), "name of tensor 0", "UTF-8")
    assert list(GGUFFile(write(build([], [tensor("n" * 63, [4], F32, 0)], bytes(128)))).tensors) == ["n" * 63]


@pytest.mark.parametrize("dims", [[1024, 1024, 1024], [1, 1, 1, 2**40], [2**50]])
def test_row_10_huge_dimensions_in_a_tiny_file(write: Callable[[bytes], Path], dims: list[int]) -> None:
    n_bytes = 4 * np.prod(dims, dtype=object)
    refused(write(build([], [tensor("name", dims, F32, 0)], bytes(128))), "'name'", "at most", f"take {n_bytes} bytes")


# --- Fuzzing ------------------------------------------------------------------------------------------------------

edits = st.lists(
    st.tuples(st.integers(0, len(VALID) - 1), st.sampled_from([1, 4, 8]), st.integers(0, 2**64 - 1)), max_size=4
)
small = st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.just(1), st.integers(0, 255)), max_size=3)


def described(path: Path, *, mapped: bool) -> Any:
    """What the header says, or why it is refused."""
    try:
        shard = read_shard(str(path), mapped=mapped)
    except PymixtralError as error:
        return type(error), str(error)
    encoded = {key: bytes(value) for key, value in shard.encoded.items()}
    return encoded, shard.places, shard.alignment, shard.count, shard.header_bytes, shard.n_bytes, shard.identity


@settings(max_examples=1500, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=edits | small, end=st.just(len(VALID)) | st.integers(0, len(VALID)), tail=st.binary(max_size=40))
def test_a_mutated_file_opens_cleanly_or_is_refused(
    write: Callable[[bytes], Path], changes: list[tuple[int, int, int]], end: int, tail: bytes
) -> None:
    content = bytearray(VALID)
    for pos, width, value in changes:
        content[pos : pos + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    path = write(bytes(content[:end]) + tail)
    assert described(path, mapped=True) == described(path, mapped=False)
    try:
        file = GGUFFile(path)
    except PymixtralError:
        return
    used = 0
    for found in file.tensors.values():
        assert found.data.shape[:-1] == found.shape[:-1]
        used += found.data.nbytes
        found.data.sum()
    assert used <= path.stat().st_size
