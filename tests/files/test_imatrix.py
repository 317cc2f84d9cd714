"""Importance matrices: both file forms, what is made of them, and broken files."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from pymixtral.errors import InvalidArgumentError, ModelFileError, OutputError
from pymixtral.files import imatrix
from pymixtral.files.imatrix import read, write
from pymixtral.files.importance import FLOOR, HARDLY_SEEN, PRIOR_TOKENS, ImportanceMatrix, merge
from support.ggufs import finish

GATE, QUERY = "blk.0.ffn_gate_exps.weight", "blk.0.attn_q.weight"


def example(n_windows: int = 3) -> ImportanceMatrix:
    rng = np.random.default_rng(5)
    result = ImportanceMatrix({}, ["a.txt"], n_windows, 64, "d1g357")
    result.add(QUERY, rng.random((1, 8)) * 9, np.array([192.0]))
    result.add(GATE, rng.random((4, 8)) * np.array([[100], [10], [1], [0]]), np.array([1000.0, 100.0, 10.0, 0.0]))
    return result


def dat(*entries: tuple[bytes, int, list[float]], tail: bytes = b"") -> bytes:
    data = struct.pack("<i", len(entries))
    for name, n_calls, values in entries:
        data += (
            struct.pack("<i", len(name))
            + name
            + struct.pack("<ii", n_calls, len(values))
            + np.array(values, "<f4").tobytes()
        )
    return data + tail


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(example(), tmp_path / "i.gguf", force=True)
    found = read(tmp_path / "i.gguf")
    assert (found.datasets, found.n_windows, found.n_ctx, found.digest) == (["a.txt"], 3, 64, "d1g357")
    assert list(found.entries) == [QUERY, GATE]
    for name, entry in example().entries.items():
        np.testing.assert_array_equal(found.entries[name].sums, entry.sums.astype(np.float32))
        np.testing.assert_array_equal(found.entries[name].counts, entry.counts)
    assert [path.name for path in tmp_path.iterdir()] == ["i.gguf"]


def test_the_file_is_laid_out_as_llama_cpp_reads_it(tmp_path: Path) -> None:
    """Its quantizer wants these keys, at least one dataset, and f32 tensors.

    These are NAME.in_sum2 [cols, n] and NAME.counts [1, n].
    """
    write(example(), tmp_path / "i.gguf", force=True)
    reader = GGUFReader(tmp_path / "i.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["a.txt"]
    assert [reader.fields[f"imatrix.{key}"].contents() for key in ("chunk_count", "chunk_size")] == [3, 64]
    found = {tensor.name: (tensor.tensor_type.name, tensor.shape.tolist()) for tensor in reader.tensors}
    assert found == {
        f"{QUERY}.in_sum2": ("F32", [8, 1]),
        f"{QUERY}.counts": ("F32", [1, 1]),
        f"{GATE}.in_sum2": ("F32", [8, 4]),
        f"{GATE}.counts": ("F32", [1, 4]),
    }


def test_a_matrix_without_a_dataset_names_one(tmp_path: Path) -> None:
    write(ImportanceMatrix(example().entries), tmp_path / "i.gguf", force=True)
    assert read(tmp_path / "i.gguf").datasets == ["unknown"]


def test_importance_is_the_documented_formula() -> None:
    entry = example().entries[GATE]
    found = example().importance(GATE, 4, 8)
    assert found is not None
    mean = entry.sums.sum(axis=0) / 1110
    for expert in range(4):
        squares = (entry.sums[expert] + 32 * mean) / (entry.counts[expert] + 32)
        np.testing.assert_allclose(found.weights[expert], squares / squares.mean(), rtol=1e-6)
        assert found.energy[expert] == pytest.approx(squares.mean() * (entry.counts[expert] + 32) / (1110 + 4 * 32))
    np.testing.assert_allclose(found.weights[3], mean / mean.mean(), rtol=1e-6)  # never seen: the layer's mean
    np.testing.assert_array_equal(found.counts, entry.counts)


def test_no_column_counts_for_nothing() -> None:
    matrix = ImportanceMatrix()
    matrix.add(QUERY, np.array([[0.0, 3.0, 5.0]]), np.array([10.0]))
    matrix.add(GATE, np.zeros((2, 3)), np.zeros(2))
    query, gate = matrix.importance(QUERY, 1, 3), matrix.importance(GATE, 2, 3)
    assert query is not None
    assert gate is not None
    assert 0.9 * FLOOR < query.weights[0, 0] < 1.1 * FLOOR
    assert query.weights.mean() == pytest.approx(1)
    np.testing.assert_array_equal(gate.weights, np.ones((2, 3)))
    assert matrix.importance("output.weight", 1, 3) is None


def test_another_model_s_matrix_is_refused() -> None:
    for shape in ((4, 16), (3, 8), (1, 32)):
        with pytest.raises(
            InvalidArgumentError, match=r"blk\.0\.ffn_gate_exps\.weight: expected .* found 4 x 8.*another model"
        ):
            example().importance(GATE, *shape)


def test_merging_adds_and_refuses_other_shapes() -> None:
    both = merge([example(), example(5)])
    assert (both.n_windows, both.n_ctx, both.datasets, both.digest) == (8, 64, ["a.txt"], "")
    for name, entry in example().entries.items():
        np.testing.assert_array_equal(both.entries[name].sums, 2 * entry.sums)
        np.testing.assert_array_equal(both.entries[name].counts, 2 * entry.counts)
    other = ImportanceMatrix()
    other.add(QUERY, np.ones((1, 9)), np.ones(1))
    with pytest.raises(InvalidArgumentError, match="expected matrices of one model"):
        merge([example(), other])


def test_hardly_seen_experts_are_named() -> None:
    assert example().hardly_seen() == {"blk.0": {1: 100, 2: 10, 3: 0}}


def test_dat_files_have_means_times_calls(tmp_path: Path) -> None:
    tail = struct.pack("<ii", 7, 8) + b"wiki.txt"
    experts = [
        1.0,
        3.0,
        5.0,
        5.0,
    ]  # two of two columns; llama.cpp gives one that was not seen the same number everywhere
    (tmp_path / "i.dat").write_bytes(dat((QUERY.encode(), 4, [4.0, 8.0]), (GATE.encode(), 4, experts), tail=tail))
    found = read(tmp_path / "i.dat")
    assert (found.datasets, found.n_windows) == (["wiki.txt"], 7)
    query, gate = found.importance(QUERY, 1, 2), found.importance(GATE, 2, 2)
    assert query is not None
    assert gate is not None
    np.testing.assert_allclose(query.weights, [[2 / 3, 4 / 3]], rtol=1e-6)
    np.testing.assert_allclose(query.energy, 1.5)
    np.testing.assert_array_equal(gate.counts, [4 * imatrix.DAT_CHUNK, 0])
    np.testing.assert_allclose(gate.weights, [[0.5, 1.5], [0.5, 1.5]], rtol=1e-6)
    (tmp_path / "old.dat").write_bytes(dat((QUERY.encode(), 4, [4.0, 8.0])))
    assert read(tmp_path / "old.dat").n_windows == 0
    merged = merge([found, read(tmp_path / "old.dat")])
    np.testing.assert_array_equal(merged.entries[QUERY].counts, [8 * imatrix.DAT_CHUNK])


GOOD_DAT = dat((b"a", 1, [1.0, 2.0]), tail=struct.pack("<ii", 7, 1) + b"w")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "number of entries, byte 0"),
        (b"\x00\x00\x00\x00", "expected 1 to 65536, found 0"),
        (b"\xff\xff\xff\xff", "found -1"),
        (struct.pack("<i", 1) + struct.pack("<i", -5), "found -5"),
        (struct.pack("<i", 1) + struct.pack("<i", 2**30), "expected 1 to 63"),
        (struct.pack("<i", 1) + struct.pack("<i", 60) + b"ab", "expected 60 bytes, found 2"),
        (dat((b"\xff\xfe", 1, [1.0])), "expected UTF-8"),
        (dat((b"a", -1, [1.0])), "calls of 'a'"),
        (dat((b"a", 1, [])), "values of 'a'"),
        (dat((b"a", 1, [1.0]))[:-1], "expected 4 bytes, found 3"),
        (dat((b"a", 1, [1.0]), (b"a", 1, [1.0])), "expected a new name, found 'a' again"),
        (dat((b"a", 1, [1.0, np.nan])), "expected numbers of at least 0, found nan"),
        (dat((b"a", 1, [np.inf])), "found inf"),
        (dat((b"a", 1, [-1.0])), "found -1"),
        (dat((b"a", 1, [1.0]), tail=b"\x00"), "expected 4 bytes, found 1"),
        (GOOD_DAT + b"x", "expected nothing more, found 1 bytes"),
        (GOOD_DAT[:-1], "expected 1 bytes, found 0"),
    ],
)
def test_broken_dat_files(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "i.dat").write_bytes(data)
    with pytest.raises(ModelFileError, match=words) as caught:
        read(tmp_path / "i.dat")
    assert "i.dat" in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(GOOD_DAT) - 1), st.integers(0, 255), st.booleans())
def test_any_damage_to_a_dat_file_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int, cut: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.dat"
    path.write_bytes(GOOD_DAT[:at] if cut else GOOD_DAT[:at] + bytes([value]) + GOOD_DAT[at + 1 :])
    try:
        found = read(path)
    except ModelFileError:
        return
    assert all(np.isfinite(entry.sums).all() and (entry.sums >= 0).all() for entry in found.entries.values())


def write_gguf(path: Path, tensors: dict[str, Any], **keys: object) -> Path:
    writer = GGUFWriter(path, "imatrix")
    for key, value in ({"general.type": "imatrix", "imatrix.chunk_count": 1} | keys).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_int32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    finish(writer)
    return path


SUMS, COUNTS = np.ones((2, 4), np.float32), np.ones((2, 1), np.float32)


def test_newer_files_with_more_tensors_and_without_keys_are_read(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "i.gguf",
        {"a.in_sum2": SUMS, "a.counts": COUNTS, "a.in_sum": -SUMS, "b.in_sum2": SUMS[0], "b.counts": COUNTS[0]},
    )
    found = read(path)
    assert {name: entry.sums.shape for name, entry in found.entries.items()} == {"a": (2, 4), "b": (1, 4)}
    assert (found.datasets, found.n_ctx, found.digest) == ([], 0, "")


@pytest.mark.parametrize(
    ("tensors", "keys", "words"),
    [
        ({}, {}, "in_sum2, found none"),
        ({"a.in_sum2": SUMS}, {}, r"expected 'a\.counts' too, found none"),
        ({"a.in_sum2": SUMS, "a.counts": COUNTS[:1]}, {}, "a count for each of 2 rows of sums, found 1"),
        ({"a.in_sum2": SUMS.astype(np.float16), "a.counts": COUNTS}, {}, "expected f32"),
        ({"a.in_sum2": SUMS * np.nan, "a.counts": COUNTS}, {}, "found nan"),
        ({"a.in_sum2": SUMS, "a.counts": -COUNTS}, {}, "counts of 'a': expected numbers of at least 0, found -1"),
        ({"a.in_sum2": SUMS, "a.counts": COUNTS}, {"imatrix.chunk_count": -1}, "imatrix.chunk_count, found -1"),
        ({"a.in_sum2": SUMS, "a.counts": COUNTS}, {"imatrix.datasets": "a"}, "list of strings"),
        ({"a.in_sum2": SUMS, "a.counts": COUNTS}, {"general.type": "model"}, "found 'model'"),
    ],
)
def test_broken_gguf_files(tmp_path: Path, tensors: dict[str, Any], keys: dict[str, object], words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        read(write_gguf(tmp_path / "i.gguf", tensors, **keys))


@pytest.mark.parametrize("wrong", [[1, 2], [True], 7, "text"])
@pytest.mark.parametrize(
    "key", ["general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size", imatrix._DIGEST]
)
def test_row_4_keys_of_the_wrong_type(tmp_path: Path, key: str, wrong: object) -> None:
    if (key, wrong) in (("imatrix.chunk_count", 7), ("imatrix.chunk_size", 7), (imatrix._DIGEST, "text")):
        return
    with pytest.raises(ModelFileError, match=key):
        read(write_gguf(tmp_path / "i.gguf", {"a.in_sum2": SUMS, "a.counts": COUNTS}, **{key: wrong}))


def test_a_model_is_no_importance_matrix(tiny_q8_0: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="expected an importance matrix"):
        read(tiny_q8_0)
    for path in (tmp_path, tmp_path / "missing.gguf"):
        with pytest.raises(ModelFileError, match=str(path)):
            read(path)


def test_what_the_reader_would_refuse_is_not_written(tmp_path: Path) -> None:
    """An older file stays."""
    write(example(), tmp_path / "i.gguf", force=True)
    before = (tmp_path / "i.gguf").read_bytes()
    large, many = ImportanceMatrix(), ImportanceMatrix(example().entries, n_windows=1 << 32)
    large.add(QUERY, np.full((1, 8), 1e39), np.ones(1))
    tokens, long = ImportanceMatrix(), ImportanceMatrix()
    tokens.add(QUERY, np.ones((1, 8)), np.full(1, 1e39))
    long.add("n" * 56, np.ones((1, 8)), np.ones(1))
    for matrix, words in (
        (large, r"sums of 'blk\.0\.attn_q\.weight': expected at most 3\.40282e\+38.*found 1e\+39"),
        (tokens, "counts of .*found 1e"),
        (many, "expected at most 4294967295 windows, found 4294967296"),
        (long, "names of at most 55 bytes, found 'nnn"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            write(matrix, tmp_path / "i.gguf", force=True)
    with pytest.raises(
        OutputError, match=r"i\.gguf: expected to write a file that can be read again.*in_sum2, found none"
    ):
        write(ImportanceMatrix(), tmp_path / "i.gguf", force=True)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("i.gguf", before)]


def test_the_name_of_a_text_may_be_no_utf8(tmp_path: Path) -> None:
    write(ImportanceMatrix(example().entries, ["caf\udce9.txt"]), tmp_path / "i.gguf", force=True)
    assert read(tmp_path / "i.gguf").datasets == ["caf?.txt"]


def test_merging_many_names_of_texts_takes_no_time() -> None:
    names = [str(i) for i in range(200_000)]
    assert (
        len(merge([ImportanceMatrix(datasets=names[:150_000]), ImportanceMatrix(datasets=names[50_000:])]).datasets)
        == 200_000
    )


def test_a_file_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    own = write(example(), path, force=False)
    own = write(example(5), path, force=False, own=own)
    assert read(path).n_windows == 5
    theirs = path.read_bytes()
    path.write_bytes(theirs)  # the same content in the same file, but somebody else's
    with pytest.raises(OutputError, match="appeared meanwhile"):
        write(example(7), path, force=False, own=own)
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "other").rename(path)
    with pytest.raises(OutputError, match="appeared meanwhile"):
        write(example(7), path, force=False, own=own)
    assert path.read_bytes() == b"other"
    path.unlink()
    write(example(7), path, force=False, own=own)
    assert read(path).n_windows == 7


@pytest.mark.parametrize("form", ["split", "fused", "fused and split"])
def test_entries_of_single_experts_and_of_fused_matrices_are_found(form: str) -> None:
    """As llama.cpp measures a file with a tensor for each expert, or with gate and up in one tensor."""
    want, entry = example().importance(GATE, 4, 8), example().entries[GATE]
    stored = ImportanceMatrix()
    name = "blk.0.ffn_gate_up" if "fused" in form else "blk.0.ffn_gate"
    if "split" in form:
        for e in range(3):  # the last saw nothing, so there is no entry
            stored.add(f"{name}.{e}.weight", entry.sums[e : e + 1], entry.counts[e : e + 1])
    else:
        stored.add(f"{name}_exps.weight", entry.sums, entry.counts)
    found = stored.importance(GATE, 4, 8)
    assert found is not None
    assert want is not None
    np.testing.assert_array_equal(found.weights, want.weights)
    np.testing.assert_array_equal(found.energy, want.energy)
    assert (stored.importance("blk.0.ffn_up_exps.weight", 4, 8) is None) == (form == "split")
    assert stored.importance("blk.0.ffn_down_exps.weight", 4, 8) is None
    seen = stored.hardly_seen()["blk.0"]
    assert {e: seen[e] for e in (1, 2)} == {1: 100, 2: 10}
    with pytest.raises(
        InvalidArgumentError, match=r"expected \d x 9 columns, found \d x 8: it was made for another model"
    ):
        stored.importance(GATE, 4, 9)


def test_merged_and_single_experts_add_up() -> None:
    entry, both = example().entries[GATE], example()
    for e in range(4):
        both.add(f"blk.0.ffn_gate.{e}.weight", entry.sums[e : e + 1], entry.counts[e : e + 1])
    double = merge([example(), example()])
    for found, want in ((both.importance(GATE, 4, 8), double.importance(GATE, 4, 8)),):
        assert found is not None
        assert want is not None
        np.testing.assert_array_equal(found.weights, want.weights)
    assert both.hardly_seen() == double.hardly_seen()


@pytest.mark.parametrize("form", ["dat", "gguf"])
def test_files_beyond_any_matrix_are_refused_before_they_are_read(tmp_path: Path, form: str) -> None:
    """256 GB that take no space on the disk."""
    path, n = tmp_path / "i", 1 << 38
    if form == "dat":
        path.write_bytes(dat((b"a", 1, [1.0])))
    else:
        info = b"".join(
            struct.pack("<Q", len(name)) + name + struct.pack("<IQQIQ", 2, cols, 1, 0, offset)
            for name, cols, offset in ((b"a.in_sum2", n // 4, 0), (b"a.counts", 1, n))
        )
        kind = struct.pack("<Q", 12) + b"general.type" + struct.pack("<IQ", 8, 7) + b"imatrix"
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2, 1) + kind + info)
    os.truncate(path, n + 4096)
    with pytest.raises(ModelFileError, match=rf"{'GGUF' if form == 'dat' else 'expected at most 268435456 bytes'}"):
        read(path)


def test_nothing_of_a_dat_file_is_read_beyond_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "i.dat"
    path.write_bytes(struct.pack("<iii", 1 << 16, 1 << 30, 0))
    os.truncate(path, imatrix.MAX_BYTES)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError, match="length of the name of entry 0"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_prior_is_what_the_help_says() -> None:
    assert (PRIOR_TOKENS, HARDLY_SEEN) == (32, 256)
