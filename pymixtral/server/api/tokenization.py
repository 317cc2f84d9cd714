"""Tokens of texts and of conversations, in the dialects of vLLM and of llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from pymixtral.errors import PymixtralError
from pymixtral.mixtral import Mixtral
from pymixtral.server.answering import whole
from pymixtral.server.api.bodies import ModelBody, Text, TokenId, of_library
from pymixtral.server.api.chat_requests import ChatRequest, Messages, TemplateFields
from pymixtral.server.api.routes import RESPONSES, make_router, post
from pymixtral.server.errors import APIError
from pymixtral.server.service import Service, TheService

router = make_router()

_PART = 1000
"""Items of a list that are written as JSON at once."""


class TokenizeRequest(TemplateFields, ModelBody):
    """What /tokenize takes: vLLM's `prompt` or `messages`, or llama.cpp's `content`."""

    refused = ("chat_template",)
    one_of = ("prompt", "messages", "content")

    messages: Messages | None = None  # type: ignore[assignment]
    prompt: Text | None = None
    content: Text | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None
    return_token_strs: bool | None = None

    def ids(self, model: Mixtral) -> list[int]:
        """Make the ids.

        Args:
            model: has the tokenizer.

        Raises:
            APIError: if it is not clear what to tokenize.
            PymixtralError: for what the tokenizer refuses.
        """
        given = [name for name in self.one_of if getattr(self, name) is not None]
        if len(given) != 1:
            raise APIError(
                400,
                f"expected one of prompt, messages and content, found {' and '.join(given) or 'none'}",
                param=given[-1] if given else "prompt",
                code="invalid_value",
            )
        self._check(given[0])
        if self.prompt is not None:
            return model.tokenize(self.prompt, self.add_special_tokens is not False)
        if self.content is not None:  # llama.cpp's defaults are others
            return model.tokenize(self.content, bool(self.add_special), parse_special=self.parse_special is not False)
        return self.prompt_ids(model)

    def _check(self, given: str) -> None:
        fields = {
            "prompt": ("add_special_tokens",),
            "messages": tuple(TemplateFields.model_fields),
            "content": ("add_special", "parse_special"),
        }
        for kind, names in fields.items():
            for name in names:
                if kind != given and name not in fields[given] and getattr(self, name) is not None:
                    raise APIError(
                        400, f"expected {name} with {kind} alone, found {given}", param=name, code="invalid_value"
                    )


class DetokenizeRequest(ModelBody):
    """What /detokenize takes."""

    tokens: Annotated[list[TokenId], Field(max_length=1 << 20, fail_fast=True)]


class TemplateRequest(TemplateFields, ModelBody):
    """What /apply-template takes."""

    refused = ("chat_template",)


def pieces_of(model: Mixtral, ids: list[int]) -> list[dict[str, Any]]:
    """Write tokens as llama.cpp does: with their texts, or their bytes where these are no UTF-8.

    Args:
        model: has the vocabulary.
        ids: the tokens.
    """
    pieces: list[dict[str, Any]] = []
    for id in ids:
        data = model.token_bytes(id)
        piece: str | list[int]
        try:
            piece = data.decode() or model.token_piece(id)
        except UnicodeDecodeError:
            piece = list(data)
        pieces.append({"id": id, "piece": piece})
    return pieces


def spelled(model: Mixtral, ids: list[int]) -> str:
    """Write a prompt as a text in which control tokens have their names.

    Args:
        model: has the vocabulary.
        ids: the prompt.
    """
    texts: list[str] = []
    run: list[int] = []
    for id in ids:
        if model.token_bytes(id):
            run.append(id)
        else:
            texts += [model.detokenize(run), model.token_piece(id)]
            run = []
    return "".join([*texts, model.detokenize(run)])


@post(router, "/v1/tokenize", "/tokenize")
async def tokenize(body: TokenizeRequest, request: Request, service: TheService) -> Response:
    """Turn a text or a conversation into tokens.

    Args:
        body: the request.
        request: its connection.
        service: the application's.
    """

    def answer(model: Mixtral) -> Response:
        ids = body.ids(model)
        found: dict[str, Any] = {"count": len(ids), "max_model_len": model.n_ctx, "tokens": ids}
        if body.return_token_strs:
            found["token_strs"] = [model.token_piece(id) for id in ids]
        if body.with_pieces:
            found["tokens"] = pieces_of(model, ids)
        return Response(_json(found), media_type="application/json")

    return await _threaded(request, service, body, answer)


@post(router, "/v1/detokenize", "/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request, service: TheService) -> Response:
    """Turn tokens into text, under the names that it has in both dialects.

    Args:
        body: the request.
        request: its connection.
        service: the application's.
    """

    def answer(model: Mixtral) -> Response:
        text = model.detokenize(body.tokens)
        return JSONResponse({"prompt": text, "content": text})

    return await _threaded(request, service, body, answer)


@post(router, "/v1/apply-template", "/apply-template")
async def apply_template(body: TemplateRequest, request: Request, service: TheService) -> Response:
    """Write the prompt of a conversation.

    Args:
        body: the request.
        request: its connection.
        service: the application's.
    """

    def answer(model: Mixtral) -> Response:
        ids = body.prompt_ids(model)
        return JSONResponse({"prompt": spelled(model, ids), "tokens": ids})

    return await _threaded(request, service, body, answer)


@post(router, "/v1/chat/completions/input_tokens", "/chat/completions/input_tokens")
async def input_tokens(body: ChatRequest, request: Request, service: TheService) -> Response:
    """Count the tokens of the prompt of a request for a chat.

    Args:
        body: the request.
        request: its connection.
        service: the application's.
    """

    def answer(model: Mixtral) -> Response:
        return JSONResponse({"object": "response.input_tokens", "input_tokens": len(body.prompt_ids(model))})

    return await _threaded(request, service, body, answer)


async def tokenizer_info(service: TheService, request: Request) -> Response:  # noqa: ARG001
    """Describe the tokenizer, as vLLM does.

    Args:
        service: the application's.
        request: its connection.
    """
    model = service.model.model
    end = model.metadata.get("tokenizer.ggml.eos_token_id")
    eos_id = end if isinstance(end, int) and end in model.eos_ids else min(model.eos_ids, default=None)
    return JSONResponse(
        {
            "tokenizer_class": f"pymixtral/{model.metadata.get('tokenizer.ggml.model')}",
            "bos_token": None if model.bos_id is None else model.token_piece(model.bos_id),
            "eos_token": None if eos_id is None else model.token_piece(eos_id),
            "add_bos_token": model.bos_id is not None and model.tokenize("")[:1] == [model.bos_id],
            "chat_template": model.chat_template,
            "model_max_length": model.n_ctx,
        }
    )


for _path in ("/v1/tokenizer_info", "/tokenizer_info"):
    router.add_api_route(
        _path,
        tokenizer_info,
        methods=["GET"],
        response_model=None,
        responses={status: RESPONSES[status] for status in (401, 500, 501, 503)},
        include_in_schema=_path.startswith("/v1"),
    )


def _json(answer: dict[str, Any]) -> str:
    """JSON as JSONResponse writes it, but long lists in several calls: no other thread runs during one."""
    encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
    fields = []
    for name, value in answer.items():
        values = value if isinstance(value, list) else []
        parts = ",".join(encode(values[i : i + _PART])[1:-1] for i in range(0, len(values), _PART))
        fields.append(f"{encode(name)}:" + (f"[{parts}]" if isinstance(value, list) else encode(value)))
    return f"{{{','.join(fields)}}}"


async def _threaded(
    request: Request, service: Service, body: ModelBody, answer: Callable[[Mixtral], Response]
) -> Response:
    """Makes an answer in a thread, all of it, so that long texts delay nobody."""
    service.check_model(body.model)
    make = partial(answer, service.model.model)
    try:
        return await whole(request, service.tokenized(make))
    except PymixtralError as error:
        raise of_library(error, body) from error
