"""How the experts of a text are written."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymixtral import Mixtral, Routing
from pymixtral.server.api.routing import RoutingWriter
from support.api_servers import Served

PATH = "/v1/chat/completions"
USER = [{"role": "user", "content": "Who lives in the forest?"}]


@pytest.fixture(scope="module")
def model() -> Any:
    with Mixtral(n_ctx=256) as model:
        yield model


def trace(ids: list[int], n_prompt: int) -> Routing:
    rng = np.random.default_rng(len(ids))
    experts = rng.integers(0, 8, (len(ids), 3, 2), dtype=np.uint8)
    weights = rng.uniform(0, 1, (len(ids), 3, 2)).astype(np.float16)
    return Routing(np.array(ids, np.int32), n_prompt, 8, experts, weights)


def grown(routing: Routing, n: int) -> Routing:
    """The trace when it had n tokens: of the last one that is there, only the id is known."""
    return Routing(routing.ids[: n + 1], routing.n_prompt, 8, routing.experts[:n], routing.weights[:n])


@settings(deadline=None, max_examples=40)
@given(text=st.text(max_size=20), n_prompt=st.integers(0, 6), step=st.integers(1, 5))
def test_pieces_are_the_whole_and_their_texts_are_the_text(model: Mixtral, text: str, n_prompt: int, step: int) -> None:
    ids = model.tokenize(text, add_bos=False)
    routing = trace(ids, min(n_prompt, len(ids)))
    writer = RoutingWriter(model, True)
    ends = [*range(0, len(ids), step), len(ids)]
    pieces = [piece["routing"] for n in ends if (piece := writer.field(grown(routing, n)))]
    assert [id for piece in pieces for id in piece["tokens"]] == ids
    expected = b"".join(map(model.token_bytes, ids)).decode()
    assert "".join(text for piece in pieces for text in piece["texts"]) == expected
    assert b"".join(base64.b64decode(piece["experts"]) for piece in pieces) == routing.experts.tobytes()
    assert b"".join(base64.b64decode(piece["weights"]) for piece in pieces) == routing.weights.tobytes()
    assert sum(min(piece["n_prompt"], len(piece["tokens"])) for piece in pieces) == routing.n_prompt
    assert writer.field(routing) == {}

    of_text = RoutingWriter(model, "generated")
    pieces = [piece["routing"] for n in ends if (piece := of_text.field(grown(routing, n)))]
    assert [id for piece in pieces for id in piece["tokens"]] == ids[routing.n_prompt :]
    assert all(piece["n_prompt"] == 0 for piece in pieces)


def test_nothing_is_written_unasked(model: Mixtral) -> None:
    assert RoutingWriter(model, None).field(trace([1, 2], 0)) == {}
    assert RoutingWriter(model, False).field(trace([1, 2], 0)) == {}
    assert RoutingWriter(model, True).field(None) == {}


def test_control_token_is_written_by_its_name(model: Mixtral) -> None:
    (field,) = RoutingWriter(model, True).field(trace([1, 2], 1)).values()
    assert field["texts"] == ["<s>", "</s>"]


def test_the_experts_of_the_answer_alone(chat: Served) -> None:
    body = {"messages": USER, "seed": 1, "max_tokens": 8}
    everything = chat.ok(PATH, **body, return_routing=True)["choices"][0]["routing"]
    answer = chat.ok(PATH, **body, return_routing="generated")["choices"][0]
    routing = answer["routing"]
    n = everything["n_prompt"]
    assert (routing["tokens"], routing["texts"]) == (everything["tokens"][n:], everything["texts"][n:])
    assert answer["message"]["content"].startswith("".join(routing["texts"]).lstrip(" "))
    assert base64.b64decode(everything["experts"]).endswith(base64.b64decode(routing["experts"]))
    pieces = [chunk["choices"][0].get("routing") for chunk in chat.chunks(PATH, **body, return_routing="generated")]
    pieces = [piece for piece in pieces if piece]
    assert len(pieces) > 2
    for name in ("tokens", "texts"):
        assert [one for piece in pieces for one in piece[name]] == routing[name]


def test_other_values_are_refused(chat: Served) -> None:
    assert chat.refused(PATH, messages=USER, return_routing="all")["param"].startswith("return_routing")
