"""A vocabulary as GGUF's token lists (tokenizer.ggml.model = "llama")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gguf import TokenType

from pymixtral.errors import CheckpointError


@dataclass(frozen=True)
class Vocabulary:
    """Pieces by token id. `tokens` are raw pieces, with U+2581 for a space; `types` are GGUF's, which equal SentencePiece's.

    eos_id ends a text, eot_id, where there is a second such token, a turn. n_added: tokens at the end that were added to the model's own;
    n_padding, n_dropped: those that padded() added and took away.
    """

    tokens: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    bos_id: int | None
    eos_id: int | None
    unknown_id: int
    add_space_prefix: bool
    chat_template: str | None
    eot_id: int | None = None
    add_bos: bool = True
    n_added: int = 0
    n_padding: int = 0
    n_dropped: int = 0

    def padded(self, n_vocab: int) -> Vocabulary:
        """With unused control pieces `[PADn]` up to n_vocab; without added tokens beyond it, which the model cannot know. Raises
        CheckpointError when there are more pieces, or when a special token is beyond it."""
        n_tokens = len(self.tokens)
        if n_tokens - self.n_added > n_vocab:
            raise CheckpointError(
                f"the tokenizer has {n_tokens - self.n_added} pieces, the model a vocabulary of {n_vocab}: they do not belong together"
            )
        for name, token in (("bos", self.bos_id), ("eos", self.eos_id), ("eot", self.eot_id)):
            if token is not None and token >= n_vocab:
                raise CheckpointError(f"the tokenizer's {name} token is {token}, the model has a vocabulary of {n_vocab}")
        n_padding = max(0, n_vocab - n_tokens)
        return replace(
            self,
            tokens=[*self.tokens[:n_vocab], *(f"[PAD{token}]" for token in range(n_tokens, n_vocab))],
            scores=[*self.scores[:n_vocab], *[0.0] * n_padding],
            types=[*self.types[:n_vocab], *[int(TokenType.CONTROL)] * n_padding],
            n_padding=n_padding,
            n_dropped=max(0, n_tokens - n_vocab),
        )
