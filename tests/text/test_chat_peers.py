"""Chats beside transformers itself, on one tokenizer: pytest -m peers."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from tokenizers import Tokenizer as Oracle

from pymixtral.errors import InvalidArgumentError
from pymixtral.text.chat import choose
from pymixtral.text.messages import checked_messages, parsed
from support.bpe import CONTROL_NAMES, trained
from support.conversations import CONTROL, PLAIN, Writer, byte_pairs
from support.jinja import CHATML, CHATML_DEFAULT, LLAMA3, LLAMA31, TEMPLATES

pytestmark = pytest.mark.peers

CASES: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "chatml": (CHATML, None, {}),
    "chatml with a system text": (CHATML_DEFAULT, None, {}),
    "llama3": (LLAMA3, None, {}),
    "llama3.1": (LLAMA31, None, {"tools": True, "one_result": True}),
    **{
        f"template {name}": (
            source,
            "template",
            {
                "merging": name not in ("mixtral of 2023", "llama2"),
                "tools": name in ("qwen with tools", "llama3.1"),
                "one_result": True,
                "system_anywhere": False,
            },
        )
        for name, source in TEMPLATES.items()
        if name != "macros"  # which writes the date
    },
}


@pytest.mark.parametrize("name", CASES)
def test_ids_are_those_of_transformers(name: str) -> None:
    from transformers import PreTrainedTokenizerFast

    source, format_name, kinds = CASES[name]
    llama3 = "llama3" in name and not format_name
    bos, eos = ("<|begin_of_text|>", "<|end_of_text|>") if llama3 else ("<s>", "</s>")
    theirs = PreTrainedTokenizerFast(tokenizer_object=with_marks(), bos_token=bos, eos_token=eos)
    format = choose(byte_pairs(bos, eos, add_bos=llama3), source, format_name)
    writer = Writer(11, texts=PLAIN, **kinds)
    n_same = 0
    for i in range(1000):
        messages = writer.messages(prefix=False)
        tools = writer.some_tools() if kinds.get("tools") and i % 2 else None
        with suppress(InvalidArgumentError):  # of templates that refuse roles
            found = format.ids(messages, tools)
            assert found == theirs.apply_chat_template(
                as_templates_have_it(messages),
                tools=tools,
                chat_template=source,
                add_generation_prompt=True,
                return_dict=False,
            )
            n_same += 1
    assert n_same > 400


def with_marks() -> Oracle:
    """The tokenizer of byte_pairs(), as the package tokenizers has it."""
    values = json.loads(trained("llama-bpe").to_str())
    for token in values["added_tokens"]:
        if token["content"] in CONTROL_NAMES:
            token["content"] = f"<old {token['content']}>"
    n = trained("llama-bpe").get_vocab_size()
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    values["added_tokens"] += [
        {"id": n + i, "content": name, "special": True, **flags} for i, name in enumerate(CONTROL)
    ]
    return Oracle.from_str(json.dumps(values))


def as_templates_have_it(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    given = []
    for message in checked_messages(messages):
        values: dict[str, Any] = {"role": message.role, "content": message.text("\n") if message.parts else None}
        if message.tool_calls:
            values["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": parsed(c.arguments)}}
                for c in message.tool_calls
            ]
        given.append(values)
    return given
