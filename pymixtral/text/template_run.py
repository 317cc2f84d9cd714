"""The interpreter of templates: statements and expressions of jinja2's tree, each paid for.

Source: the documentation of Jinja, "Template Designer Documentation".
"""

# ruff: noqa: ARG002, ARG005 - all of one kind are called alike

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NoReturn

from pymixtral.text.template_expressions import Expressions, Global, Loop, Macro, Scope
from pymixtral.text.template_values import (
    Namespace,
    TemplateError,
    TemplateLimitError,
    Text,
    Undefined,
    Work,
    joined,
    listed,
    printed,
    size,
)

_MACRO_DEPTH = 30
_STRFTIME = re.compile("(?:[^%]|%-?[a-zA-Z%]){0,100}")


class Break(Exception):
    """The statement, on its way to the loop."""


class Continue(Exception):
    """The statement, on its way to the loop."""


class RefusedError(TemplateError):
    """The template's own raise_exception()."""


class Run(Expressions):
    """One run of a template. Every method spends for what it does, before it does it."""

    def __init__(self, work: Work, now: datetime | None) -> None:
        super().__init__(work)
        self.line = 0
        self._now = now
        self._depth = 0
        self.globals = {
            "range": Global(self._range),
            "dict": Global(lambda work, **values: values),
            "namespace": Global(lambda work, *given, **values: Namespace({**(given[0] if given else {}), **values})),
            "raise_exception": Global(self._raise),
            "strftime_now": Global(self._strftime),
        }

    # --- Statements ---------------------------------------------------------------------------------

    def body(self, statements: Iterable[Any], scope: Scope, limit: int | None = None) -> list[str]:
        """Run statements.

        Returns:
            What they write.
        """
        written: list[str] = []
        n_written = 0
        for piece in self._statements(statements, scope):
            written.append(piece)
            n_written += len(piece)
            if limit is not None and n_written > limit:
                raise TemplateLimitError(f"writes more than {limit} characters")
        return written

    def _text(self, statements: Iterable[Any], scope: Scope) -> str:
        pieces = self.body(statements, scope)
        self.work.spend(len(pieces), characters=sum(map(size, pieces)))
        return joined(pieces)

    def _statements(self, statements: Iterable[Any], scope: Scope) -> Iterator[str]:
        for node in statements:
            self.work.spend()
            self.line = node.lineno
            yield from getattr(self, f"_do_{type(node).__name__}")(node, scope)

    def _do_Output(self, node: Any, scope: Scope) -> Iterator[str]:
        for part in node.nodes:
            yield printed(self.work, self.value(part, scope))

    def _do_If(self, node: Any, scope: Scope) -> Iterator[str]:
        for branch in (node, *node.elif_):
            if bool(self.value(branch.test, scope)):
                yield from self._statements(branch.body, scope)
                return
        yield from self._statements(node.else_, scope)

    def _do_For(self, node: Any, scope: Scope) -> Iterator[str]:
        values = listed(self.work, self.value(node.iter, scope))
        if node.test is not None:
            values = [value for value in values if bool(self.value(node.test, self._bound(node, value, scope)))]
        loop = Loop(values)
        for loop.at, value in enumerate(values):
            self.work.spend()
            inner = self._bound(node, value, scope)
            inner.values["loop"] = loop
            try:
                yield from self._statements(node.body, inner)
            except Continue:
                continue
            except Break:
                break
        if not values:
            yield from self._statements(node.else_, Scope(scope, {}))

    def _bound(self, node: Any, value: Any, scope: Scope) -> Scope:
        inner = Scope(scope, {})
        self._assign(node.target, value, inner)
        return inner

    def _do_Assign(self, node: Any, scope: Scope) -> Iterator[str]:
        self._assign(node.target, self.value(node.node, scope), scope)
        yield from ()

    def _do_AssignBlock(self, node: Any, scope: Scope) -> Iterator[str]:
        text: Any = self._text(node.body, Scope(scope, {}))
        if node.filter is not None:
            text = self._chained(node.filter, text, scope)
        self._assign(node.target, text, scope)
        yield from ()

    def _assign(self, target: Any, value: Any, scope: Scope) -> None:
        if type(target).__name__ == "Name":
            scope.values[target.name] = value
        elif type(target).__name__ == "NSRef":
            namespace = scope.get(target.name)
            if not isinstance(namespace, Namespace):
                raise TemplateError(f"sets an attribute of {target.name!r}, which is no namespace")
            namespace.values[target.attr] = value
        else:
            parts = listed(self.work, value)
            if len(parts) != len(target.items):
                raise TemplateError(f"takes {len(target.items)} values apart and has {len(parts)}")
            for part, one in zip(target.items, parts, strict=True):
                self._assign(part, one, scope)

    def _do_Macro(self, node: Any, scope: Scope) -> Iterator[str]:
        scope.values[node.name] = Macro(node, scope)
        yield from ()

    def _do_CallBlock(self, node: Any, scope: Scope) -> Iterator[str]:
        yield printed(self.work, self.called(node.call, scope, {"caller": Macro(node, scope)}))

    def _do_FilterBlock(self, node: Any, scope: Scope) -> Iterator[str]:
        yield printed(self.work, self._chained(node.filter, self._text(node.body, Scope(scope, {})), scope))

    def _do_With(self, node: Any, scope: Scope) -> Iterator[str]:
        inner = Scope(scope, {})
        for target, value in zip(node.targets, node.values, strict=True):
            self._assign(target, self.value(value, scope), inner)
        yield from self._statements(node.body, inner)

    def _do_Break(self, node: Any, scope: Scope) -> Iterator[str]:
        raise Break

    def _do_Continue(self, node: Any, scope: Scope) -> Iterator[str]:
        raise Continue

    def _chained(self, node: Any, text: str, scope: Scope) -> Any:
        """The filters of a block, of which the innermost has no expression."""
        return self.filtered(node, text if node.node is None else self._chained(node.node, text, scope), scope)

    def call_macro(self, macro: Macro, args: list[Any], named: dict[str, Any]) -> str:
        node = macro.node
        names = [arg.name for arg in node.args]
        scope = Scope(macro.scope, {"varargs": tuple(args[len(names) :])})
        first_default = len(names) - len(node.defaults)
        for i, name in enumerate(names):
            if i < len(args):
                value = args[i]
            elif name in named:
                value = named.pop(name)
            else:
                value = self.value(node.defaults[i - first_default], scope) if i >= first_default else Undefined(name)
            scope.values[name] = value
        scope.values["caller"] = named.pop("caller", Undefined("caller"))
        scope.values["kwargs"] = named
        self._depth += 1
        if self._depth > _MACRO_DEPTH:
            raise TemplateLimitError(f"calls macros {_MACRO_DEPTH} levels deep")
        try:
            return self._text(node.body, scope)
        finally:
            self._depth -= 1

    # --- Functions ----------------------------------------------------------------------------------

    def _range(self, work: Work, *bounds: Any) -> list[int]:
        if not 1 <= len(bounds) <= 3 or not all(isinstance(bound, int) for bound in bounds):
            raise TemplateError("makes a range of something else than 1 to 3 integers")
        numbers = range(*bounds)
        if len(numbers) > work.left:
            raise TemplateLimitError("makes a range of too many numbers")
        work.spend(len(numbers))
        return list(numbers)

    def _raise(self, work: Work, message: Any = "") -> NoReturn:
        raise RefusedError(printed(work, message)[:1000])

    def _strftime(self, work: Work, form: Any) -> str:
        if not isinstance(form, str) or not _STRFTIME.fullmatch(form):
            raise TemplateError("asks for the time in a form that is no short text")
        return Text.of((self._now or datetime.now()).strftime(form))


KNOWN = {name.split("_", 2)[2] for name in dir(Run) if name.startswith(("_do_", "_get_"))} | {"Slice", "NSRef"}
"""The nodes of jinja2's tree that are run."""
