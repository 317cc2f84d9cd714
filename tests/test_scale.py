"""The model on paper of benchmarks/scale*.py: its fleet agrees with the closed forms and with the engine."""

from __future__ import annotations

import sys
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymixtral import Mixtral
from pymixtral.model.kv_cache import n_pages_for
from pymixtral.ops import PAGE
from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from scale import MACHINES, markdown, paper, summary
from scale_cost import MEASURED, SHARE, UNIFORM, Cost, Machine, cost, distinct, machines, named
from scale_experiments import EXPERIMENTS, Size
from scale_fleet import Fleet
from scale_measured import checks
from scale_routing import Routing
from scale_tally import Histogram, Tally
from scale_workload import CHAT, SINGLE, Conversation, Text, Workload, questions

SMALL = Workload("small", tenants=2, system=40, message=50, answer=20, turns=3.0, think=5.0, context=512)


@pytest.fixture(scope="module")
def one() -> Cost:
    return cost("8x7b", "q4_k_m", named("r8a.8xlarge"))


def drained(fleet: Fleet, until: float) -> Tally:
    fleet.run(until)
    return fleet.drain()


def numbers(tally: Tally) -> tuple[object, ...]:
    """All that a tally has."""
    return (
        *(value for name, value in vars(tally).items() if name not in ("first", "between")),
        *(histogram.quantile(q) for histogram in (tally.first, tally.between) for q in (0.1, 0.5, 0.9, 0.99, 1.0)),
        len(tally.first),
        len(tally.between),
    )


@pytest.mark.parametrize(("prompt", "answer"), [(1, 1), (1, 40), (512, 3), (700, 100), (2000, 30)])
@pytest.mark.parametrize("stages", [1, 2, 4])
def test_one_text_on_one_machine_takes_what_the_closed_form_says(prompt: int, answer: int, stages: int) -> None:
    one = cost("8x7b", "q4_k_m", named("r8a.8xlarge"), stages=stages)
    fleet = Fleet(one, 1, SINGLE, 0, n_pages=200, leaps=False)
    (text,) = questions([(prompt, answer)])
    fleet.ask(text)
    fleet.drain()
    assert text.last == pytest.approx(one.alone(prompt, answer), rel=1e-12)
    assert fleet.tally.finished == 1


@pytest.mark.parametrize("n", [2, 8, 16])
def test_texts_that_only_generate_are_as_fast_as_the_closed_form_says(one: Cost, n: int) -> None:
    fleet = Fleet(one, 1, SINGLE, 0, n_pages=400, max_running=n)
    for text in questions([(1, 513)] * n):
        fleet.ask(text)
    fleet.drain()
    speed = n * 513 / fleet.now
    assert speed == pytest.approx(one.generation(n, 257), rel=0.01)


@given(st.integers(0, 2**32), st.sampled_from([12, 20, 60]), st.sampled_from([2, 4, 16]))
@settings(deadline=None, max_examples=30)
def test_leaps_change_nothing(one: Cost, seed: int, n_pages: int, max_running: int) -> None:
    found = []
    for leaps in (True, False):
        fleet = Fleet(one, 2, SMALL, 0.5, seed=seed, n_pages=n_pages, max_running=max_running, leaps=leaps)
        found.append((numbers(drained(fleet, 40)), fleet.now))
    assert found[0][0] == found[1][0]
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-12)


@given(
    st.integers(0, 2**32),
    st.sampled_from(["random", "two", "least", "prefix", "conversation"]),
    st.sampled_from([0.0, 30.0]),
    st.sampled_from([10, 60]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 3]),
)
@settings(deadline=None, max_examples=25)
def test_no_question_and_no_page_is_lost(
    seed: int, policy: str, life: float, n_pages: int, stages: int, fronts: int
) -> None:
    one = cost("8x7b", "q4_k_m", named("r8a.8xlarge"), stages=stages)
    routing = Routing(policy, full=2, fronts=fronts)
    fleet = Fleet(one, 4, SMALL, 0.5, seed=seed, n_pages=n_pages, life=life, repair=5, routing=routing, max_running=4)
    fleet.run(30)
    assert fleet.tally.asked == fleet.tally.finished + fleet.n_texts
    assert fleet.router.load.shape == (fronts, 4)
    assert fleet.router.load.sum(0).tolist() == [engine.n_texts for engine in fleet.engines]
    tally = fleet.drain()
    assert tally.asked == tally.finished == len(tally.first) - tally.again
    assert fleet.n_texts == 0
    assert not fleet.router.load.any()
    for engine in fleet.engines:
        pages = engine.pages
        assert pages.n_available() == pages.cache.n_pages
        assert not engine.scheduler.running
        assert not engine.scheduler.waiting


