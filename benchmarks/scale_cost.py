"""What a pass costs on paper: seconds by the tokens it has, the model, its type and the machine.

A pass reads each matrix that any of its tokens needs once, and multiplies it with those tokens. A
part of the arithmetic hides behind the reading. Of the experts of a layer, it reads those that a
token chose. `benchmarks/scale_measured.py` compares the result with docs/performance.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import comb

import numpy as np

from pymixtral.arrays import F64
from pymixtral.inspection.instances import SERIES, Instance
from pymixtral.inspection.inventory import Inventory
from pymixtral.inspection.mixes import mixed
from pymixtral.inspection.plan import ORDINARY_DISK
from pymixtral.inspection.published import MODELS
from pymixtral.model.config import ModelConfig
from pymixtral.model.footprint import Footprint, footprint, kv_bytes_per_token
from pymixtral.ops import PAGE


@dataclass(frozen=True)
class Rates:
    """The parameters of the model, each of one core where nothing else is said.

    Attributes:
        reading: the part of the read bandwidth at which kernels read weights. Fitted to one text in
            seven types, which have 0.78 to 0.96; a token's trace has 0.85.
        few: MAC/s of up to 8 tokens. q4_k from the cache was measured at 117e9 to 141e9, and at 145e9 to
            158e9 in another run.
        many: MAC/s of 64 tokens and more. Fitted to prompts of 512 in all types, 4 layers; the
            kernel of q4_k alone reaches 355.
        hidden: the part of the reading behind which arithmetic hides. Fitted to 8 and 16 texts.
        attention: MAC/s of a prompt's attention with a cache in f16. Measured.
        serial: seconds of a layer in which weights are neither read nor multiplied. Measured: 2.1%
            of a token of 25 ms in 4 layers.
        python: seconds of Python in a pass. Measured: 1.9% of a pass of one text.
        text: seconds of Python for each text in a pass. Measured: 1.2% of a pass of 16.
        hop: seconds from a stage of a pipeline to the next. Measured: two hops between Ray actors
            of one machine take 4.7 ms.
        network: bytes/s between two machines. Assumed: 10 Gbit/s.
    """

    reading: float = 0.89
    few: float = 150e9
    many: float = 280e9
    hidden: float = 0.6
    attention: float = 101e9
    serial: float = 0.13e-3
    python: float = 0.42e-3
    text: float = 0.064e-3
    hop: float = 2.35e-3
    network: float = 1.25e9


@dataclass(frozen=True)
class Machine:
    """A machine.

    Attributes:
        name: in tables.
        vcpus: what its provider counts.
        cores: those that compute.
        bandwidth: bytes/s that all cores read from memory.
        memory: bytes that a model can have.
        disk: bytes/s of the file, where memory does not hold it. Assumed, as `pymixtral plan` does.
    """

    name: str
    vcpus: int
    cores: float
    bandwidth: float
    memory: int
    disk: float = ORDINARY_DISK.random * 1e9


SHARE = 5.0
"""GB/s for each core of a host that is full. Assumed: 12 channels of DDR5-6400 give 614 GB/s, 80%
of which are read, by 96 cores. Nothing here was measured."""

ALONE = 30.0
"""GB/s for each of 2 cores of a host that was mostly idle. Measured: 45 to 75 GB/s for both."""

HOST = 490.0
"""GB/s of a whole socket, by the assumption of SHARE."""


def machine(instance: Instance, per_core: float = SHARE) -> Machine:
    """Make a machine of an instance type with a CPU whose kernels were measured.

    Args:
        instance: of the series with AMD Turin.
        per_core: GB/s.

    Returns:
        The machine. A vCPU is a core on AWS, and half of one elsewhere.
    """
    cores = instance.vcpus / (1 if instance.cloud == "aws" else 2)
    sockets = max(1.0, cores / 96)
    bandwidth = min(per_core * cores, HOST * sockets)
    return Machine(instance.name, instance.vcpus, cores, bandwidth * 1e9, instance.usable)


def machines(per_core: float = SHARE) -> list[Machine]:
    """Make a machine of each size in pymixtral's table whose CPU is AMD Turin.

    Args:
        per_core: GB/s.
    """
    return [machine(size, per_core) for sizes in SERIES for size in sizes if size.cpu == "AMD Turin"]


def named(name: str, per_core: float = SHARE) -> Machine:
    """Find a machine by the name of its instance type.

    Raises:
        ValueError: if it is none of machines().
    """
    found = {one.name: one for one in machines(per_core)}
    if name not in found:
        raise ValueError(f"expected an instance type with AMD Turin, found {name}: `pymixtral deploy` lists them")
    return found[name]


UNIFORM: F64 = np.full(8, 0.25)
"""The probability that a token uses each expert, if it chooses them independently and alike."""

MEASURED: F64 = np.array([*[1.97 / 7] * 7, 0.03])
"""Fitted to the experts that 8 and 16 texts were measured to read in a layer of random weights, 6.83
and 7.33: one of the eight is nearly never chosen."""


def distinct(probabilities: F64, n: int) -> float:
    """Count the experts that n tokens read in a layer, on average."""
    return float((1 - (1 - probabilities) ** n).sum())


class Cost:
    """Seconds of a pass.

    Args:
        config: the model's numbers.
        mix: the name of its types.
        machine: where it runs.
        routing: the probability that a token uses each expert.
        rates: the parameters.
        kv_type: of keys and values.
        stages: machines that have a part of the layers each.
    """

    def __init__(
        self,
        config: ModelConfig,
        mix: str,
        machine: Machine,
        *,
        routing: F64 = UNIFORM,
        rates: Rates = Rates(),
        kv_type: str = "f16",
        stages: int = 1,
    ) -> None:
        self.config = config
        self.mix = mix
        self.machine = machine
        self.rates = rates
        self.stages = stages
        self._routing = routing
        self.inventory = mixed(Inventory.of_model(config), mix)
        classes = self.inventory.classes
        experts, attention = classes["experts"], classes["attention"]
        n = config.n_layers
        self._attention = attention.n_weights / n, attention.n_bytes / n
        self._router = classes["router"].n_bytes / n
        self._expert = experts.n_weights / n / config.n_experts, experts.n_bytes / n / config.n_experts
        self._head = classes["output"].n_weights, classes["output"].n_bytes
        self.kv_token = kv_bytes_per_token(config, kv_type)
        self.memory: Footprint = footprint(config, self.inventory.n_bytes, PAGE, kv_type)
        self._layer: dict[int, tuple[float, float]] = {}
        self._heads: dict[int, float] = {}
        self._fixed: dict[int, float] = {}

    @property
    def n_pages(self) -> int:
        """Pages of keys and values that all stages together hold; 0 or fewer: the weights do not fit."""
        left = self.machine.memory * self.stages - self.memory.weights - self.memory.working * self.stages
        return int(left // (self.kv_token * PAGE))

    @cached_property
    def missing(self) -> float:
        """The part of the experts that is not in memory, and read from the file each time.

        One context of 4,096 positions stays in memory.
        """
        inventory = self.inventory
        left = (self.machine.memory - self.memory.working) * self.stages - 4096 * self.kv_token
        every = inventory.n_bytes - inventory.expert_bytes
        return float(min(1.0, max(0.0, 1 - (left - every) / inventory.expert_bytes)))

    def _matrix(self, weights: float, n_bytes: float, tokens: F64, missing: float = 0.0) -> F64:
        """Seconds of a matrix with each number of tokens."""
        reading = n_bytes * (
            (1 - missing) / (self.machine.bandwidth * self.rates.reading) + missing / self.machine.disk
        )
        arithmetic = tokens * weights / (self._speed(tokens) * self.machine.cores)
        seconds: F64 = reading + np.maximum(0.0, arithmetic - self.rates.hidden * reading)
        return np.where(tokens > 0, seconds, 0.0)

    def _speed(self, tokens: F64) -> F64:
        """MAC/s of a core: as of few tokens up to 8, as of many from 64 on, by the logarithm between."""
        speeds: F64 = np.interp(np.log2(np.maximum(tokens, 1)), [3, 6], [self.rates.few, self.rates.many])
        return speeds

    def layer(self, n: int) -> tuple[float, float]:
        """Compute the seconds of a layer's matrices with n tokens.

        Returns:
            Those of attention and router, and those of the experts.
        """
        if n not in self._layer:
            one = np.array([float(n)])
            attention = self._matrix(*self._attention, one)[0] + self._router / self.machine.bandwidth
            counts = np.arange(n + 1, dtype=np.float64)
            each = self._matrix(*self._expert, counts, self.missing)
            experts = sum(float(_binomial(n, p) @ each) for p in self._routing)
            self._layer[n] = float(attention), experts
        return self._layer[n]

    def _head_seconds(self, rows: int) -> float:
        if rows not in self._heads:
            self._heads[rows] = float(self._matrix(*self._head, np.array([float(rows)]))[0])
        return self._heads[rows]

    def seconds(self, decoding: int, positions: float, prompts: list[tuple[int, int, bool]]) -> float:
        """Compute the seconds of a pass, without hops.

        Args:
            decoding: texts that get a token.
            positions: those in the cache that they read together.
            prompts: of each piece of a prompt the tokens, the position of the first, and whether
                its last token is the last of the prompt.

        Returns:
            Seconds of all stages together.
        """
        if not prompts:
            return float(self._decoding(decoding) + positions * self._position)
        rates, config = self.rates, self.config
        n = decoding + sum(tokens for tokens, _, _ in prompts)
        rows = decoding + sum(complete for _, _, complete in prompts)
        pairs = sum(tokens * (begin + tokens / 2) for tokens, begin, _ in prompts)
        macs = pairs * 2 * config.n_heads * config.head_dim * config.n_layers
        arithmetic = macs / (rates.attention * self.machine.cores)
        return (
            self._matrices(n, rows) + rates.text * (decoding + len(prompts)) + arithmetic + positions * self._position
        )

    def passes(self, decoding: int, positions: F64) -> F64:
        """Compute the seconds of passes without prompts; see seconds().

        Args:
            decoding: texts in each.
            positions: of each pass, those that its texts read together.
        """
        return self._decoding(decoding) + positions * self._position

    def _decoding(self, n: int) -> float:
        if n not in self._fixed:
            self._fixed[n] = self._matrices(n, n) + self.rates.text * n
        return self._fixed[n]

    @property
    def _position(self) -> float:
        """Seconds of reading the keys and values of a position."""
        return self.kv_token / (self.machine.bandwidth * self.rates.reading)

    def _matrices(self, n: int, rows: int) -> float:
        """Seconds of all that does not depend on the positions of the tokens."""
        rates, n_layers = self.rates, self.config.n_layers
        attention, experts = self.layer(n)
        seconds = n_layers * (attention + rates.serial) + (n_layers - 1) * experts
        if rows:  # the last layer's experts compute rows that somebody reads
            seconds += self.layer(rows)[1] + self._head_seconds(rows)
        return seconds + rates.python * self.stages

    def hop(self, tokens: int) -> float:
        """Compute the seconds from a stage to the next."""
        return self.rates.hop + 4 * self.config.hidden * tokens / self.rates.network if self.stages > 1 else 0.0

    # --- Closed forms ------------------------------------------------------------------------------

    def generation(self, texts: int, context: int) -> float:
        """Compute the tokens/s of all of a number of texts.

        In a pipeline that many are in each of as many micro-batches as it has stages.

        Args:
            texts: in a pass.
            context: the positions that each has in the cache.
        """
        return self.stages * texts / self.latency(texts, context)

    def latency(self, texts: int, context: int) -> float:
        """Compute the seconds between two tokens of a text; arguments as of generation()."""
        return self.seconds(texts, texts * context, []) + self.stages * self.hop(texts)

    def prompt(self, tokens: int, piece: int = 512) -> float:
        """Compute the seconds of a prompt by itself, in pieces.

        Args:
            tokens: of the prompt.
            piece: tokens of a pass.

        Returns:
            Seconds to the first token.
        """
        begins = range(0, tokens, piece)
        pieces = [(min(piece, tokens - begin), begin, begin + piece >= tokens) for begin in begins]
        return sum(self._piece(one) + self.stages * self.hop(one[0]) for one in pieces)

    def _piece(self, one: tuple[int, int, bool]) -> float:
        """A last token by itself is like one that is generated."""
        tokens, begin, complete = one
        return self.seconds(1, begin, []) if complete and tokens == 1 else self.seconds(0, 0, [one])

    def prompt_speed(self, tokens: int) -> float:
        """Compute the prompt tokens/s of all stages, with as many prompts at once as there are stages."""
        return self.stages * tokens / self.prompt(tokens)

    def alone(self, prompt: int, answer: int, most: int = 512) -> float:
        """Compute the seconds of a text alone on the machine.

        Args:
            prompt: tokens of its prompt.
            answer: tokens that it gets.
            most: tokens of a pass.
        """
        seconds = self.prompt(prompt, most)
        for i in range(1, answer):
            seconds += self.seconds(1, prompt + i - 1, []) + self.stages * self.hop(1)
        return seconds

    def capacity(self, prompt: float, answer: float, texts: int) -> float:
        """Compute the requests/s that a machine, or all stages, can answer, without a prefix cache.

        Args:
            prompt: tokens of a prompt, on average.
            answer: tokens of an answer, on average.
            texts: those that are generated at the same time.
        """
        seconds = prompt / self.prompt_speed(512) + answer / self.generation(texts, round(prompt + answer / 2))
        return 1 / seconds


def cost(model: str, mix: str, machine: Machine, *, n_layers: int | None = None, **options: object) -> Cost:
    """Make the cost of a published model.

    Args:
        model: a name of pymixtral.inspection.published.MODELS.
        mix: the name of its types.
        machine: where it runs.
        n_layers: fewer layers than it has; None: all.
        **options: as of Cost.
    """
    config = MODELS[model]
    return Cost(replace(config, n_layers=n_layers or config.n_layers), mix, machine, **options)  # type: ignore[arg-type]


def _binomial(n: int, p: float) -> F64:
    """The probability of each number of successes in n trials, float64 [n+1]."""
    if p >= 1:
        return np.eye(1, n + 1, n, dtype=np.float64)[0]
    k = np.arange(n + 1)
    if n <= 60:
        few: F64 = np.array([comb(n, i) for i in range(n + 1)]) * p**k * (1 - p) ** (n - k)
        return few
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    many: F64 = np.exp(logs[n] - logs[k] - logs[n - k] + k * np.log(p) + (n - k) * np.log1p(-p))
    return many
