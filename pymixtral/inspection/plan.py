"""Whether a model fits this machine's memory, and how fast it can be.

This follows from the sizes of its tensors, from the memory that is available and from the read
bandwidth. A generated token reads every active weight once, so the bandwidth divided by the active
bytes is a speed that decoding cannot exceed as long as everything is in memory. When it is not, the
mapped file is paged: what every token reads (attention, router, output) stays in memory, and the
experts share what is left. A token's choice of experts is as good as random, so the part of the
experts' bytes that is in memory is also the probability that a chosen expert is; the others are
read from the file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pymixtral.files.types import MATRIX_TYPES, show_type
from pymixtral.inspection.inventory import Inventory
from pymixtral.inspection.machine import Memory
from pymixtral.inspection.mixes import MIXES, mixed
from pymixtral.model.config import ModelConfig
from pymixtral.model.footprint import Footprint, footprint

DISK_GB_PER_SECOND = 2.0
"""Of an ordinary NVMe drive that reads pages as they are needed. Nothing measures it."""


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

        What is not in memory is read from a disk of DISK_GB_PER_SECOND.
        """
        return 1 / (self._seconds(self.inventory.active_bytes) + self.disk_bytes_per_token / DISK_GB_PER_SECOND / 1e9)

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
            "predicted_tokens_per_second": {
                "now": round(self.tokens_per_second, 3),
                "in_memory": round(self.tokens_per_second_in_memory, 3),
                "in_memory_context_full": round(self.tokens_per_second_full, 3),
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
    return Plan(config, inventory, mix, n_ctx, need, memory.usable, memory.limit, bandwidth, problem)


def plans(
    config: ModelConfig,
    inventory: Inventory,
    n_ctx: int,
    memory: Memory,
    bandwidth: float,
    *,
    kv_type: str = "f16",
) -> list[Plan]:
    """Plans for a model in every mix, from the largest to the smallest; arguments as of plan()."""
    found = [plan(config, inventory, n_ctx, memory, bandwidth, mix=mix, kv_type=kv_type) for mix in MIXES]
    return sorted(found, key=lambda one: -one.memory.weights)


def largest_that_fits(choices: list[Plan]) -> Plan | None:
    """The largest of plans() that fits now and that pymixtral runs.

    It is never f32, since published weights are bf16.
    """
    good = (one for one in choices if one.verdict == "fits" and one.problem is None and one.type != "f32")
    return next(good, None)
