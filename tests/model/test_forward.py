"""The forward pass equals the oracle's, however a text is cut, batched, shared or spread over threads."""

from __future__ import annotations

import numpy as np
import pytest

from pymixtral.errors import InvalidArgumentError
from pymixtral.ops import prefetch
from pymixtral.reference import oracle
from support.passes import MODELS, Load, loader, run
from support.variants import ISAS, generator

every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    return loader(tmp_path_factory)


@every_model
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_a_whole_text(load: Load, name: str, isa: str, n_threads: int) -> None:
    e = load(name)
    model = e.model(isa, n_threads)
    kv = model.new_cache(len(e.tokens), "f32")
    sequence = kv.new_sequence()
    hidden = run(model, kv, sequence, e.tokens)
    np.testing.assert_array_equal(hidden, e.hidden())
    assert sequence.length == len(e.tokens)
    last = hidden[-2:]
    np.testing.assert_array_equal(model.logits(last), oracle.logits(last, e.weights, e.config))
    model.close()


@pytest.mark.parametrize("name", ["tiny-q4_0", "tiny-f16", "odd-q8_0"])
@pytest.mark.parametrize("isa", ISAS)
def test_no_bit_depends_on_the_prefetch_hint(load: Load, name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on the hints that the environment asks for, nor on their turns while they are measured."""
    e = load(name)
    for hint in ("near", "far", "near:64"):
        monkeypatch.setenv("PYMIXTRAL_PREFETCH", hint)
        model = e.model(isa)
        kv = model.new_cache(len(e.tokens), "f32")
        np.testing.assert_array_equal(run(model, kv, kv.new_sequence(), e.tokens[:20], 1), e.hidden()[:20])
        assert model.context.prefetch == hint
        model.close()
    monkeypatch.delenv("PYMIXTRAL_PREFETCH")
    monkeypatch.setattr(prefetch, "_chosen", {})
    monkeypatch.setattr(prefetch, "_SHORTEST", 0.0)
    monkeypatch.setattr(prefetch, "_FAULTS", 1 << 60)
    model = e.model(isa)
    kv = model.new_cache(len(e.tokens), "f32")
    sequence = kv.new_sequence()
    used = [model.context.prefetch]
    monkeypatch.setattr(prefetch, "_TURNS", 4)
    for i in range(16):
        np.testing.assert_array_equal(run(model, kv, sequence, e.tokens[i : i + 1]), e.hidden()[i : i + 1])
        used.append(model.context.prefetch)
    assert used[:16] == used[:4] * 4
    assert set(used) == {"near", "far", "near:4096", "near:16384"}
    assert prefetch._chosen == {(isa, 2): used[16]}
    model.close()


def test_only_whole_passes_of_one_token_choose_the_prefetch_hint(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYMIXTRAL_PREFETCH", raising=False)
    monkeypatch.setattr(prefetch, "_chosen", {})
    monkeypatch.setattr(prefetch, "_SHORTEST", 0.0)
    monkeypatch.setattr(prefetch, "_FAULTS", 1 << 60)
    e = load("odd-q8_0")
    model = e.model()
    kv = model.new_cache(len(e.tokens), "f32")
    sequence = kv.new_sequence()
    hint = model.context.prefetch
    for _ in range(4):
        model.forward(e.tokens[:2], [(sequence, 2)], kv)
        model.forward(e.tokens[:1], [(sequence, 1)], kv, layers=range(1))
        model.forward(e.tokens[:1], [(sequence, 1)], kv, rows=slice(1, None))
        assert model.context.prefetch == hint
    model.forward(e.tokens[:1], [(sequence, 1)], kv)
    assert model.context.prefetch != hint
    model.close()


def test_texts_in_turn(load: Load) -> None:
    """What a model keeps between passes, such as cosines and pages, is that of the text at hand:
    two texts at different positions, in caches of their own, one of them forgotten and written
    anew, token by token over the end of a page.
    """
    e = load("odd-q8_0")
    model = e.model()
    caches = [model.new_cache(len(e.tokens), "f32") for _ in range(2)]
    ahead, behind = (kv.new_sequence() for kv in caches)
    run(model, caches[0], ahead, e.tokens[:60])
    for i in range(60, 70):
        np.testing.assert_array_equal(run(model, caches[0], ahead, e.tokens[i : i + 1]), e.hidden()[i : i + 1])
        if i == 65:
            behind.truncate(0)
        first = behind.length
        np.testing.assert_array_equal(
            run(model, caches[1], behind, e.tokens[first : first + 3]), e.hidden()[first : first + 3]
        )


@pytest.mark.parametrize("seed", range(3))
def test_passes_in_any_order(load: Load, seed: int) -> None:
    """Single tokens, pieces and batches of forked, truncated and freed texts in two caches, with
    failed passes between.
    """
    e = load("odd-q8_0")
    model, random, n = e.model(), generator(9, seed), len(e.tokens)
    texts = [(e.tokens, e.hidden()), *((e.rotated(i), e.hidden(np.float32, i)) for i in (1, 2))]
    caches = [model.new_cache(6 * 192, "f32") for _ in range(2)]
    live = [(0, caches[0].new_sequence())]  # of texts
    for step in range(250):
        i, sequence = live[random.integers(len(live))]
        kind = step % 10
        if kind == 0 and len(live) < 6:
            live.append((int(random.integers(3)), caches[step // 10 % 2].new_sequence()))
        elif kind == 1 and len(live) < 6:
            live.append((i, sequence.fork()))
        elif kind == 2:
            sequence.truncate(int(random.integers(sequence.length + 1)))
        elif kind == 3 and len(live) > 3:
            sequence.free()
            live.remove((i, sequence))
        elif kind == 4:
            with pytest.raises(InvalidArgumentError):
                model.forward(np.array([1, -1], np.int32), [(sequence, 2)], sequence.cache)
        else:
            together = [
                (j, other) for j, other in live if other.cache is sequence.cache and (kind == 5 or other is sequence)
            ]
            sizes = [min(int(random.choice([1, 1, 1, 2, 7, 70])), n - other.length) for _, other in together]
            parts = [
                (j, slice(other.length, other.length + size)) for (j, other), size in zip(together, sizes, strict=True)
            ]
            tokens, want = (np.concatenate([texts[j][k][part] for j, part in parts]) for k in range(2))
            if len(tokens):
                batch = [(other, size) for (_, other), size in zip(together, sizes, strict=True)]
                np.testing.assert_array_equal(model.forward(tokens, batch, sequence.cache), want)
    model.close()


@pytest.mark.parametrize("name", ["tiny-q4_0", "odd-q8_0", "dense-q4_0"])
@pytest.mark.parametrize("isa", ISAS)
def test_a_cache_of_f16(load: Load, name: str, isa: str) -> None:
    e = load(name)
    model = e.model(isa, 3)
    kv = model.new_cache(len(e.tokens))
    assert kv.k.dtype == np.float16
    np.testing.assert_array_equal(run(model, kv, kv.new_sequence(), e.tokens), e.hidden(np.float16))
    model.close()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_a_cache_of_q8_0(load: Load, isa: str, size: int) -> None:
    e = load("tiny-q4_0")
    model = e.model(isa, 3)
    kv = model.new_cache(len(e.tokens), "q8_0")
    assert kv.k.dtype == np.uint8
    np.testing.assert_array_equal(run(model, kv, kv.new_sequence(), e.tokens, size), e.hidden(oracle.Q8_0))
    model.close()


@pytest.mark.parametrize("name", ["tiny-q4_0", "tiny-f16", "odd-f32", "dense-q4_0", "many-q8_0"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_text_in_pieces(load: Load, name: str, isa: str, size: int) -> None:
    e = load(name)
    model = e.model(isa)
    kv = model.new_cache(len(e.tokens), "f32")
    np.testing.assert_array_equal(run(model, kv, kv.new_sequence(), e.tokens, size), e.hidden())
    model.close()


@pytest.mark.parametrize("name", ["tiny-q4_0", "odd-q8_0", "dense-q4_0"])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_texts_together_and_alone(load: Load, name: str, n_threads: int) -> None:
    """Prompts, continuations and single tokens of four sequences in the same passes."""
    e = load(name)
    model = e.model(n_threads=n_threads)
    kv = model.new_cache(5 * 192, "f32")
    texts = [e.tokens, e.rotated(1), e.rotated(2), e.tokens]
    want = [e.hidden(), e.hidden(np.float32, 1), e.hidden(np.float32, 2), e.hidden()]
    sequences = [kv.new_sequence() for _ in texts]
    n = len(e.tokens)
    for counts in ([30, 0, 1, n], [1, 33, 0, 0], [1, 1, 1, 0], [n - 32, n - 34, n - 2, 0]):
        batch = [(s, count) for s, count in zip(sequences, counts, strict=True) if count or s is not sequences[0]]
        first = [s.length for s in sequences]
        tokens = np.concatenate([t[i : i + count] for t, i, count in zip(texts, first, counts, strict=True)])
        rows = np.concatenate([w[i : i + count] for w, i, count in zip(want, first, counts, strict=True)])
        np.testing.assert_array_equal(model.forward(tokens, batch, kv), rows)
    assert [s.length for s in sequences] == [n] * 4
    model.close()


@pytest.mark.parametrize("name", ["tiny-q8_0", "odd-f32", "dense-q4_0"])
def test_a_prefix_forked_or_computed_again(load: Load, name: str) -> None:
    e = load(name)
    model = e.model()
    kv = model.new_cache(4 * 192, "f32")
    half = len(e.tokens) // 2
    first = kv.new_sequence()
    run(model, kv, first, e.tokens[:half])
    second = first.fork()
    for sequence, text, want in ((first, e.tokens, e.hidden()), (second, e.rotated(1), e.hidden(np.float32, 1))):
        np.testing.assert_array_equal(run(model, kv, sequence, text[half:], 7), want[half:])
    first.truncate(half)  # the other text on what the first one left behind
    np.testing.assert_array_equal(run(model, kv, first, e.rotated(1)[half:]), e.hidden(np.float32, 1)[half:])
    model.close()


@pytest.mark.parametrize("name", ["tiny-q4_0", "odd-q8_0"])
def test_layers_in_two_calls(load: Load, name: str) -> None:
    """As two machines would share them: each its range of layers and its own cache."""
    e = load(name)
    front, back = e.model(n_threads=1), e.model(n_threads=3)
    caches = [model.new_cache(len(e.tokens), "f32") for model in (front, back)]
    sequences = [kv.new_sequence() for kv in caches]
    n_layers, rows = e.config.n_layers, []
    for part in np.split(e.tokens, [5, 6, 40]):
        hidden = front.forward(part, [(sequences[0], len(part))], caches[0], layers=range(2))
        before = hidden.copy()
        rows.append(back.forward(hidden, [(sequences[1], len(part))], caches[1], layers=range(2, n_layers)))
        np.testing.assert_array_equal(hidden, before)
    np.testing.assert_array_equal(np.concatenate(rows), e.hidden())
    assert not caches[0].k[2:].any()
    assert not caches[1].k[:2].any()
    front.close()
    back.close()


@pytest.mark.parametrize("name", ["tiny-q4_0", "dense-q4_0"])
def test_no_layers_at_all(load: Load, name: str) -> None:
    """The embeddings alone, also in a pass whose experts would be counted."""
    e = load(name)
    model = e.model()
    kv = model.new_cache(len(e.tokens), "f32")
    want = oracle.embed(e.weights.embedding, e.tokens)
    for rows in (slice(None), slice(3, 9), np.array([1, 4])):
        sequence = kv.new_sequence()
        found = model.forward(e.tokens, [(sequence, len(e.tokens))], kv, layers=range(0), rows=rows)
        np.testing.assert_array_equal(found, want[rows])
        assert sequence.length == len(e.tokens)
        sequence.free()
    assert model.experts_read == 0
    model.close()


@pytest.mark.parametrize("name", ["tiny-q4_0", "odd-q8_0", "dense-q4_0"])
def test_some_rows(load: Load, name: str) -> None:
    """The others stay in the cache, for what follows."""
    e = load(name)
    model, want = e.model(), e.hidden()
    kv = model.new_cache(len(e.tokens), "f32")
    for rows in (
        slice(0, None),
        slice(9, None),
        slice(39, None),
        slice(40, None),
        slice(3, 17),
        slice(0, 40, 6),
        np.array([0, 7, 39]),
    ):
        sequence = kv.new_sequence()
        np.testing.assert_array_equal(model.forward(e.tokens[:40], [(sequence, 40)], kv, rows=rows), want[:40][rows])
        np.testing.assert_array_equal(run(model, kv, sequence, e.tokens[40:]), want[40:])
        sequence.free()
    model.close()
