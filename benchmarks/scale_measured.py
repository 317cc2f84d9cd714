"""What docs/performance.md measured beside what scale_cost.py and scale_fleet.py say."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scale_cost import MEASURED, UNIFORM, Cost, Machine, cost, distinct
from scale_fleet import Fleet
from scale_workload import SINGLE, Conversation, Text, questions

from pymixtral.inspection.published import MODELS


@dataclass(frozen=True)
class Check:
    """A figure.

    Attributes:
        section: of docs/performance.md.
        what: it is.
        unit: of both.
        measured: there.
        model: here.
        fitted: whether a parameter was fitted to it.
    """

    section: str
    what: str
    unit: str
    measured: float
    model: float
    fitted: bool = False

    @property
    def error(self) -> float:
        """By how much the model is above what was measured, as a part of that."""
        return self.model / self.measured - 1


def two_cores(gb_per_second: float) -> Machine:
    """Make the machine of docs/performance.md, with the bandwidth of a run."""
    return Machine("2 cores of Zen 5", 2, 2, gb_per_second * 1e9, 20 << 30)


_WHOLE = {  # prompt and generation in tokens/s, GB/s of the same run
    "q4_0": (480, 58.7, 75),
    "q4_k_m": (455, 52.6, 70),
    "q8_0": (451, 23.9, 47),
    "q6_k": (387, 47.1, 75),
    "q5_k_m": (412, 50.6, 72),
    "q3_k_m": (432, 46.8, 45),
    "q2_k": (415, 78.5, 75),
}

_SECOND = {  # prompt, generation, the part of the read bandwidth that this is
    "q4_0": (1183, 86.4, 0.62),
    "q4_k_m": (1104, 75.9, 0.74),
    "q8_0": (1125, 57.3, 0.77),
    "q6_k": (1115, 51.7, 0.80),
    "q2_k": (1134, 92.5, 0.78),
}

_CALLERS = {1: (39.4, 2.00), 2: (48.8, 3.50), 4: (66.2, 5.45), 8: (91.0, 6.83), 16: (133.4, 7.33)}
_CALLERS_BANDWIDTH = 47.7  # from the bytes, the speed and the part of the bound of each row, which give 47.4 to 48.5

_USED = {1: (1574, 116), 2: (1094, 68.6), 4: (670, 44.4), 8: (345, 24.2)}

_PACES = {"pace=0.1": (0.1, 0.12, 30.9), "the default": (None, 0.27, 17.0), "pace=1.0": (1.0, 0.84, 11.0)}

_CLIENTS = {1: (3.2, 0.028, 10.6), 4: (2.5, 0.147, 12.4), 16: (18.8, 0.247, 15.3)}


def checks() -> list[Check]:
    """Compute all of them."""
    return [*whole_models(), *second_round(), *many_callers(), *far(), *active(), *paces(), *clients()]


def whole_models() -> list[Check]:
    """Prompts and one text in seven types, 4 layers."""
    found = []
    for mix, (prompt, generation, bandwidth) in _WHOLE.items():
        one = cost("8x7b", mix, two_cores(bandwidth), n_layers=4)
        found += [
            Check("Whole models", f"{mix}, prompt of 512", "tokens/s", prompt, one.prompt_speed(512), fitted=True),
            Check("Whole models", f"{mix}, one text", "tokens/s", generation, one.generation(1, 64), fitted=True),
        ]
    return found


def second_round() -> list[Check]:
    """The same with two layers and later kernels."""
    found = []
    for mix, (prompt, generation, part) in _SECOND.items():
        n_bytes = cost("8x7b", mix, two_cores(1), n_layers=2).inventory.active_bytes
        one = cost("8x7b", mix, two_cores(n_bytes * generation / part / 1e9), n_layers=2)
        section = "The same after the second round"
        found += [
            Check(section, f"{mix}, prompt of 512", "tokens/s", prompt, one.prompt_speed(512)),
            Check(section, f"{mix}, one text", "tokens/s", generation, one.generation(1, 64)),
        ]
    return found


def many_callers() -> list[Check]:
    """Texts at once, and the experts that they read."""
    found = []
    one = cost("8x7b", "q4_k_m", two_cores(_CALLERS_BANDWIDTH), n_layers=4, routing=MEASURED)
    for n, (speed, experts) in _CALLERS.items():
        found += [
            Check("Many callers", f"{n} texts", "tokens/s", speed, one.generation(n, 100), fitted=n in (8, 16)),
            Check("Many callers", f"{n} texts, experts alike", "of 8", experts, distinct(UNIFORM, n)),
            Check("Many callers", f"{n} texts, experts fitted", "of 8", experts, distinct(MEASURED, n), n in (8, 16)),
        ]
    return found


def far() -> list[Check]:
    """A prompt at the end of a long context, one layer."""
    one = cost("8x7b", "q4_0", two_cores(60), n_layers=1)
    found = []
    for position, speed in {0: 9399, 4000: 4085, 16000: 1401, 32000: 695}.items():
        model = 512 / one.seconds(0, 0, [(512, position, True)])
        found.append(Check("Far into a context", f"prompt at {position}", "tokens/s", speed, model))
    return found


def active() -> list[Check]:
    """Two layers with more experts used."""
    found = []
    base = _used(2)
    for n, (prompt, generation) in _USED.items():
        one = _used(n)
        ratio, measured = base.prompt_speed(512) / one.prompt_speed(512), _USED[2][0] / prompt
        each, both = base.generation(1, 64) / one.generation(1, 64), _USED[2][1] / generation
        if n != 2:
            section = "Cost follows active parameters"
            found += [
                Check(section, f"{n} experts used, prompt", "times 2 experts", measured, ratio),
                Check(section, f"{n} experts used, one text", "times 2 experts", both, each),
            ]
    return found


def _used(n: int) -> Cost:
    config = replace(MODELS["8x7b"], n_layers=2, n_experts_used=n)
    return Cost(config, "q4_0", two_cores(60), routing=np.full(8, n / 8))


def paces() -> list[Check]:
    """A prompt of 4,000 tokens beside four texts: the pace, in the simulation."""
    found = []
    for name, (limit, gap, first) in _PACES.items():
        one = cost("8x7b", "q4_k_m", two_cores(_CALLERS_BANDWIDTH), n_layers=4, routing=MEASURED)
        fleet = Fleet(one, 1, SINGLE, 0, pace=limit, n_pages=512)
        for text in questions([(600, 4)]):  # the pace learns
            fleet.ask(text)
        fleet.drain(5.0)
        for text in questions([(16, 4000)] * 4, seed=1):
            fleet.ask(text)
        fleet.run(fleet.now + 2)
        tally = fleet.restart()
        (document,) = questions([(4000, 1)], seed=2)
        document.asked = fleet.now
        fleet.ask(document)
        while not tally.finished:
            fleet.run(fleet.next_time)
        section = "Many callers"
        found += [
            Check(section, f"{name}: between tokens, median", "s", gap, tally.between.quantile(0.5)),
            Check(section, f"{name}: first token of 4,000", "s", first, tally.first.quantile(0.5)),
        ]
    return found


def clients() -> list[Check]:
    """What 1, 4 and 16 clients of a server see, with the questions of servers.py."""
    found = []
    for n, (first, each, speed) in _CLIENTS.items():
        one = cost("8x7b", "q4_k_m", two_cores(_CALLERS_BANDWIDTH), n_layers=4, routing=MEASURED)
        fleet = Fleet(one, 1, SINGLE, 0, n_pages=512)
        texts = []
        for i in range(n):
            rng = np.random.default_rng([n, i])
            asked, prompt, answer = rng.exponential(1.0), int(rng.choice((32, 128, 512, 1024))), 0
            answer = int(rng.choice((16, 32, 64)))
            ids = np.random.default_rng(i).integers(3, 32000, prompt + answer, np.int32)
            texts.append(Text(Conversation(i, ids, [(prompt, answer)]), 0, float(asked)))
        for text in sorted(texts, key=lambda text: text.asked):
            fleet.run(text.asked)
            fleet.ask(text)
        fleet.drain()
        section = "A server"
        begins = [text.first - text.asked for text in texts]
        each_model = [(text.last - text.first) / (text.n_answer - 1) for text in texts]
        total = sum(text.n_answer for text in texts) / max(text.last for text in texts)
        found += [
            Check(section, f"{n} clients: first token, median", "s", first, float(np.median(begins))),
            Check(section, f"{n} clients: a token, median", "s", each, float(np.median(each_model))),
            Check(section, f"{n} clients", "tokens/s", speed, total),
        ]
    return found
