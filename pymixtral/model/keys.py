"""The metadata keys of a model: which are read, what their values may be, typed access to them.

What is not in these tables is not read: pymixtral.model.overrides takes from them what a caller may
give, and pymixtral.quantize what it may write.
"""

from __future__ import annotations

from typing import NoReturn

from pymixtral.errors import ModelConfigError
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.header import Value, quoted

_MAX_CONTEXT = 1 << 20  # docs/numerics.md: an angle is at most 2^20
_MAX_U32 = (1 << 32) - 1

INTEGERS = {
    "llama.vocab_size": (1, 1 << 24),
    "llama.context_length": (1, _MAX_CONTEXT),
    "llama.embedding_length": (1, 1 << 17),
    "llama.block_count": (1, 1 << 10),
    "llama.feed_forward_length": (1, 1 << 20),
    "llama.attention.head_count": (1, 1 << 10),
    "llama.attention.head_count_kv": (1, 1 << 10),
    "llama.attention.key_length": (8, 1024),
    "llama.attention.value_length": (0, _MAX_U32),  # it must be the head dimension, and is compared with that
    "llama.attention.sliding_window": (0, (1 << 31) - 1),
    "llama.expert_count": (0, 64),
    "llama.expert_used_count": (0, 64),
    "llama.rope.dimension_count": (0, _MAX_U32),  # likewise
    "llama.rope.scaling.original_context_length": (1, _MAX_CONTEXT),
}
"""The whole numbers that are read, each with the smallest and the largest value that is accepted.

The largest are well above those of published models. They bound the time and the memory that a
file from a stranger can ask for; heads, experts and contexts are bounded by csrc/pmx.h too.
"""

NUMBERS = {
    "llama.attention.layer_norm_rms_epsilon": (2.0**-100, 1.0),
    "llama.rope.freq_base": (1.0, 1e30),
    "llama.rope.scale_linear": (0.0, 1e6),
    "llama.rope.scaling.factor": (0.0, 1e6),
    "llama.rope.scaling.attn_factor": (1e-3, 1e3),
    "llama.rope.scaling.yarn_ext_factor": (-1.0, 1e3),
    "llama.rope.scaling.yarn_attn_factor": (-1.0, 1e3),
    "llama.rope.scaling.yarn_beta_fast": (1e-3, 1e6),
    "llama.rope.scaling.yarn_beta_slow": (1e-3, 1e6),
    "llama.rope.scaling.yarn_log_multiplier": (0.0, 1e3),
}
"""The floating-point numbers that are read, likewise."""

STRINGS = ("general.architecture", "general.name", "llama.rope.scaling.type")
"""The strings that are read."""

FEATURES: dict[str, tuple[Value, ...]] = {
    "llama.attention.causal": (True,),
    "llama.attention.clamp_kqv": (0.0,),
    "llama.attention.max_alibi_bias": (0.0,),
    "llama.attention.scale": (0.0,),
    "llama.attn_logit_softcapping": (0.0,),
    "llama.final_logit_softcapping": (0.0,),
    "llama.embedding_scale": (0.0, 1.0),
    "llama.residual_scale": (0.0, 1.0),
    "llama.logit_scale": (0.0, 1.0),
    "llama.use_parallel_residual": (False,),
    "llama.leading_dense_block_count": (0,),
    "llama.expert_shared_count": (0,),
    "llama.expert_gating_func": (0, 1),  # unset, softmax
    "llama.expert_weights_norm": (True,),
    "llama.expert_weights_scale": (0.0, 1.0),
}
"""Keys of relatives of this architecture that would change the computation, and the values that
change nothing."""


class Keys:
    """Typed access to a file's metadata; a default makes a key optional."""

    def __init__(self, file: GGUFFile) -> None:
        self.path = file.path
        self.metadata = file.metadata
        self.tensors = file.tensors

    def fail(self, key: str, expected: str, found: object) -> NoReturn:
        """Raises ModelConfigError, which names the file and the key."""
        raise ModelConfigError(f"{self.path}: metadata key '{key}': expected {expected}, found {quoted(found)}")

    def integer(
        self, key: str, *, lowest: int | None = None, highest: int | None = None, default: int | None = None
    ) -> int:
        """A whole number.

        Args:
            key: one of INTEGERS.
            lowest: in place of the limit in INTEGERS.
            highest: likewise.
            default: what is returned without the key; None: the key must be there.

        Returns:
            The value, within the limits.

        Raises:
            ModelConfigError: for a key that is missing, and for any other value.
        """
        value = self._value(key, default, "an integer")
        lowest = INTEGERS[key][0] if lowest is None else lowest
        highest = INTEGERS[key][1] if highest is None else highest
        if type(value) is not int or not lowest <= value <= highest:  # bool is an int to Python
            self.fail(key, f"an integer from {lowest} to {highest}", value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A floating-point number of NUMBERS, likewise."""
        value = self._value(key, default, "a floating-point number")
        lowest, highest = NUMBERS[key]
        if not isinstance(value, float) or not lowest <= value <= highest:  # NaN is in no range
            self.fail(key, f"a floating-point number from {lowest:g} to {highest:g}", value)
        return value

    def string(self, key: str, default: str | None = None) -> str:
        """A string of STRINGS, likewise."""
        assert key in STRINGS
        value = self._value(key, default, "a string")
        if not isinstance(value, str):
            self.fail(key, "a string", value)
        return value

    def _value(self, key: str, default: Value | None, expected: str) -> Value:
        value = self.metadata.get(key, default)
        if value is None:
            raise ModelConfigError(f"{self.path}: metadata key '{key}' is missing, expected {expected}")
        return value
