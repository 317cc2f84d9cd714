"""Fields of OpenAI's interface that have no effect here, and fields that are refused: each with the reason."""

from __future__ import annotations

_NOTHING_KEPT = "nothing of a request is kept"
_NO_ACCOUNTS = "there are no accounts"

IGNORED = {
    "user": _NO_ACCOUNTS,
    "safety_identifier": _NO_ACCOUNTS,
    "metadata": _NOTHING_KEPT,
    "store": _NOTHING_KEPT,
    "prompt_cache_key": "every prompt that begins like an earlier one is taken from the cache",
    "prompt_cache_options": "every prompt that begins like an earlier one is taken from the cache",
    "prompt_cache_retention": "the cache lasts as long as it has room",
    "service_tier": "there is one tier; `priority` says who comes first",
    "moderation": "there is no moderation",
    "reasoning_effort": "the model does not reason apart from its answer",
    "reasoning": "the model does not reason apart from its answer",
    "verbosity": "the model has no such control",
    "prediction": "it would change the speed alone; `prompt_lookup` does so here",
    "cache_prompt": "every prompt that begins like an earlier one is taken from the cache",
    "skip_special_tokens": "control tokens have no text",
    "spaces_between_special_tokens": "control tokens have no text",
    "include_obfuscation": "pieces have the length of their text",
    "lora_int_id": "a name says which adapter it is",
}
"""Fields that are accepted and have no effect, and why that is right."""

REFUSED = {
    "suffix": "the model writes what follows a text, not what stands between two",
    "chat_template": "a template of a client is never run; the server's operator chooses it",
    "functions": "`tools` has taken its place",
    "function_call": "`tool_choice` has taken its place",
    "audio": "the model reads and writes text",
    "web_search_options": "the server asks nobody else",
    "guided_json": "`structured_outputs` has taken its place",
    "guided_regex": "`structured_outputs` has taken its place",
    "guided_choice": "`structured_outputs` has taken its place",
    "guided_grammar": "`structured_outputs` has taken its place",
    "grammar": "it is in another form than the one that is read here; see `structured_outputs`",
    "use_beam_search": "there is no beam search",
    "length_penalty": "there is no beam search",
    "prompt_embeds": "the model reads tokens",
    "logits_processors": "no program of a client is run",
    "previous_response_id": "no answer is kept; send the whole conversation",
    "conversation": "no conversation is kept; send the whole conversation",
    "background": "no answer is kept",
    "include": "answers hold all that there is",
    "prompt": "no prompt is kept",
    "max_tool_calls": "the server calls no tools itself",
    "context_management": "`truncation` says what happens to a conversation that is too long",
    "dimensions": "vectors have the model's width",
    "documents": "put them into the messages",
    "adapter": "outside of completions and chats `model` picks an adapter, by its name",
    "lora": "`model` picks an adapter by its name, `adapter` several with their scales",
}
"""Fields that are refused unless they are null, and why."""
