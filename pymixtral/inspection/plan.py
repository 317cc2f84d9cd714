"""Whether a model fits this machine's memory, and how fast it can be.

This follows from the sizes of its tensors, from the memory that is available and from the read
bandwidth. A generated token reads every active weight once, so the bandwidth divided by the active
bytes is a speed that decoding cannot exceed as long as everything is in memory. When it is not, the
mapped file is paged: what every token reads (attention, router, output) stays in memory, and the
experts share what is left. A token's choice of experts is as good as random, so the part of the
experts' bytes that is in memory is also the probability that a chosen expert is; the others are
read from the file. A pass over a prompt uses all experts, layer after layer, so that each is evicted
before it is used again: the pass reads the file whole.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pymixtral.files.types import MATRIX_TYPES, show_type
from pymixtral.inspection.inventory import Inventory
from pymixtral.inspection.machine import Memory
from pymixtral.inspection.mixes import MIXES, mixed
from pymixtral.inspection.probe import DiskRate
from pymixtral.model.config import ModelConfig
from pymixtral.model.footprint import Footprint, batch_size, footprint

ORDINARY_DISK = DiskRate(2.0, 2.0)
"""Of an ordinary NVMe drive that reads pages as they are needed, where nothing was measured."""

PROMPT = 2048
"""Tokens of the prompt whose speed is predicted, or fewer in a shorter context."""


@dataclass(frozen=True)
class Plan:
    """One model in one type on one machine.

    Attributes:
        config: the model's numbers.
        inventory: its tensors, in the types that are planned.
        type: the name of the mix, None for the types that a file has.
        n_ctx: tokens of context.
        memory: what the model takes.
        available: bytes of memory now.
        limit: bytes of memory with all other programs ended.
        bandwidth: GB/s (10^9 bytes).
        problem: why pymixtral cannot run the model, a clause or sentence, or None.
        disk: how fast what is not in memory is read.
        gmacs: 10^9 int8 products a second; None: not measured, and prompts are not predicted.
    """

    config: ModelConfig
    inventory: Inventory
    type: str | None
    n_ctx: int
    memory: Footprint
    available: int
    limit: int
    bandwidth: float
    problem: str | None = None
    disk: DiskRate = ORDINARY_DISK
    gmacs: float | None = None

    @property
    def verdict(self) -> str:
        """One word for how the model fits.

        "fits": now. "crowded": it would, if other programs gave back memory. "pages": the weights
        do not fit, and are read from the file again and again. "impossible": keys and values alone
        do not fit.
        """
        if self.memory.total <= self.available:
            return "fits"
        if self.memory.total <= self.limit:
            return "crowded"
        return "pages" if self.memory.kv + self.memory.working <= self.limit else "impossible"

    @property
    def disk_bytes_per_token(self) -> int:
        """The bytes that a token reads from the file on average, now: 0 if all is in memory."""
        left = self.available - self.memory.kv - self.memory.working
        if left >= self.memory.weights:
            return 0
        every_token = self.inventory.active_bytes - self.inventory.active_expert_bytes
        if left <= every_token or not self.inventory.expert_bytes:  # cyclic reading of more than fits keeps nothing
            return self.inventory.active_bytes
        resident = min(1.0, (left - every_token) / self.inventory.expert_bytes)
        return round((1 - resident) * self.inventory.active_expert_bytes)

    @property
    def tokens_per_second(self) -> float:
        """A prediction and an upper limit of the speed of generating a short text now.

        What is not in memory is read from the disk, in pieces here and there.
        """
        return 1 / (self._seconds(self.inventory.active_bytes) + self.disk_bytes_per_token / self.disk.random / 1e9)

    @property
    def n_batch(self) -> int:
        """Tokens of a prompt that are computed at once now."""
        return batch_size(self.config, self.memory, self.available)

    def prompt_seconds(self, n_tokens: int) -> float | None:
        """Predict the time of a prompt now, as a lower limit.

        Products of weights are counted, and reading the file whole for each pass where it does not
        fit. Attention, which a long text needs more of, is not.

        Args:
            n_tokens: tokens of the prompt, at least 1.

        Returns:
            Seconds; None if gmacs is not known.
        """
        if self.gmacs is None:
            return None
        embedding = self.inventory.classes.get("embedding")
        unread = embedding if embedding and not self.inventory.tied else None  # but for some rows
        weights = self.inventory.active_weights - (unread.n_weights if unread else 0)
        seconds = n_tokens * weights / self.gmacs / 1e9
        if self.disk_bytes_per_token:
            n_passes = -(-n_tokens // self.n_batch)
            n_bytes = self.inventory.n_bytes - (unread.n_bytes if unread else 0)
            seconds += n_passes * n_bytes / self.disk.sequential / 1e9
        return seconds

    @property
    def prompt_tokens_per_second(self) -> float | None:
        """The same as tokens a second of a prompt of PROMPT tokens, or of the whole context."""
        n_tokens = min(PROMPT, self.n_ctx)
        seconds = self.prompt_seconds(n_tokens)
        return None if seconds is None else n_tokens / seconds

    @property
    def tokens_per_second_in_memory(self) -> float:
        """The limit if everything were in memory."""
        return 1 / self._seconds(self.inventory.active_bytes)

    @property
    def tokens_per_second_full(self) -> float:
        """The limit with everything in memory and a full context: keys and values are read too."""
        return 1 / self._seconds(self.inventory.active_bytes + self.memory.kv)

    def _seconds(self, n_bytes: int) -> float:
        return n_bytes / (self.bandwidth * 1e9)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a program; sizes in bytes."""
        inventory = self.inventory
        return {
            "model": self.config.name,
            "type": self.type,
            "context": self.n_ctx,
            "verdict": self.verdict,
            "runs": self.problem is None,
            "problem": self.problem,
            "types": {show_type(kind): n_bytes for kind, n_bytes in inventory.types.items()},
            "parameters": inventory.n_weights,
            "active_parameters": inventory.active_weights,
            "bits_per_weight": round(inventory.bits_per_weight, 4),
            "memory": {**asdict(self.memory), "total": self.memory.total},
            "available": self.available,
            "limit": self.limit,
            "active_bytes_per_token": inventory.active_bytes,
            "disk_bytes_per_token": self.disk_bytes_per_token,
            "bandwidth_gb_per_second": round(self.bandwidth, 2),
            "disk_gb_per_second": {name: round(rate, 3) for name, rate in asdict(self.disk).items()},
            "tokens_at_once": self.n_batch,
            "predicted_tokens_per_second": {
                "now": round(self.tokens_per_second, 3),
                "in_memory": round(self.tokens_per_second_in_memory, 3),
                "in_memory_context_full": round(self.tokens_per_second_full, 3),
                "prompt_now": None
                if self.prompt_tokens_per_second is None
                else round(self.prompt_tokens_per_second, 3),
            },
        }


