"""The choice of a model's chat format, by its vocabulary and its template."""

from __future__ import annotations

import re
from collections.abc import Callable

from pymixtral.arguments import shown
from pymixtral.errors import InvalidArgumentError, UnsupportedError
from pymixtral.text import chat_chatml, chat_llama3
from pymixtral.text.chat_chatml import ChatML
from pymixtral.text.chat_format import ChatFormat
from pymixtral.text.chat_llama3 import Llama3
from pymixtral.text.chat_mistral import MistralText, MistralTokens
from pymixtral.text.chat_template import TemplateFormat
from pymixtral.text.tokenizer import Tokenizer

_BUILT_IN: dict[str, Callable[[Tokenizer, str | None], ChatFormat]] = {
    "mistral-v1": lambda tokenizer, _: MistralText(tokenizer),
    "mistral-v2": lambda tokenizer, _: MistralTokens(tokenizer, 2),
    "mistral-v3": lambda tokenizer, _: MistralTokens(tokenizer, 3),
    "mistral-v7": lambda tokenizer, _: MistralTokens(tokenizer, 7),
    "chatml": lambda tokenizer, template: ChatML(tokenizer, _default_system(template)),
    "llama3": lambda tokenizer, _: Llama3(tokenizer),
    "llama3.1": lambda tokenizer, _: Llama3(tokenizer, dated=True),
}

NAMES = (*_BUILT_IN, "template")
"""The names of the formats; "template" is the file's own."""

_LLAMA_VOCABULARY = range(32000, 32065)
"""Sizes of Llama's vocabulary, without and with added tokens and padding. Mixtral 8x7B has it."""


def choose(tokenizer: Tokenizer, template: str | None = None, name: str | None = None) -> ChatFormat:
    """Choose the chat format of a model.

    A built-in format is chosen where one fits the template's marks and the vocabulary has its
    tokens: the templates of files often differ in spaces from what a model was trained with. Else
    the template itself is the format.

    Args:
        tokenizer: the model's.
        template: the file's own template (tokenizer.chat_template), or None.
        name: one of NAMES, to choose it in any case; None: as said above.

    Returns:
        The format.

    Raises:
        InvalidArgumentError: for another name.
        UnsupportedError: if no format fits, or the named one does not: a token or the template is
            missing, or jinja2 for a template.
        ModelConfigError: if the template cannot be read.
    """
    if name is None:
        name = _fitting(tokenizer, template)
    if name in _BUILT_IN:
        return _BUILT_IN[name](tokenizer, template)
    if name != "template":
        raise InvalidArgumentError(f"expected a chat format of {', '.join(NAMES)}, found {shown(name)}")
    if template is None:
        raise UnsupportedError(
            f"expected a chat template in the file, found none: choose a format of {', '.join(_BUILT_IN)}"
        )
    return TemplateFormat(tokenizer, template)


def _fitting(tokenizer: Tokenizer, template: str | None) -> str:
    """The name of the format that fits."""

    def has(*names: str) -> bool:
        return all(tokenizer.special_id(name) is not None for name in names)

    def marks(text: str) -> bool:
        return template is None or text in template

    if marks(chat_chatml.START) and (template is not None or has(chat_chatml.START, chat_chatml.END)):
        return "chatml"
    if marks(chat_llama3.BEGIN) and has(chat_llama3.BEGIN, chat_llama3.END, chat_llama3.TURN):
        return "llama3.1" if "Cutting Knowledge Date" in (template or "") else "llama3"
    if marks("[INST]") and has("[INST]", "[/INST]"):
        return "mistral-v7" if has("[SYSTEM_PROMPT]") and marks("[SYSTEM_PROMPT]") else "mistral-v3"
    if template is None:
        if tokenizer.n_vocab in _LLAMA_VOCABULARY:
            return "mistral-v1"
        raise UnsupportedError(
            "expected a chat template in the file, or control tokens of a known chat format in its vocabulary, found "
            f"neither: name the format, one of {', '.join(_BUILT_IN)}"
        )
    if "[INST]" in template and "<<SYS>>" not in template:
        return "mistral-v1"
    return "template"


def _default_system(template: str | None) -> str:
    """The system text that a ChatML template has for conversations without one."""
    found = re.search(r"<\|im_start\|>system(?:\\n|\n)([^'\"{}<]+)<\|im_end\|>", template or "")
    return found[1].replace("\\n", "\n") if found else ""
