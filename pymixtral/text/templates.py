"""Jinja templates of chats, run by an interpreter that bounds time, memory and output.

jinja2 reads a template; its own engine does not run it. Jinja's sandbox keeps a template from
Python's inside, but not from loops without end or texts of gigabytes, and it loses what a message
wrote and what the template did. This interpreter counts every step and every character, has no
Python attributes at all, and knows the writer of each character (Text).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

from pymixtral.arguments import shown
from pymixtral.errors import InvalidArgumentError, ModelConfigError, UnsupportedError
from pymixtral.text import template_functions as functions
from pymixtral.text.template_expressions import WITH_FUNCTION, Scope
from pymixtral.text.template_run import KNOWN, Break, Continue, RefusedError, Run
from pymixtral.text.template_values import TemplateError, TemplateLimitError, Work, joined

try:
    import jinja2
    from jinja2 import nodes
except ImportError:  # the extra [chat]
    jinja2 = None  # type: ignore[assignment]

MAX_SOURCE = 1 << 17
"""Characters of a template. The longest of known models have some 20,000."""

STEPS = 1 << 20
"""Steps that a template may take, beside some for each message: about a second."""

STEPS_A_CHARACTER = 2
"""Further steps for each character of the messages."""

OUTPUT = 1 << 20
"""Characters that a template may write, beside some for each that it was given."""


class Template:
    """A chat template.

    Args:
        source: Jinja's text.
        place: the file's name in messages.

    Raises:
        UnsupportedError: if jinja2 is not installed, or for what templates of chats do not use,
            such as includes, inheritance and unknown filters.
        ModelConfigError: for text that is no template.
    """

    def __init__(self, source: str, place: str = "the model file") -> None:
        if jinja2 is None:
            raise UnsupportedError(
                "expected jinja2 for the file's own chat template, found that it is not installed: "
                "pip install 'pymixtral[chat]'"
            )
        self._place = f"{place}: metadata key 'tokenizer.chat_template'"
        if len(source) > MAX_SOURCE:
            raise ModelConfigError(f"{self._place}: expected at most {MAX_SOURCE} characters, found {len(source)}")
        try:
            self._tree = _environment().parse(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelConfigError(
                f"{self._place}, line {error.lineno}: expected a Jinja template, found {shown(error.message)}"
            ) from None
        except (RecursionError, OverflowError, ValueError, TypeError) as error:
            raise ModelConfigError(
                f"{self._place}: expected a Jinja template, found one that cannot be read ({type(error).__name__})"
            ) from None
        try:
            self._check_known()
        except RecursionError:
            raise ModelConfigError(f"{self._place}: expected a Jinja template, found one of too many levels") from None

    def _check_known(self) -> None:
        known = (
            (nodes.Filter, functions.FILTERS | dict.fromkeys(WITH_FUNCTION), "filter"),
            (nodes.Test, functions.TESTS, "test"),
        )
        for node in self._tree.find_all(nodes.Node):
            for kind, table, what in known:
                if isinstance(node, kind) and node.name not in table:
                    self._unsupported(node, f"the {what} {shown(node.name)}")
            if isinstance(node, (nodes.Stmt, nodes.Expr)) and type(node).__name__ not in KNOWN:
                self._unsupported(node, f"the construction {type(node).__name__}")
            if isinstance(node, nodes.For) and node.recursive:
                self._unsupported(node, "a recursive loop")

    def _unsupported(self, node: nodes.Node, what: str) -> NoReturn:
        raise UnsupportedError(
            f"{self._place}, line {node.lineno}: expected what chat templates use, found {what}: "
            "choose a built-in chat format"
        )

    def render(self, variables: Mapping[str, Any], n_characters: int, now: datetime | None = None) -> str:
        """Run the template.

        Args:
            variables: names to values: None, bool, int, float, str, Text, and lists and dicts of
                them.
            n_characters: characters in the variables, which may cost more the more they are.
            now: the time of strftime_now(); None: the clock's.

        Returns:
            What it writes, a Text as far as the template wrote it.

        Raises:
            InvalidArgumentError: if the template refuses the conversation (raise_exception).
            ModelConfigError: if it fails, or takes more than its bounds allow.
        """
        run = Run(Work(STEPS + STEPS_A_CHARACTER * n_characters), now)
        limit = OUTPUT + 8 * n_characters
        try:
            text = joined(run.body(self._tree.body, Scope(None, {**run.globals, **variables}), limit))
        except RefusedError as error:
            raise InvalidArgumentError(
                f"expected messages that the chat template accepts, found that it refuses them: {shown(str(error))}"
            ) from None
        except TemplateLimitError as error:
            raise ModelConfigError(
                f"{self._place}, line {run.line}: expected a template within its bounds, found that it {error}"
            ) from None
        except TemplateError as error:
            raise ModelConfigError(
                f"{self._place}, line {run.line}: expected a template that fits the messages, found that it "
                f"{shown(str(error))[1:-1]}"
            ) from None
        except (Break, Continue):
            raise ModelConfigError(f"{self._place}, line {run.line}: expected break inside a loop") from None
        except (RecursionError, ArithmeticError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise ModelConfigError(
                f"{self._place}, line {run.line}: expected a template that fits the messages, found that it fails "
                f"({type(error).__name__})"
            ) from None
        return text


def _environment() -> jinja2.Environment:
    """What transformers reads templates with, of which only the parser is used."""
    return jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation()]
    )


def _generation() -> type:
    from jinja2.ext import Extension

    class Generation(Extension):
        """transformers' {% generation %}, which marks what a model is trained on: its body alone."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's interface

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation
