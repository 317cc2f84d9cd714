"""The choice of a prefetch hint: what it measures, what it leaves out, and when it is fixed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pymixtral import ops
from pymixtral.errors import InvalidArgumentError
from pymixtral.ops import prefetch
from pymixtral.ops.prefetch import PrefetchTrial


def test_what_the_environment_asks_for_is_quoted_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYMIXTRAL_PREFETCH", "near\n\x1b[31m" + "x" * 5000)
    with pytest.raises(InvalidArgumentError, match="expected PYMIXTRAL_PREFETCH") as caught:
        prefetch.asked_prefetch()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_cpuinfo_of_any_bytes(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    content = b"vendor_id : AuthenticAMD\ncpu family : 25\nmodel name : \xff\xfe\n"
    (tmp_path / "proc/cpuinfo").write_bytes(content)
    assert prefetch.default_prefetch(tmp_path) == "far"


class Machine:
    """Whose passes take the seconds, and meet the pages, that a test says."""

    def __init__(self) -> None:
        self.now, self.pages = 100.0, 0

    def run(self, trial: PrefetchTrial, seconds: float, pages: int = 0) -> None:
        trial.begin()
        self.now += seconds
        self.pages += pages
        trial.end()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.delenv("PYMIXTRAL_PREFETCH", raising=False)
    monkeypatch.setattr(prefetch, "_chosen", {})
    monkeypatch.setattr(prefetch.time, "perf_counter", lambda: made.now)
    monkeypatch.setattr(prefetch, "_faults", lambda: made.pages)
    monkeypatch.setattr(prefetch, "default_prefetch", lambda: "near")
    return made


@pytest.fixture
def ctx() -> Iterator[ops.Context]:
    with ops.Context(1) as made:
        yield made


ALL = ["near", "far", "near:4096", "near:16384"]


def measure(
    machine: Machine,
    trial: PrefetchTrial,
    ctx: ops.Context,
    near: float,
    far: float,
    n: int = 24,
    earlier: float | None = None,
) -> list[str]:
    """The hints of n passes. earlier: seconds with near:16384; None: as with near."""
    seconds = {"far": far, "near:16384": near if earlier is None else earlier}
    hints = []
    for _ in range(n):
        hints.append(ctx.prefetch)
        machine.run(trial, seconds.get(ctx.prefetch, near))
    return hints


@pytest.mark.parametrize(("near", "far", "want"), [(0.10, 0.06, "far"), (0.06, 0.10, "near"), (0.100, 0.099, "near")])
def test_the_candidates_take_turns_and_the_fastest_one_stays(
    machine: Machine, ctx: ops.Context, near: float, far: float, want: str
) -> None:
    trial = PrefetchTrial(ctx)
    assert measure(machine, trial, ctx, near, far) == ALL * 6
    assert measure(machine, trial, ctx, far, near, 40) == [want] * 40  # nothing is measured any more


def test_how_early_to_ask_is_measured_too(machine: Machine, ctx: ops.Context) -> None:
    measure(machine, PrefetchTrial(ctx), ctx, 0.10, 0.09, earlier=0.06)
    assert ctx.prefetch == "near:16384"


def test_where_both_are_as_fast_the_default_stays(
    machine: Machine, ctx: ops.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "default_prefetch", lambda: "far")
    trial = PrefetchTrial(ctx)
    assert measure(machine, trial, ctx, 0.099, 0.100) == ["far", "near", "near:4096", "near:16384"] * 6
    assert ctx.prefetch == "far"


def test_one_slow_pass_decides_nothing(machine: Machine, ctx: ops.Context) -> None:
    trial = PrefetchTrial(ctx)
    machine.run(trial, 0.10)
    machine.run(trial, 5.0)
    measure(machine, trial, ctx, 0.10, 0.06, 22)
    assert ctx.prefetch == "far"


def test_passes_that_meet_new_pages_or_stay_in_the_caches_do_not_count(machine: Machine, ctx: ops.Context) -> None:
    trial = PrefetchTrial(ctx)
    for i in range(50):
        machine.run(trial, 0.10, pages=1000)
        if i < 10:
            machine.run(trial, 0.001)
        assert ctx.prefetch == "near"
    assert measure(machine, trial, ctx, 0.10, 0.06) == ALL * 6


def test_a_model_in_the_caches_is_not_watched_for_ever(machine: Machine, ctx: ops.Context) -> None:
    trial = PrefetchTrial(ctx)
    for _ in range(12):
        machine.run(trial, 0.001)
    assert measure(machine, trial, ctx, 0.10, 0.06) == ["near"] * 24


def test_a_choice_holds_for_its_instruction_set_and_number_of_threads(machine: Machine, ctx: ops.Context) -> None:
    measure(machine, PrefetchTrial(ctx), ctx, 0.10, 0.06)
    with ops.Context(1) as same, ops.Context(2) as other:
        again, first = PrefetchTrial(same), PrefetchTrial(other)
        assert measure(machine, again, same, 0.10, 0.06) == ["far"] * 24
        assert measure(machine, first, other, 0.10, 0.06) == ALL * 6


def test_the_environment_fixes_the_hint(machine: Machine, ctx: ops.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    for hint in ("far", "near", "far:4096"):
        monkeypatch.setenv("PYMIXTRAL_PREFETCH", hint)
        assert measure(machine, PrefetchTrial(ctx), ctx, 0.10, 0.06) == [hint] * 24
    monkeypatch.setenv("PYMIXTRAL_PREFETCH", "T1")
    with pytest.raises(InvalidArgumentError, match=r"PYMIXTRAL_PREFETCH to be 'near' or 'far', .* found 'T1'"):
        PrefetchTrial(ctx)


def test_a_context_refuses_other_hints(ctx: ops.Context) -> None:
    for text in ("T1", "", "near:", "near:-1", "near:1048577", "far:99999999", "near:4096 ", "near:\u0664"):
        with pytest.raises(InvalidArgumentError, match=r"'near' or 'far', .* found"):
            ctx.prefetch = text
    assert ctx.prefetch == "near"
    for text, shown in (("far:0", "far:0"), ("near:8192", "near"), ("far", "far")):
        ctx.prefetch = text
        assert ctx.prefetch == shown


@pytest.mark.parametrize(("text", "want"), [
    ("processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\n", "far"),
    ("processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\n", "near"),
    ("processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 25\n", "near"),
    ("processor\t: 0\nCPU part\t: 0xd0c\n", "near"),
    (None, "near"),
])  # fmt: skip
def test_the_default_is_far_on_zen_3_and_4(tmp_path: Path, text: str | None, want: str) -> None:
    if text is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/cpuinfo").write_text(text)
    assert ops.default_prefetch(tmp_path) == want
