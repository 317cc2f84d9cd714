"""Perplexity and divergence against a plain computation from Mixtral.logits(), and base files as
hostile input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pymixtral import Mixtral
from pymixtral.errors import InvalidArgumentError, NonFiniteError, OutputError, UnsupportedError
from pymixtral.evaluation.base import BaseReader, log_softmax, writing_base
from pymixtral.evaluation.perplexity import Perplexity, perplexity
from pymixtral.evaluation.windows import Windows
from pymixtral.quantize import quantize
from support.checkpoints import Shape, make_checkpoint

TEXT = """Once upon a time there was a king who had three daughters, and the youngest was so beautiful that the sun itself wondered
whenever it shone upon her face. Close by the castle lay a great dark forest, and in the forest under an old lime tree was a well. When
the day was warm, the king's child went out into the forest and sat down by the side of the cool fountain."""  # noqa: E501
BOS = 1


@pytest.fixture(scope="module")
def f32(tiny_f32: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_f32, n_ctx=64, n_threads=2) as model:
        yield model


@pytest.fixture(scope="module")
def q4_0(tiny_q4_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q4_0, n_ctx=64, n_threads=2) as model:
        yield model


@pytest.fixture(scope="module")
def base(f32: Mixtral, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of windows of 16."""
    path = tmp_path_factory.mktemp("base") / "f32.base"
    perplexity(f32, TEXT, n_ctx=16, save_base=path)
    return path


def plain_log_p(model: Mixtral, window: list[int]) -> NDArray[np.float64]:
    logits = model.logits(window).astype(np.float64)
    return np.array(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


def plain_windows(ids: list[int], n_ctx: int, step: int) -> list[list[int]]:
    return [[BOS, *ids[at + 1 : at + n_ctx]] for at in range(0, len(ids) - n_ctx + 1, step)]


def plain(model: Mixtral, n_ctx: int, stride: int | None) -> tuple[float, float, int]:
    """Perplexity, its standard error, and the number of tokens scored."""
    scores = []
    for window in plain_windows(model.tokenize(TEXT), n_ctx, stride or n_ctx):
        log_p = plain_log_p(model, window)
        first = n_ctx - stride if stride else n_ctx // 2 + 1
        scores += [-log_p[i - 1, window[i]] for i in range(first, n_ctx)]
    mean = sum(scores) / len(scores)
    variance = sum((score - mean) ** 2 for score in scores) / (len(scores) - 1)
    return math.exp(mean), math.exp(mean) * math.sqrt(variance / len(scores)), len(scores)


# --- Perplexity ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_ctx", "stride"), [(16, None), (17, None), (3, None), (64, None), (16, 4), (16, 15), (32, 1), (2, 1)]
)
def test_equals_a_plain_computation(f32: Mixtral, n_ctx: int, stride: int | None) -> None:
    result = perplexity(f32, TEXT, n_ctx=n_ctx, stride=stride)
    value, error, n = plain(f32, n_ctx, stride)
    assert result.perplexity == pytest.approx(value, rel=1e-9)
    assert result.standard_error == pytest.approx(error, rel=1e-9)
    assert result.n_tokens == n == result.n_windows * (stride or n_ctx - n_ctx // 2 - 1)
    assert (result.n_ctx, result.stride, result.kl) == (n_ctx, stride, None)
    assert result.tokens_per_second == pytest.approx(result.n_windows * (n_ctx - 1) / result.seconds)


def test_a_trained_model_predicts_text_better_than_noise(f32: Mixtral) -> None:
    ids = np.array(f32.tokenize(TEXT))
    noise = np.random.default_rng(1).permutation(ids)
    assert 10 < perplexity(f32, ids, n_ctx=32, stride=16).perplexity < 150
    assert perplexity(f32, noise, n_ctx=32, stride=16).perplexity > 1000


def test_the_size_of_the_pieces_changes_nothing(f32: Mixtral, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = perplexity(f32, TEXT, n_ctx=48, stride=20)
    monkeypatch.setattr("pymixtral.evaluation.perplexity._PIECE", 7)
    monkeypatch.setattr("pymixtral.evaluation.perplexity._ROWS", 3)
    pieces = perplexity(f32, TEXT, n_ctx=48, stride=20)
    assert pieces.perplexity == whole.perplexity


def test_a_text_and_its_ids_are_the_same(f32: Mixtral) -> None:
    ids = f32.tokenize(TEXT)
    expected = perplexity(f32, TEXT, n_ctx=16)
    for tokens in (ids, np.array(ids, np.uint16)):
        result = perplexity(f32, tokens, n_ctx=16)
        assert replace(result, seconds=0, tokens_per_second=0) == replace(expected, seconds=0, tokens_per_second=0)


def test_only_the_first_windows(f32: Mixtral) -> None:
    ids = f32.tokenize(TEXT)
    assert perplexity(f32, ids, n_ctx=16, n_windows=2).perplexity == perplexity(f32, ids[:40], n_ctx=16).perplexity
    assert perplexity(f32, ids, n_ctx=16, n_windows=1000).n_windows == len(ids) // 16


def test_a_model_without_a_tokenizer_takes_ids(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "nameless", Shape(n_vocab=50, n_ctx=32), seed=1)
    quantize(tmp_path / "nameless", tmp_path / "nameless.gguf", "f32", no_tokenizer=True, progress=False)
    ids = np.random.default_rng(1).integers(0, 50, 40)
    with Mixtral(tmp_path / "nameless.gguf") as model:
        result = perplexity(model, ids, n_ctx=20)
        log_p = [plain_log_p(model, ids[at : at + 20].tolist()) for at in (0, 20)]
        with pytest.raises(UnsupportedError, match="no tokenizer"):
            perplexity(model, TEXT, n_ctx=20)
    scores = [-log_p[k][i - 1, ids[20 * k + i]] for k in (0, 1) for i in range(11, 20)]
    assert result.perplexity == pytest.approx(math.exp(np.mean(scores)), rel=1e-9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_ctx": 2}, "n_ctx to be an integer from 3 to 64"),
        ({"n_ctx": 65}, "n_ctx"),
        ({"n_ctx": "16"}, "n_ctx"),
        ({"n_ctx": 1, "stride": 1}, "n_ctx to be an integer from 2"),
        ({"n_ctx": 16, "stride": 0}, "stride to be an integer from 1 to 15"),
        ({"n_ctx": 16, "stride": 16}, "stride"),
        ({"n_ctx": 16, "stride": 1.5}, "stride"),
        ({"n_windows": 0}, "n_windows"),
        ({"n_ctx": 3, "n_windows": 1}, "two tokens to score"),
        ({"text": ""}, "found 1 tokens"),
        ({"text": "Once upon a time"}, "at least one window of 64 tokens"),
        ({"text": []}, "found 0 tokens"),
        ({"text": [[1, 2], [3]]}, "list of token ids"),
        ({"text": [1.5] * 100}, "list of token ids"),
        ({"text": [1, 4096] * 100}, "from 0 to 4095"),
        ({"text": [1, -1] * 100}, "from 0 to 4095"),
        ({"text": "\ud800" * 100}, "UTF-8"),
    ],
)
def test_wrong_arguments_are_refused(f32: Mixtral, options: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {"text": TEXT * 2, "n_ctx": 64} | options
    with pytest.raises(InvalidArgumentError, match=words):
        perplexity(f32, **arguments)


def test_a_perplexity_beyond_float64_is_an_error(f32: Mixtral, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.zeros((16, 4096), np.float32)
    logits[:, 0] = 800
    monkeypatch.setattr(Mixtral, "logits", lambda _, tokens, first: logits[first : len(tokens)])
    with pytest.raises(NonFiniteError, match=r"exp\(800"):
        perplexity(f32, TEXT, n_ctx=16)


# --- Divergence ---------------------------------------------------------------------------------------------------


def test_a_model_does_not_diverge_from_itself(f32: Mixtral, base: Path) -> None:
    result = perplexity(f32, TEXT, n_ctx=16, kl_against=base)
    assert result.kl is not None
    assert result.kl.maximum < 2e-8  # the file's 16 bits
    assert (result.kl.top1_agreement, result.kl.ratio, result.kl.ratio_error) == (1.0, 1.0, 0.0)
    assert result.kl.base_perplexity == result.perplexity


def test_divergence_equals_a_plain_computation(f32: Mixtral, q4_0: Mixtral, base: Path) -> None:
    result = perplexity(q4_0, TEXT, n_ctx=16, kl_against=base)
    assert result.kl is not None
    kl, same, gain = [], [], []
    for window in plain_windows(f32.tokenize(TEXT), 16, 16):
        p, q = plain_log_p(f32, window), plain_log_p(q4_0, window)
        for i in range(8, 15):
            kl.append(float((np.exp(p[i]) * (p[i] - q[i])).sum()))
            same.append(p[i].argmax() == q[i].argmax())
            gain.append(p[i][window[i + 1]] - q[i][window[i + 1]])
    found = result.kl
    assert found.mean == pytest.approx(np.mean(kl), abs=2e-6)
    assert found.standard_error == pytest.approx(np.std(kl, ddof=1) / math.sqrt(len(kl)), abs=2e-6)
    assert found.median == pytest.approx(np.median(kl), abs=1e-5)
    assert found.p99 == pytest.approx(np.percentile(kl, 99), abs=1e-5)
    assert found.maximum == pytest.approx(max(kl), abs=1e-5)
    assert found.top1_agreement == pytest.approx(np.mean(same), abs=1e-12)
    assert found.ratio == pytest.approx(math.exp(np.mean(gain)), rel=1e-9)
    assert found.ratio_error == pytest.approx(found.ratio * np.std(gain, ddof=1) / math.sqrt(len(gain)), rel=1e-9)
    assert result.perplexity == pytest.approx(found.ratio * found.base_perplexity, rel=1e-9)


def test_four_bits_lose_a_little_and_eight_bits_less(q4_0: Mixtral, tiny_q8_0: Path, base: Path) -> None:
    four = perplexity(q4_0, TEXT, n_ctx=16, kl_against=base).kl
    with Mixtral(tiny_q8_0, n_ctx=64) as q8_0:
        eight = perplexity(q8_0, TEXT, n_ctx=16, kl_against=base).kl
    assert four is not None
    assert eight is not None
    assert 1e-3 < four.mean < 0.05
    assert 1e-6 < eight.mean < four.mean / 5
    assert eight.top1_agreement > 0.95
    assert four.ratio == pytest.approx(1, abs=0.1)


def test_keys_and_values_in_q8_0_lose_little(f32: Mixtral, tiny_f32: Path) -> None:
    with Mixtral(tiny_f32, n_ctx=64, n_threads=2, kv_type="q8_0") as model:
        found, expected = (perplexity(m, TEXT, n_ctx=32).perplexity for m in (model, f32))
    assert found != expected
    assert abs(found / expected - 1) < 0.03


def test_a_base_serves_for_its_first_windows(f32: Mixtral, base: Path) -> None:
    result = perplexity(f32, TEXT, n_ctx=16, n_windows=3, kl_against=base)
    assert result.kl is not None
    assert (result.kl.maximum < 2e-8, result.n_tokens) == (True, 21)


def test_flat_and_spiked_predictions_survive_the_file(tmp_path: Path) -> None:
    """Rows of equal logits, of one token far above the others, and of values that spread beyond
    what the file tells apart.
    """
    logits = np.zeros((3, 100), np.float32)
    logits[1, 7] = 500
    logits[2] = np.linspace(-200, 0, 100)
    log_p = log_softmax(logits)
    windows = Windows.cut(np.zeros(4, np.int32), 4, 3, None, None, longest=10)
    with writing_base(tmp_path / "b", windows, 100) as writer:
        writer.write(log_p, -log_p[:, 7])
    with BaseReader(tmp_path / "b", windows, 100) as reader:
        kl, same, scores = reader.compare(log_p)
    assert (kl < 1e-8).all()
    assert same.all()
    assert (scores == -log_p[:, 7]).all()


def test_a_base_that_its_reader_would_refuse_does_not_appear(tmp_path: Path) -> None:
    windows = Windows.cut(np.zeros(4, np.int32), 4, 3, None, None, longest=10)
    with (
        pytest.raises(
            OutputError,
            match=r"b: expected to write a file that can be read again.*base of \d+ bytes, as its head says",
        ),
        writing_base(tmp_path / "b", windows, 100) as writer,
    ):
        writer.write(np.zeros((2, 100)), np.zeros(2))  # one record too few
    assert list(tmp_path.iterdir()) == []


# --- Base files ---------------------------------------------------------------------------------------------------


def compare(model: Mixtral, path: Path, text: str = TEXT, **options: Any) -> Perplexity:
    return perplexity(model, text, kl_against=path, **({"n_ctx": 16} | options))


def test_the_file_has_the_documented_size_and_precision(f32: Mixtral, base: Path) -> None:
    n = len(f32.tokenize(TEXT)) // 16
    assert base.stat().st_size == 16 + 6 * 8 + 4 * 16 * n + n * 7 * (2 * 4096 + 28)
    record = np.dtype([("score", "<f8"), ("low", "<f8"), ("scale", "<f8"), ("top", "<i4"), ("q", "<u2", (4096,))])
    first = np.fromfile(base, record, 7, offset=64 + 4 * 16 * n)
    window = f32.tokenize(TEXT)[:16]
    log_p = plain_log_p(f32, window)[8:15]
    assert np.abs(first["low"][:, None] + first["scale"][:, None] * first["q"] - log_p).max() < 0.00025
    assert (first["top"] == log_p.argmax(axis=1)).all()
    assert np.abs(first["score"] + log_p[np.arange(7), window[9:16]]).max() < 1e-9


def test_a_base_of_another_text_window_or_vocabulary_is_refused(f32: Mixtral, base: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"same tokens, \d+ at position 1, found"):
        compare(f32, base, TEXT.replace("Once", "Twice"))
    different: list[dict[str, Any]] = [{"n_ctx": 17}, {"stride": 7}, {"stride": 15}]
    for options in different:
        with pytest.raises(InvalidArgumentError, match="base of windows of"):
            compare(f32, base, **options)
    with pytest.raises(InvalidArgumentError, match=r"at least \d+ windows, found 5"):
        compare(f32, base, TEXT * 2)
    make_checkpoint(tmp_path / "other", Shape(n_vocab=300, n_ctx=32), seed=1)
    quantize(tmp_path / "other", tmp_path / "other.gguf", "f32", progress=False)
    with (
        Mixtral(tmp_path / "other.gguf") as other,
        pytest.raises(InvalidArgumentError, match="vocabulary of 300 tokens"),
    ):
        perplexity(other, [5] * 64, n_ctx=16, kl_against=base)


def test_what_is_no_base_is_refused(f32: Mixtral, base: Path, tiny_q8_0: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="found nothing"):
        compare(f32, tmp_path / "missing")
    with pytest.raises(InvalidArgumentError, match="regular file"):
        compare(f32, tmp_path)
    with pytest.raises(InvalidArgumentError, match="begins with"):
        compare(f32, tiny_q8_0)
    data = base.read_bytes()
    for n in (0, 63, 64, 1000, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:n])
        with pytest.raises(InvalidArgumentError, match="bytes"):
            compare(f32, tmp_path / "cut")
    (tmp_path / "long").write_bytes(data + b"\0")
    with pytest.raises(InvalidArgumentError, match="bytes"):
        compare(f32, tmp_path / "long")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("score", math.nan),
        ("score", -1),
        ("score", math.inf),
        ("low", 1),
        ("low", -1e9),
        ("scale", -1),
        ("scale", 1e300),
    ],
)
def test_impossible_records_are_refused_by_number(
    f32: Mixtral, base: Path, tmp_path: Path, field: str, value: float
) -> None:
    data = bytearray(base.read_bytes())
    offset = {"score": 0, "low": 8, "scale": 16}[field]
    n = len(f32.tokenize(TEXT)) // 16
    at = 64 + 4 * 16 * n + 10 * (2 * 4096 + 28) + offset
    data[at : at + 8] = np.array([value], "<f8").tobytes()
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(InvalidArgumentError, match="record 10 "):
        compare(f32, tmp_path / "bad")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 63), value=st.integers(0, 255), n=st.integers(1, 8))
def test_any_damage_to_the_head_is_refused(
    f32: Mixtral, base: Path, tmp_path: Path, at: int, value: int, n: int
) -> None:
    data = bytearray(base.read_bytes())
    damaged = data[:at] + bytes([value]) * min(n, 64 - at) + data[at + min(n, 64 - at) :]
    (tmp_path / "damaged").write_bytes(damaged)
    if damaged == data:
        return
    with pytest.raises(InvalidArgumentError, match="damaged: expected"):
        compare(f32, tmp_path / "damaged", n_windows=1)


def test_a_file_that_exists_is_not_overwritten(f32: Mixtral, base: Path) -> None:
    before = base.read_bytes()
    with pytest.raises(OutputError, match="new file"):
        perplexity(f32, TEXT, n_ctx=16, save_base=base)
    assert base.read_bytes() == before


def test_an_interrupted_base_leaves_nothing(f32: Mixtral, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))
    logits = Mixtral.logits

    def interrupted(*arguments: Any, **options: Any) -> NDArray[np.float32]:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return logits(*arguments, **options)

    monkeypatch.setattr(Mixtral, "logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        perplexity(f32, TEXT, n_ctx=16, save_base=tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_base_needs_a_directory_and_a_name_of_its_own(f32: Mixtral, tmp_path: Path) -> None:
    for path, words in ((tmp_path / "nodir" / "b", "create"), (tmp_path, "found a directory")):
        with pytest.raises(OutputError, match=words):
            perplexity(f32, TEXT, n_ctx=16, save_base=path)


def test_a_base_that_does_not_fit_the_disk_is_refused_at_once(
    f32: Mixtral, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    monkeypatch.setattr(Mixtral, "logits", None)
    with pytest.raises(OutputError, match="found 1000"):
        perplexity(f32, TEXT, n_ctx=16, save_base=tmp_path / "b")


# --- Long texts ---------------------------------------------------------------------------------------------------


def test_only_the_windows_asked_for_are_tokenized(f32: Mixtral, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 29 MB of text with one window, all was tokenized: 1.6 GB of memory."""
    monkeypatch.setattr("pymixtral.text.sentencepiece.PART", 200)
    parts = []
    whole = Mixtral.tokenize_parts

    def counted(model: Mixtral, text: str) -> Iterator[list[int]]:
        for part in whole(model, text):
            parts.append(len(part))
            yield part

    monkeypatch.setattr(Mixtral, "tokenize_parts", counted)
    want = perplexity(f32, f32.tokenize(TEXT), n_ctx=16, n_windows=2)
    found = perplexity(f32, TEXT + " and so on." * 1000, n_ctx=16, n_windows=2)
    assert (found.perplexity, found.n_tokens) == (want.perplexity, want.n_tokens)
    assert len(parts) == 1
    assert sum(parts) < 100


def test_a_text_in_parts_is_the_same_text(f32: Mixtral, monkeypatch: pytest.MonkeyPatch) -> None:
    want = perplexity(f32, TEXT, n_ctx=16)
    monkeypatch.setattr("pymixtral.text.sentencepiece.PART", 50)
    assert perplexity(f32, TEXT, n_ctx=16).perplexity == want.perplexity