def test_a_seed_gives_the_same_and_another_one_does_not(one: Cost) -> None:
    def run(seed: int) -> tuple[object, ...]:
        return numbers(Fleet(one, 8, CHAT, 0.3, seed=seed, n_pages=400, life=200).run(100))

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_the_engine_computes_the_tokens_and_passes_of_the_simulation(one: Cost) -> None:
    """Conversations, one question after the other, with the tokens that the demo model drew."""
    rng = np.random.default_rng(0)
    fleet = Fleet(one, 1, SINGLE, 0, n_pages=132, n_batch=96)
    with Mixtral(n_ctx=1024, n_batch=96, n_threads=1) as model:
        histories: list[list[int]] = [[], []]
        for number, n in [(0, 200), (1, 70), (0, 30), (0, 130), (1, 1)]:
            prompt = histories[number] + rng.integers(3, 4000, n).tolist()
            tokens = model.generate(prompt, max_tokens=40, ignore_eos=True, seed=1).tokens
            histories[number] = prompt + list(tokens)
            ids = np.array(histories[number], np.int32)
            fleet.ask(Text(Conversation(number, ids, [(len(prompt), len(tokens))]), 0, fleet.now))
            fleet.drain()
            stats, tally = model.core.engine.stats(), fleet.tally
            assert (stats.passes, stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (
                (tally.passes, tally.prompt, tally.cached, tally.generated)
            )


def test_short_of_pages_texts_give_theirs_back_and_all_end(one: Cost) -> None:
    fleet = Fleet(one, 1, SMALL, 0, n_pages=9, max_running=8)
    for text in questions([(100, 200)] * 6):
        fleet.ask(text)
    tally = fleet.drain()
    assert tally.preempted > 0
    assert tally.finished == 6
    assert tally.generated == 6 * 200


def test_a_conversation_stays_where_its_pages_are(one: Cost) -> None:
    hits = {}
    for policy in ("random", "conversation"):
        fleet = Fleet(one, 30, CHAT, 0.6, seed=1, n_pages=600, routing=Routing(policy))
        hits[policy] = drained(fleet, 200).hits
    assert hits["conversation"] > hits["random"] + 0.2


def test_a_failed_machine_gives_its_questions_to_others(one: Cost) -> None:
    fleet = Fleet(one, 4, SMALL, 0.5, seed=3, n_pages=60, life=15, repair=10)
    fleet.run(100)
    assert fleet.tally.retried > 0
    tally = fleet.drain()
    assert tally.asked == tally.finished


def test_fronts_that_know_their_own_texts_alone_load_machines_less_evenly(one: Cost) -> None:
    busiest = {}
    for fronts in (1, 40):
        fleet = Fleet(one, 40, SINGLE, 0, seed=1, n_pages=400, routing=Routing("two", fronts=fronts))
        for text in questions([(50, 20)] * 160):
            fleet.ask(text)
        busiest[fronts] = max(engine.n_texts for engine in fleet.engines)
    assert 4 <= busiest[1] < busiest[40]


@given(st.lists(st.floats(1e-7, 1e6), min_size=1, max_size=20))
@settings(deadline=None, max_examples=50)
def test_one_number_is_counted_as_many_are(values: list[float]) -> None:
    found = Histogram(), Histogram()
    found[0].add(np.array(values))
    for value in values:
        found[1].add_one(value)
    for q in (0.01, 0.3, 1.0):
        assert found[0].quantile(q) == pytest.approx(found[1].quantile(q), rel=0.011)


def test_experts_that_are_read() -> None:
    assert [distinct(UNIFORM, 1), distinct(MEASURED, 1)] == pytest.approx([2, 2])
    assert distinct(UNIFORM, 4) == pytest.approx(8 * (1 - 0.75**4))
    assert MEASURED.sum() == pytest.approx(2)


@given(st.integers(1, 300))
@settings(deadline=None, max_examples=30)
def test_more_tokens_never_take_less_time(n: int) -> None:
    one = cost("8x7b", "q4_k_m", named("r8a.4xlarge"))
    assert one.seconds(n, 100 * n, []) < one.seconds(n + 1, 100 * (n + 1), [])
    assert one.seconds(0, 0, [(n, 0, True)]) < one.seconds(0, 0, [(n + 1, 0, True)])
    assert one.passes(n, np.array([100.0 * n]))[0] == one.seconds(n, 100 * n, [])


def test_weights_that_do_not_fit_are_read_from_the_disk() -> None:
    fits, short = (Machine("one", 8, 8, 40e9, gib << 30) for gib in (64, 24))
    assert cost("8x7b", "q4_k_m", fits).missing == 0
    slow = cost("8x7b", "q4_k_m", short)
    assert 0 < slow.missing < 1
    assert slow.n_pages < 0
    assert slow.generation(1, 100) < 0.5 * cost("8x7b", "q4_k_m", fits).generation(1, 100)
    with pytest.raises(ValueError, match="expected room for a text of 8192 tokens"):
        Fleet(slow, 1, CHAT, 1)


def test_a_fleet_whose_caches_take_too_much_is_refused(one: Cost) -> None:
    with pytest.raises(ValueError, match="expected caches of at most 4 GiB"):
        Fleet(one, 1000, SINGLE, 1)


def test_a_name_that_is_not_in_the_table() -> None:
    assert named("r8a.2xlarge") in machines()
    with pytest.raises(ValueError, match=r"expected an instance type with AMD Turin, found m8g\.xlarge"):
        named("m8g.xlarge")


def test_the_errors_are_those_that_the_chapter_admits() -> None:
    errors = [abs(check.error) for check in checks()]
    assert median(errors) < 0.07
    assert max(errors) < 0.5
    assert not any(np.isnan(errors))


def test_the_chapter_has_the_tables_of_the_program() -> None:
    """Those on paper: the simulated ones take minutes."""
    chapter = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    on_paper = [summary(), *paper(SHARE, None, MACHINES), EXPERIMENTS["knee"](Size())]
    for lines in map(markdown, on_paper):
        assert lines in chapter


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "batches"])
def test_an_experiment_fills_its_table(name: str) -> None:
    table = EXPERIMENTS[name](Size(machines=2, many=200, seconds=20, warm=20))
    assert table.rows
    assert {len(row) for row in table.rows} == {len(table.head)}


def test_a_price_stands_in_place_of_hours() -> None:
    hours, prices = (paper(SHARE, price, ("r8a.8xlarge",))[1] for price in (None, 2.0))
    assert float(prices.rows[0][2]) == pytest.approx(2 * float(hours.rows[0][2]), rel=0.01)


def test_pages_of_a_text() -> None:
    (text,) = questions([(100, 20)])
    assert (text.n_ids, text.n_left, n_pages_for(len(text.ids))) == (100, 20, -(-120 // PAGE))
