"""The fields of all requests that write texts, and the options that they become."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from pymixtral.server.api.bodies import ModelBody, Part, TokenId
from pymixtral.server.api.forms import ResponseFormat, StructuredOutputs, form_options
from pymixtral.server.api.routing import Wanted
from pymixtral.server.service import Service

MAX_TEXTS = 128
"""Texts of one prompt."""

_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "penalty_window": 0}
"""OpenAI's, where pymixtral has others. Its penalties look at the whole text so far."""

_SAME = (
    *("temperature", "top_p", "min_p", "typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold"),
    *("mirostat_tau", "mirostat_eta", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("penalty_window", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_window", "min_tokens"),
    *("ignore_eos", "stop", "stop_token_ids", "allowed_token_ids", "bad_words", "prompt_lookup", "context_shift"),
    *("priority", "cache_salt"),
)
"""Fields that are options of the same name and meaning."""

_Stop = Annotated[str, Field(min_length=1, max_length=1024)]
_BadWord = Annotated[str, Field(min_length=1, max_length=128)]  # each is looked for in each text of a request
StopTexts = _Stop | Annotated[list[_Stop], Field(max_length=64)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Number = Annotated[float, Field(ge=0, le=100)]
_Name = Annotated[str, Field(min_length=1, max_length=256)]
_Scale = Annotated[float, Field(ge=-1000, le=1000)]
_Count = Annotated[int, Field(ge=0, lt=1 << 31)]
Several = Annotated[int, Field(ge=1, le=MAX_TEXTS)]


class StreamOptions(Part):
    """What a stream tells beside the text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class WritingBody(ModelBody):
    """The fields of all requests that write texts: OpenAI's, vLLM's and pymixtral's own."""

    adapter: _Name | Annotated[dict[_Name, _Scale], Field(max_length=256)] | None = None
    stream: bool | None = None
    n: Several | None = None
    temperature: Annotated[float, Field(ge=0, le=1e9)] | None = None
    top_p: _Share | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    min_p: _Share | None = None
    typical_p: _Share | None = None
    top_n_sigma: _Number | None = None
    xtc_probability: _Share | None = None
    xtc_threshold: _Share | None = None
    mirostat_tau: _Number | None = None
    mirostat_eta: _Share | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-100, le=100)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-100, le=100)] | None = None
    penalty_window: _Count | None = None
    dry_multiplier: _Number | None = None
    dry_base: Annotated[float, Field(ge=1, le=100)] | None = None
    dry_allowed_length: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    dry_window: _Count | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
            Field(max_length=4096),
        ]
        | None
    ) = None
    stop: StopTexts | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=1 << 18, fail_fast=True)] | None = None
    bad_words: Annotated[list[_BadWord], Field(max_length=256)] | None = None
    ignore_eos: bool | None = None
    min_tokens: _Count | None = None
    prompt_lookup: Annotated[int, Field(ge=0, le=16)] | None = None
    context_shift: _Count | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    timeout: Annotated[float, Field(ge=0, le=1e9)] | None = None
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    return_routing: Wanted | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def common_options(self, service: Service) -> dict[str, Any]:
        """Turn the fields into options.

        Args:
            service: the application's, which has limits of its own.

        Returns:
            Those of pymixtral.Options, but for max_tokens and logprobs.

        Raises:
            APIError: for fields that contradict each other.
        """
        options: dict[str, Any] = {**_DEFAULTS, "timeout": service.timeout(self.timeout)}
        options["adapter"] = service.adapters_of(self.model, self.adapter)
        options |= {name: value for name in _SAME if (value := getattr(self, name)) is not None}
        if self.top_k is not None:
            options["top_k"] = max(self.top_k, 0)
        if self.seed is not None:
            options["seed"] = self.seed % (1 << 64)
        if self.logit_bias:
            options["logit_bias"] = {int(id): bias for id, bias in self.logit_bias.items()}
        if self.prompt_logprobs is not None:
            options["prompt_logprobs"] = self.prompt_logprobs
        if self.return_routing:
            options["routing"] = True
        return options | form_options(self.response_format, self.structured_outputs)
