"""POST /v1/embeddings and /v1/score: numbers of texts."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import Field
from starlette.responses import Response

from pymixtral.arrays import F32
from pymixtral.mixtral import Mixtral
from pymixtral.server.api.answers import model_name
from pymixtral.server.api.bodies import ModelBody, TokenIds
from pymixtral.server.api.completions import MAX_PROMPTS
from pymixtral.server.api.routes import make_router, post, whole
from pymixtral.server.service import Service, TheService

router = make_router()


class NumbersBody(ModelBody):
    """The fields of requests for numbers."""

    ignored = ("user", "metadata")

    priority: Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    timeout: Annotated[float, Field(ge=0, le=1e9)] | None = None

    def how(self, service: Service) -> dict[str, Any]:
        """Turn the fields into options of Mixtral.score() and embed().

        Args:
            service: the application's.
        """
        return {
            "priority": self.priority or 0,
            "cache_salt": self.cache_salt,
            "timeout": service.timeout(self.timeout),
            "adapter": service.adapter_of(self.model),
        }


class EmbeddingRequest(NumbersBody):
    """What /v1/embeddings takes."""

    refused = ("dimensions", "adapter")

    input: (
        Annotated[str, Field(min_length=1, max_length=1 << 23)]
        | TokenIds
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None

    def texts(self) -> list[Any]:
        """The texts, or their ids."""
        given: Any = self.input
        return [given] if isinstance(given, str) or isinstance(given[0], int) else given


class ScoreRequest(NumbersBody):
    """What /v1/score takes: pymixtral's own fields."""

    refused = ("adapter",)

    context: Annotated[str, Field(min_length=1, max_length=1 << 23)] | TokenIds
    continuations: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=1 << 23)] | TokenIds],
        Field(min_length=1, max_length=MAX_PROMPTS),
    ]


async def embed(service: Service, body: EmbeddingRequest) -> dict[str, Any]:
    """Compute vectors of texts: the mean of the states of their tokens, of length 1.

    Args:
        service: the application's.
        body: the request.

    Returns:
        The answer.

    Raises:
        PymixtralError: for what the model refuses.
    """
    model, texts = service.model, body.texts()
    how = body.how(service)
    vectors = await model.embed(texts, normalize=True, **how)
    n_tokens = await _n_tokens(model.model, texts)
    written = _base64 if body.encoding_format == "base64" else _list
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": written(row)} for i, row in enumerate(vectors)],
        "model": model_name(service, how),
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }


async def _n_tokens(model: Mixtral, texts: Sequence[str | list[int]]) -> int:
    """Tokens of texts, which a thread counts."""
    return await asyncio.to_thread(
        lambda: sum(len(model.tokenize(text)) if isinstance(text, str) else len(text) for text in texts)
    )


def _list(row: F32) -> Any:
    return row.tolist()


def _base64(row: F32) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()


async def score(service: Service, body: ScoreRequest) -> dict[str, Any]:
    """Compute how likely texts are to follow another one.

    Args:
        service: the application's.
        body: the request.

    Returns:
        The answer.

    Raises:
        PymixtralError: for what the model refuses.
    """
    model = service.model
    how = body.how(service)
    scores = await model.score(body.context, list(body.continuations), **how)
    n_tokens = await _n_tokens(model.model, [body.context]) + sum(len(one.tokens) for one in scores)
    return {
        "object": "list",
        "data": [
            {"object": "score", "index": i, "logprob": one.logprob, "token_logprobs": one.tokens, "greedy": one.greedy}
            for i, one in enumerate(scores)
        ],
        "model": model_name(service, how),
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }


@post(router, "/v1/embeddings", "/embeddings")
async def embeddings(body: EmbeddingRequest, request: Request, service: TheService) -> Response:
    """Compute vectors of texts.

    Args:
        body: the request.
        request: its connection.
        service: the application's.
    """
    service.check_model(body.model)
    return await whole(request, service, body, len(body.texts()), lambda _: embed(service, body))


@post(router, "/v1/score", "/score")
async def scores(body: ScoreRequest, request: Request, service: TheService) -> Response:
    """Compute how likely texts are to follow another one.

    Args:
        body: the request.
        request: its connection.
        service: the application's.
    """
    service.check_model(body.model)
    return await whole(request, service, body, len(body.continuations), lambda _: score(service, body))
