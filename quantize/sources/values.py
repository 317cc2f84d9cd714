"""The numbers of a checkpoint's configuration, read from JSON as untrusted input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pymixtral.arguments import shown
from pymixtral.errors import CheckpointError
from pymixtral.files.strict_json import read_object
from pymixtral.model.keys import INTEGERS, NUMBERS


@dataclass(frozen=True)
class Values:
    """Checked access to the values of a JSON object.

    Methods that check a value against a GGUF key accept what ModelConfig.from_gguf does: the value
    is written under that key. All raise CheckpointError, which names `where` and the key.

    Attributes:
        values: the object.
        where: its place, for messages: a file, or a file and a key.
    """

    values: Mapping[str, Any]
    where: str

    @classmethod
    def read(cls, path: Path) -> Values:
        """The object of a JSON file."""
        return cls(read_object(path), str(path))

    def with_defaults(self, defaults: Mapping[str, Any]) -> Values:
        """The object with defaults of keys that are missing."""
        return Values({**defaults, **self.values}, self.where)

    def has(self, key: str) -> bool:
        """Whether there is a value, and not null."""
        return self.values.get(key) is not None

    def get(self, key: str, default: object = None) -> Any:
        """A value as it is."""
        return self.values.get(key, default)

    def required(self, key: str) -> Any:
        """A value as it is, or null, but not none."""
        if key not in self.values:
            raise CheckpointError(f"{self.where}: {key} is missing")
        return self.values[key]

    def integer(self, key: str, gguf_key: str, *, lowest: int | None = None, highest: int | None = None) -> int:
        """A whole number.

        Args:
            key: its name.
            gguf_key: the key under which it is written, whose limits it has.
            lowest: in place of that key's, or of 1.
            highest: in place of that key's.

        Returns:
            The value.
        """
        value = self.required(key)
        lowest = max(1, INTEGERS[gguf_key][0]) if lowest is None else lowest
        highest = INTEGERS[gguf_key][1] if highest is None else highest
        if type(value) is not int or not lowest <= value <= highest:  # bool is an int to Python
            raise self.wrong(key, f"a whole number from {lowest} to {highest}")
        return value

    def number(self, key: str, gguf_key: str) -> float:
        """A number.

        Args:
            key: its name.
            gguf_key: the key under which it is written, whose limits it has, also as a float32.

        Returns:
            The value.
        """
        value = self.required(key)
        lowest, highest = NUMBERS[gguf_key]
        numeric = type(value) in (int, float)
        if not numeric or not lowest <= value <= highest or not lowest <= float(np.float32(value)) <= highest:
            raise self.wrong(key, f"a number from {lowest:g} to {highest:g}")
        return float(value)

    def flag(self, key: str) -> bool:
        """true or false; false where the key is missing."""
        value = self.values.get(key, False)
        if type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def inner(self, key: str) -> Values | None:
        """The object under a key, None where there is none."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return None if value is None else Values(value, f"{self.where}: {key}")

    def heads(self, heads_key: str, kv_heads_key: str) -> tuple[int, int]:
        """Heads of queries, and of keys and values."""
        n_heads = self.integer(heads_key, "llama.attention.head_count")
        n_kv_heads = self.integer(kv_heads_key, "llama.attention.head_count_kv")
        if n_heads % n_kv_heads:
            raise self.wrong(kv_heads_key, f"a divisor of {heads_key}, which is {n_heads}")
        return n_heads, n_kv_heads

    def head_dim(self, hidden_key: str, heads_key: str) -> int:
        """head_dim, or the hidden size over the number of heads."""
        hidden = self.integer(hidden_key, "llama.embedding_length")
        n_heads = self.integer(heads_key, "llama.attention.head_count")
        lowest, highest = INTEGERS["llama.attention.key_length"]
        if self.has("head_dim"):
            head_dim, found = self.integer("head_dim", "llama.attention.key_length"), "head_dim"
        elif hidden % n_heads == 0:
            head_dim, found = hidden // n_heads, f"{hidden_key} over {heads_key}"
        else:
            raise self.wrong(hidden_key, f"a multiple of {heads_key}, which is {n_heads}, as there is no head_dim")
        if head_dim % 8 or not lowest <= head_dim <= highest:
            raise CheckpointError(
                f"{self.where}: {found}: expected a multiple of 8, from {lowest} to {highest}, found {head_dim}"
            )
        return head_dim

    def wrong(self, key: str, expected: str) -> CheckpointError:
        """The error of a value that is not what is expected of its key."""
        return CheckpointError(f"{self.where}: {key}: expected {expected}, found {shown(self.values.get(key))}")
