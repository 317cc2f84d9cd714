"""A vocabulary as GGUF's token lists, of SentencePiece ("llama") or of bytes ("gpt2")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gguf import TokenType

from pymixtral.errors import CheckpointError

MAX_PIECES = 1 << 18
"""Of a tokenizer. Those of the family have 32000 to 131072."""

MAX_CHARACTERS = 1 << 21
"""Of all tokens together: the largest published vocabularies, of 262144, have some 1.7 million."""


@dataclass(frozen=True)
class Vocabulary:
    """Pieces by token id.

    Attributes:
        tokens: raw pieces. SentencePiece's have U+2581 for a space; normal tokens of a byte-level
            vocabulary have a character for each byte.
        scores: a score each; 0 in a byte-level vocabulary, which has none.
        types: GGUF's types, which equal SentencePiece's.
        bos_id: begins a text; None: nothing does.
        eos_id: ends a text; None: nothing does.
        unknown_id: the piece for what no other piece expresses; None: bytes express all.
        add_space_prefix: whether a text gets a space before it.
        chat_template: how a chat becomes a text, or None.
        eot_id: ends a turn, where there is a second such token beside eos_id.
        eom_id: likewise, a third.
        add_bos: whether bos_id comes before a text.
        add_eos: whether eos_id comes after one.
        pre: GGUF's name for how a byte-level vocabulary cuts a text into pieces; None for
            SentencePiece.
        merges: pairs of tokens of a byte-level vocabulary, joined by a space, the first first.
        n_added: tokens at the end that were added to the model's own.
        n_padding: tokens that padded() added.
        n_dropped: tokens that padded() took away.
        notes: what a user should know, a sentence each.
    """

    tokens: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    bos_id: int | None
    eos_id: int | None
    unknown_id: int | None
    add_space_prefix: bool
    chat_template: str | None
    eot_id: int | None = None
    eom_id: int | None = None
    add_bos: bool = True
    add_eos: bool = False
    pre: str | None = None
    merges: Sequence[str] = ()
    n_added: int = 0
    n_padding: int = 0
    n_dropped: int = 0
    notes: tuple[str, ...] = ()

    @property
    def special_ids(self) -> dict[str, int]:
        """The tokens that begin and end a text, by GGUF's names for them; none that there is not."""
        named = {"bos": self.bos_id, "eos": self.eos_id, "eot": self.eot_id, "eom": self.eom_id}
        return {name: token for name, token in named.items() if token is not None}

    def to_gguf(self) -> dict[str, str | int | bool | Sequence[str] | Sequence[float] | Sequence[int]]:
        """The keys of a GGUF file."""
        template = {} if self.chat_template is None else {"tokenizer.chat_template": self.chat_template}
        unknown = {} if self.unknown_id is None else {"tokenizer.ggml.unknown_token_id": self.unknown_id}
        return {
            "tokenizer.ggml.model": "llama" if self.pre is None else "gpt2",
            **({} if self.pre is None else {"tokenizer.ggml.pre": self.pre}),
            "tokenizer.ggml.tokens": self.tokens,
            **({"tokenizer.ggml.scores": self.scores} if self.pre is None else {"tokenizer.ggml.merges": self.merges}),
            "tokenizer.ggml.token_type": self.types,
            **{f"tokenizer.ggml.{name}_token_id": token for name, token in self.special_ids.items()},
            **unknown,
            "tokenizer.ggml.add_bos_token": self.add_bos,
            "tokenizer.ggml.add_eos_token": self.add_eos,
            "tokenizer.ggml.add_space_prefix": self.add_space_prefix,
            **template,
        }

    def padded(self, n_vocab: int) -> Vocabulary:
        """The vocabulary with as many tokens as the model has.

        Unused control pieces `[PADn]` fill it; added tokens beyond it, which the model cannot know,
        are left out.

        Args:
            n_vocab: the model's number of tokens.

        Returns:
            The vocabulary.

        Raises:
            CheckpointError: there are more pieces, or a special token is beyond n_vocab.
        """
        n_tokens = len(self.tokens)
        if n_tokens - self.n_added > n_vocab:
            raise CheckpointError(
                f"tokenizer: expected at most {n_vocab} pieces, as the model has, found {n_tokens - self.n_added}: "
                "they do not belong together"
            )
        for name, token in self.special_ids.items():
            if token >= n_vocab:
                raise CheckpointError(
                    f"tokenizer: expected the {name} token below {n_vocab}, the model's vocabulary, found {token}"
                )
        n_padding = max(0, n_vocab - n_tokens)
        return replace(
            self,
            tokens=[*self.tokens[:n_vocab], *(f"[PAD{token}]" for token in range(n_tokens, n_vocab))],
            scores=[*self.scores[:n_vocab], *[0.0] * n_padding],
            types=[*self.types[:n_vocab], *[int(TokenType.CONTROL)] * n_padding],
            n_padding=n_padding,
            n_dropped=max(0, n_tokens - n_vocab),
        )
