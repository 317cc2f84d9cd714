"""Numbers of traces, against definitions in loops, on traces of all kinds."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymixtral import Mixtral, Routing
from pymixtral.errors import InvalidArgumentError, OutputError, UnsupportedError
from pymixtral.evaluation import routing as module
from pymixtral.evaluation.routing import Domain, chance, distance, save, trace, usage
from pymixtral.quantize import quantize
from support.checkpoints import Shape, make_checkpoint
from support.paths import DATA

TALE = (DATA / "texts" / "tale.txt").read_text(encoding="utf-8")
PROGRAM = (DATA / "texts" / "program.txt").read_text(encoding="utf-8")


def made(
    n_tokens: int, n_layers: int, n_experts: int, n_used: int, seed: int, *, skew: float = 1.0, least: float = 0.0
) -> Routing:
    """A trace of a router that prefers some experts, and leaves out those with too little weight."""
    draw = np.random.default_rng(seed)
    scores = draw.standard_normal((n_tokens, n_layers, n_experts)) + skew * draw.standard_normal((n_layers, n_experts))
    experts = np.argsort(-scores, axis=-1)[:, :, :n_used].astype(np.uint8)
    weights = np.sort(draw.dirichlet(np.ones(n_used), (n_tokens, n_layers)))[:, :, ::-1].astype(np.float16)
    weights[:, :, 1:][weights[:, :, 1:] < least] = 0
    return Routing(np.arange(n_tokens, dtype=np.int32), n_tokens, n_experts, experts, weights)


shapes = st.tuples(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(2, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.3, 1.0]),
)


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_the_numbers_are_those_of_their_definitions(shape: Any) -> None:
    lengths, n_layers, (n_experts, n_used), seed, least = shape
    windows = [made(n, n_layers, n_experts, n_used, seed + i, least=least) for i, n in enumerate(lengths)]
    found = usage(Domain("d", windows))
    n = sum(lengths)
    assert (found.n_tokens, found.n_layers, found.n_experts, found.n_experts_used) == (n, n_layers, n_experts, n_used)
    for layer in range(n_layers):
        used = [list(map(chosen, window.experts[:, layer], window.weights[:, layer])) for window in windows]
        rows = [row for window in used for row in window]
        first, second = Counter(row[0] for row in rows), Counter(row[1] for row in rows if len(row) > 1)
        either = Counter(expert for row in rows for expert in row)
        assert found.first[layer].tolist() == [first[e] / n for e in range(n_experts)]
        assert (found.second is None) == (n_used == 1)
        if found.second is not None:
            assert found.second[layer].tolist() == [second[e] / n for e in range(n_experts)]
        assert found.used[layer] == either.total() / n
        shares = [either[e] / either.total() for e in range(n_experts)]
        assert found.either[layer].tolist() == shares
        assert found.dead[layer] == [e for e in range(n_experts) if not either[e]]
        assert found.entropy[layer] == pytest.approx(-sum(p * math.log2(p) for p in shares if p), abs=1e-12)
        steps = [pair for window in used for pair in pairwise(window)]
        if steps:
            assert found.repeats_first[layer] == sum(a[0] == b[0] for a, b in steps) / len(steps)
            assert found.repeats_any[layer] == sum(bool({*a} & {*b}) for a, b in steps) / len(steps)
        else:
            assert math.isnan(found.repeats_first[layer])
            assert math.isnan(found.repeats_any[layer])
        pairs = Counter(pair for row in rows for pair in combinations(sorted(row), 2))
        for a in range(n_experts):
            for b in range(n_experts):
                assert found.pairs[layer, a, b] == pairs[min(a, b), max(a, b)] / n
        heights = [float(row[layer, 0]) for window in windows for row in window.weights]
        assert found.first_weight[layer] == pytest.approx(sum(heights) / n)
        for size in range(n_experts + 1):
            assert found.hits[layer, size] == least_recently_used(rows, size)
    json.dumps(found.plain(), allow_nan=False)


def chosen(experts: Any, weights: Any) -> list[int]:
    """The experts of a token that were not left out."""
    return [int(expert) for expert, weight in zip(experts, weights, strict=True) if weight > 0]


def least_recently_used(rows: list[list[int]], size: int) -> float:
    """The hit rate of a cache that drops what was used longest ago, by running one."""
    cache: list[int] = []
    hits = 0
    for expert in (expert for row in rows for expert in row):
        if expert in cache:
            hits += 1
            cache.remove(expert)
        cache.append(expert)
        del cache[: max(len(cache) - size, 0)]
    return hits / sum(map(len, rows))


def test_hit_rates_do_not_depend_on_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = Domain("d", [made(700, 3, 8, 2, 1)])
    whole = usage(domain).hits
    for size in (1, 2, 37):
        monkeypatch.setattr(module, "_ACCESSES", size)
        assert (usage(domain).hits == whole).all()


@pytest.mark.parametrize(("n_experts", "n_used"), [(8, 2), (8, 1), (5, 3), (4, 4), (2, 1)])
def test_a_router_by_lot_comes_near_chance(n_experts: int, n_used: int) -> None:
    expected = chance(n_experts, n_used)
    found = usage(Domain("lot", [made(20000, 1, n_experts, n_used, 7, skew=0)]))
    assert found.repeats_first[0] == pytest.approx(expected["repeats_first"], abs=0.02)
    assert found.repeats_any[0] == pytest.approx(expected["repeats_any"], abs=0.02)
    assert found.entropy[0] == pytest.approx(expected["entropy"], abs=0.01)
    for n in range(n_used, n_experts + 1):
        assert found.hits[0, n] == pytest.approx(expected["hits"][n], abs=0.02)


def test_chance_of_mixtral_is_the_papers() -> None:
    assert chance(8, 2)["repeats_first"] == 0.125
    assert chance(8, 2)["repeats_any"] == pytest.approx(1 - 6 / 8 * 5 / 7)
    assert chance(4, 3)["repeats_any"] == 1


def test_distance() -> None:
    a = usage(Domain("a", [Routing(np.zeros(2, np.int32), 2, 4, *pair([[0, 1], [0, 1]]))]))
    b = usage(Domain("b", [Routing(np.zeros(2, np.int32), 2, 4, *pair([[2, 3], [3, 2]]))]))
    c = usage(Domain("c", [Routing(np.zeros(2, np.int32), 2, 4, *pair([[2, 0], [1, 3]]))]))
    assert distance(a, a).tolist() == [0]
    assert distance(a, b).tolist() == [1]
    assert distance(a, c).tolist() == distance(c, a).tolist() == [0.5]


def pair(experts: list[list[int]]) -> tuple[Any, Any]:
    chosen = np.array(experts, np.uint8)[:, None]
    return chosen, np.full(chosen.shape, 0.5, np.float16)


# --- Texts ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def domains(tiny_q8_0: Path) -> list[Domain]:
    with Mixtral(tiny_q8_0) as model:
        return trace(model, [("tale", TALE), ("code", PROGRAM), ("tale", PROGRAM[:300])], n_ctx=64, n_windows=9)


def test_texts_are_cut_into_windows_that_begin_alike(tiny_q8_0: Path, domains: list[Domain]) -> None:
    tale, code = domains
    assert [domain.name for domain in domains] == ["tale", "code"]
    with Mixtral(tiny_q8_0) as model:
        ids, more = model.tokenize(TALE)[1:], model.tokenize(PROGRAM[:300])[1:]
        assert tale.joined("ids").tolist() == [*ids[: 9 * 63], *more]
        assert code.joined("ids").tolist() == model.tokenize(PROGRAM)[1 : 9 * 63 + 1]
        for i, window in enumerate(tale.windows[:9]):
            whole = model.routing([1, *ids[i * 63 : i * 63 + 63]])
            assert (window.experts == whole.experts[1:]).all()
            assert (window.weights == whole.weights[1:]).all()
            assert window.n_prompt == window.n_tokens == 63
        assert sum(w.n_tokens for w in tale.windows[9:]) == len(more)
        (whole_text,) = trace(model, [("tale", TALE)], full=True, progress=False)
        assert whole_text.joined("ids").tolist() == ids
        assert whole_text.joined("probabilities").shape == (len(ids), 4, 8)


def test_the_demo_uses_its_experts_by_domain_and_repeats_them(domains: list[Domain]) -> None:
    """The paper's finding, in the trained model of the tests."""
    tale, code = map(usage, domains)
    lot = chance(8, 2)
    assert abs(tale.repeats_first[0] - lot["repeats_first"]) < 0.05  # the first layer looks at tokens alone
    assert tale.repeats_first[-1] > 1.5 * lot["repeats_first"]
    assert tale.repeats_any[-1] > 1.2 * lot["repeats_any"]
    assert distance(tale, code).max() > 0.1