def plan(
    config: ModelConfig,
    inventory: Inventory,
    n_ctx: int,
    memory: Memory,
    bandwidth: float,
    *,
    mix: str | None = None,
    problem: str | None = None,
    kv_type: str = "f16",
    disk: DiskRate = ORDINARY_DISK,
    gmacs: float | None = None,
) -> Plan:
    """Plans for one model in one type.

    Args:
        config: the model's numbers.
        inventory: its tensors.
        n_ctx: tokens of context.
        memory: of the machine.
        bandwidth: GB/s.
        mix: a name of pymixtral.inspection.mixes.MIXES, for the tensors in these types; None: as
            they are.
        problem: why pymixtral cannot run the model, or None. Types without a kernel are found here.
        kv_type: of keys and values.
        disk: how fast what is not in memory is read; see pymixtral.inspection.probe.disk_rate().
        gmacs: 10^9 int8 products a second, of all threads; None: not known.

    Returns:
        The plan.

    Raises:
        InvalidArgumentError: an unknown mix, or a kv_type that is unknown or does not fit the
            heads.
    """
    if mix is not None:
        inventory = mixed(inventory, mix)
    missing = [show_type(kind) for kind in inventory.types if kind not in MATRIX_TYPES]
    if problem is None and missing:
        problem = f"there is no kernel for {', '.join(missing)}"
    need = footprint(config, inventory.n_bytes, n_ctx, kv_type)
    return Plan(config, inventory, mix, n_ctx, need, memory.usable, memory.limit, bandwidth, problem, disk, gmacs)


def plans(
    config: ModelConfig,
    inventory: Inventory,
    n_ctx: int,
    memory: Memory,
    bandwidth: float,
    *,
    kv_type: str = "f16",
    disk: DiskRate = ORDINARY_DISK,
    gmacs: float | None = None,
) -> list[Plan]:
    """Plans for a model in every mix, from the largest to the smallest; arguments as of plan()."""
    rates: dict[str, Any] = {"disk": disk, "gmacs": gmacs}
    found = [plan(config, inventory, n_ctx, memory, bandwidth, mix=mix, kv_type=kv_type, **rates) for mix in MIXES]
    return sorted(found, key=lambda one: -one.memory.weights)


def largest_that_fits(choices: list[Plan]) -> Plan | None:
    """The largest of plans() that fits now and that pymixtral runs.

    It is never f32, since published weights are bf16.
    """
    good = (one for one in choices if one.verdict == "fits" and one.problem is None and one.type != "f32")
    return next(good, None)
