"""How single tokens and their log-probabilities are written in answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pymixtral.engine.completion import TokenLogprob
from pymixtral.mixtral import Mixtral


class TokenTexts:
    """Writes tokens as texts.

    Args:
        model: has the vocabulary.
        as_ids: write "token_id:N" in place of a text, so that no two tokens look the same.
    """

    def __init__(self, model: Mixtral, as_ids: bool | None = False) -> None:
        self._model = model
        self._as_ids = bool(as_ids)

    def text(self, id: int) -> str:
        """Write a token: its text, in which bytes that are no UTF-8 are U+FFFD; a control token's name.

        Args:
            id: the token.
        """
        if self._as_ids:
            return f"token_id:{id}"
        data = self._model.token_bytes(id)
        return data.decode("utf-8", "replace") if data else self._model.token_piece(id)

    def data(self, id: int) -> list[int] | None:
        """Look up the bytes of a token; None: it has no text.

        Args:
            id: the token.
        """
        return list(self._model.token_bytes(id)) or None

    # --- Log-probabilities ------------------------------------------------------------------------

    def of_completion(self, tokens: Sequence[TokenLogprob | None], ids: Sequence[int], offsets: list[int]) -> Any:
        """Write log-probabilities as /v1/completions does.

        Args:
            tokens: theirs; None: nothing predicts the first token of a text.
            ids: the tokens.
            offsets: where each begins in the text.

        Returns:
            Four lists. The likely tokens of a place have the chosen one among them.
        """
        return {
            "text_offset": offsets,
            "tokens": [self.text(id) for id in ids],
            "token_logprobs": [token and token.logprob for token in tokens],
            "top_logprobs": [token and self._likely(token) for token in tokens],
        }

    def _likely(self, token: TokenLogprob) -> dict[str, float]:
        likely: dict[str, float] = {}
        for id, logprob in (*token.top, (token.id, token.logprob)):
            likely.setdefault(self.text(id), logprob)
        return likely

    def of_chat(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Write log-probabilities as /v1/chat/completions does.

        Args:
            tokens: theirs.
        """
        return {
            "content": [
                {
                    **self._entry(token.id, token.logprob),
                    "top_logprobs": [self._entry(id, logprob) for id, logprob in token.top],
                }
                for token in tokens
            ],
            "refusal": None,
        }

    def _entry(self, id: int, logprob: float) -> dict[str, Any]:
        return {"token": self.text(id), "logprob": logprob, "bytes": self.data(id)}

    def of_prompt(self, tokens: Sequence[TokenLogprob | None]) -> list[Any]:
        """Write the log-probabilities of a prompt as vLLM does.

        Args:
            tokens: theirs; the first is None.

        Returns:
            For each token an object from ids to log-probabilities, the token's own among them, with
            ranks as far as the likely ones tell.
        """
        written: list[Any] = []
        for token in tokens:
            if token is None:
                written.append(None)
                continue
            ranked = {id: (logprob, rank) for rank, (id, logprob) in enumerate(token.top, 1)}
            ranked.setdefault(token.id, (token.logprob, None))  # type: ignore[arg-type]
            written.append(
                {
                    str(id): {"logprob": logprob, "rank": rank, "decoded_token": self.text(id)}
                    for id, (logprob, rank) in ranked.items()
                }
            )
        return written


class Offsets:
    """Finds where tokens begin in a text, in characters.

    Args:
        model: has the vocabulary.
        begins_text: whether the tokens begin a text, of which the space that the tokenizer may put
            before a text is no part.
        at: where the first begins.
    """

    def __init__(self, model: Mixtral, begins_text: bool, at: int = 0) -> None:
        self._model = model
        self._begins_text = begins_text
        self._at = at

    def take(self, id: int) -> int:
        """Find where the next token begins.

        Args:
            id: the token.

        Returns:
            The character; of a token that begins inside a character, that one.
        """
        data = self._model.token_bytes(id)
        inside = bool(data) and _continues(data[0])
        place = self._at - (inside and self._at > 0)
        if data and self._begins_text:
            self._begins_text = False
            data = data[len(data.decode("utf-8", "replace")) - len(self._model.detokenize([id])) :]
        self._at += sum(not _continues(byte) for byte in data)
        return place


def _continues(byte: int) -> bool:
    """Whether this is no first byte of a character in UTF-8."""
    return byte & 0xC0 == 0x80
