"""The keyword arguments of the calls that write texts, and how requests are served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, TypedDict

from pymixtral.engine.adapters import Choice
from pymixtral.engine.generation import LogitsProcessor
from pymixtral.sampling.grammar import NAMES, Form
from pymixtral.sampling.parameters import Sampling, SamplingParameters


class How(TypedDict, total=False):
    """How a request is served; see Options."""

    priority: int
    timeout: float | None
    cache_salt: str | None
    adapter: Choice


class Options(Sampling, Form, How, total=False):
    """The keyword arguments of generate() and stream(), beside the prompt.

    Those of sampling are the fields of pymixtral.sampling.parameters.SamplingParameters, which has
    their meaning and defaults: temperature, top_k, top_p, min_p, typical_p, the penalties, DRY, XTC,
    mirostat, logit_bias, min_tokens, allowed_token_ids, bad_words, seed and others. bad_words takes
    a text or several, too: they are banned as the tokenizer writes them at the beginning of a text
    and inside. Those of the text's form are in pymixtral.sampling.grammar.Form: json_schema,
    json_object, regex, choice and lark.

    Attributes:
        max_tokens: the most tokens to generate; None: until the model ends the text or the context
            is full.
        stop: one or several strings that end the text and are not part of it. The name of a control
            token, such as "</s>", stands for that token, which has no text.
        stop_token_ids: tokens that end the text as the model's end tokens do: they are no part of it.
            ignore_eos and min_tokens do not keep them out.
        ignore_eos: never draw an end token, so that the model goes on.
        parse_special: names of control tokens in the prompt become those tokens; see tokenize().
        logprobs: give the log-probability of each generated token and of this many of the most
            likely ones, 0 to 100; None: none.
        prompt_logprobs: the same for the tokens of the prompt. All of it is computed then.
        routing: give the experts that the router of each layer chose for each token, as
            Completion.routing; "full": and the router's probability of every expert. All of the
            prompt is computed then. See docs/routing.md.
        logits_processor: a function of all ids so far, int32 [n], and the logits of the next,
            float32 [n_vocab]. It changes them or returns others, before any sampling step. It runs
            on the engine's thread, where everybody waits for it. An exception in it ends this text
            and is raised in its caller.
        prompt_lookup: propose up to this many tokens that followed the same words earlier in the
            text, 0 to 16, and check them in one pass. It changes the speed, never the text.
        context_shift: when the context is full, keep so many tokens at the beginning, rounded up to
            whole pages of 64, drop half of the whole pages after them, and go on, so that no text
            ends with finish_reason "context"; None: the text ends. What follows is not what the
            tokens that are left would give when they are computed; see docs/sessions.md.
        priority: texts of a lower number come first; others wait, or give way.
        timeout: seconds until the text ends with finish_reason "deadline"; None: no limit.
        cache_salt: share the prefix cache only with requests of the same salt, so that nobody else
            learns from the time of an answer what was asked before; None: with those without one.
        adapter: the name of a loaded adapter, or a mapping of several names to their scales, from -1000
            to 1000; {}: none; None: what the model was opened with, which is none if nobody said
            otherwise. See docs/adapters.md.
    """

    max_tokens: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool
    parse_special: bool
    logprobs: int | None
    prompt_logprobs: int | None
    routing: bool | Literal["full"]
    logits_processor: LogitsProcessor | None
    prompt_lookup: int
    context_shift: int | None


OPTIONS = (
    *("max_tokens", "stop", "stop_token_ids", "ignore_eos", "parse_special", "logprobs", "prompt_logprobs"),
    *("routing", "logits_processor", "prompt_lookup", "context_shift", "priority", "timeout", "cache_salt"),
    "adapter",
    *NAMES,
    *(field.name for field in fields(SamplingParameters)),
)
"""The names of Options."""


class ChatOptions(Options, total=False):
    """The keyword arguments of chat() and stream_chat(), beside the messages: those of Options, too.

    Attributes:
        tools: functions that the model may call, as OpenAI's interface has them; None: none.
        chat_format: one of pymixtral.text.chat.NAMES; None: the one that fits the model.
        template_variables: variables of the file's own template.
        continue_final: continue the last message, which is an assistant's.
    """

    tools: Sequence[Mapping[str, Any]] | None
    chat_format: str | None
    template_variables: Mapping[str, Any] | None
    continue_final: bool


CHAT_OPTIONS = (*OPTIONS, "tools", "chat_format", "template_variables", "continue_final")
"""The names of ChatOptions."""