def test_a_saved_trace_has_all_of_it(domains: list[Domain], tmp_path: Path) -> None:
    path = tmp_path / "trace.npz"
    save(domains, path)
    with np.load(path, allow_pickle=False) as saved:
        assert saved["names"].tolist() == ["tale", "code"]
        assert int(saved["n_experts"]) == 8
        assert saved["ids"].dtype == saved["domain"].dtype == saved["window"].dtype == np.int32
        for i, domain in enumerate(domains):
            mine = saved["domain"] == i
            for name in ("ids", "experts", "weights"):
                assert saved[name].dtype == domain.joined(name).dtype
                assert (saved[name][mine] == domain.joined(name)).all()
        assert "probabilities" not in saved
        windows = [window for domain in domains for window in domain.windows]
        assert np.bincount(saved["window"]).tolist() == [window.n_tokens for window in windows]
    with pytest.raises(OutputError, match="force=True"):
        save(domains, path)
    save(domains, path, force=True)


def test_what_it_refuses(tiny_q8_0: Path, tmp_path: Path) -> None:
    with Mixtral(tiny_q8_0, n_ctx=128) as model:
        for texts, options, error in (
            ([], {}, "at least one text"),
            ([("empty", "")], {}, "empty: expected a text of at least one token"),
            ([("a", TALE)], {"n_ctx": 129}, "n_ctx"),
            ([("a", TALE)], {"n_ctx": 1}, "n_ctx"),
            ([("a", TALE)], {"n_ctx": 64, "n_windows": 0}, "n_windows"),
        ):
            with pytest.raises(InvalidArgumentError, match=error):
                trace(model, texts, **{"n_ctx": 64, **options})
    make_checkpoint(tmp_path / "hf", Shape(n_experts=0), seed=1)
    quantize(tmp_path / "hf", tmp_path / "m.gguf", "f32", progress=False)
    with Mixtral(tmp_path / "m.gguf") as model, pytest.raises(UnsupportedError, match=r"a dense one|no tokenizer"):
        trace(model, [("a", TALE)])
