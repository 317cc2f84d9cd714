"""How the experts of a text are written in answers: whole, or a piece with each chunk."""

from __future__ import annotations

import base64
import codecs
from typing import Any, Literal

from pymixtral import Routing
from pymixtral.mixtral import Mixtral

Wanted = bool | Literal["generated"]
"""A value of `return_routing`: the experts of all tokens, or only of those after the prompt."""


class RoutingWriter:
    """Writes the trace of a text that grows.

    Args:
        model: has the vocabulary.
        wanted: what the request asks for; None: nothing.
    """

    def __init__(self, model: Mixtral, wanted: Wanted | None) -> None:
        self._model = model
        self._wanted = wanted
        self._n_written = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def field(self, routing: Routing | None) -> dict[str, Any]:
        """Write what has not been written yet.

        Args:
            routing: the trace so far; None: there is none.

        Returns:
            The field `routing` of a choice, or nothing if there is nothing new. It has the ids
            (`tokens`), their texts, how many of them are the prompt's (`n_prompt`), and as base64 of
            little-endian numbers the experts, uint8 [tokens, layers, k], and their weights, float16 of
            the same shape. The texts of all pieces, one after the other, are the text of all tokens:
            one that ends inside a character has the text "", and a control token its name.
        """
        if not self._wanted or routing is None:
            return {}
        begin = max(self._n_written, routing.n_prompt if self._wanted == "generated" else 0)
        if begin >= routing.n_tokens:
            return {}
        self._n_written = routing.n_tokens
        ids = routing.ids[begin : routing.n_tokens].tolist()
        piece = {
            "tokens": ids,
            "texts": [self._text(id) for id in ids],
            "n_prompt": max(routing.n_prompt - begin, 0),
            "experts": base64.b64encode(routing.experts[begin:].tobytes()).decode(),
            "weights": base64.b64encode(routing.weights[begin:].astype("<f2").tobytes()).decode(),
            "n_layers": routing.n_layers,
            "k": routing.n_experts_used,
            "n_experts": routing.n_experts,
        }
        return {"routing": piece}

    def _text(self, id: int) -> str:
        data = self._model.token_bytes(id)
        return self._decoder.decode(data) if data else self._model.token_piece(id)
