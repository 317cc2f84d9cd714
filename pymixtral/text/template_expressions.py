"""The expressions of templates: each is computed as Jinja does, and paid for before it is.

Source: the documentation of Jinja, "Template Designer Documentation".
"""

# ruff: noqa: ARG002 - all of one kind are called alike

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from pymixtral.text import template_functions as functions
from pymixtral.text.template_text import STR_METHODS, Function, formatted
from pymixtral.text.template_values import (
    Namespace,
    TemplateError,
    Text,
    Undefined,
    Work,
    attribute_of,
    bounded,
    cut,
    is_scalar,
    joined,
    keyed,
    listed,
    numeric,
    printed,
    size,
)

WITH_FUNCTION = ("map", "select", "reject", "selectattr", "rejectattr")
"""The filters that apply other filters and tests."""

_METHODS = ((str, STR_METHODS), (dict, functions.DICT_METHODS), ((list, tuple), functions.LIST_METHODS))


class Scope:
    """Names of one level: a loop's turn, a macro's call."""

    def __init__(self, outer: Scope | None, values: dict[str, Any]) -> None:
        self.outer = outer
        self.values = values

    def get(self, name: str) -> Any:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.outer
        return Undefined(name)


class Method:
    """A method that is called with its value."""

    def __init__(self, function: Function, value: Any) -> None:
        self.function = function
        self.value = value


class Global:
    """A function of the template's world."""

    def __init__(self, function: Function) -> None:
        self.function = function


class Macro:
    def __init__(self, node: Any, scope: Scope) -> None:
        self.node = node
        self.scope = scope


class Loop:
    """The variable `loop`."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values
        self.at = 0
        self.seen: Any = Loop

    def get(self, name: str) -> Any:
        n, at = len(self.values), self.at
        numbers = {"index": at + 1, "index0": at, "revindex": n - at, "revindex0": n - at - 1, "length": n}
        flags = {"first": at == 0, "last": at == n - 1, "depth": 1, "depth0": 0}
        if name in numbers or name in flags:
            return {**numbers, **flags}[name]
        if name == "previtem":
            return self.values[at - 1] if at else Undefined(name)
        if name == "nextitem":
            return self.values[at + 1] if at + 1 < n else Undefined(name)
        if name == "cycle":
            return Method(lambda _, loop, *values: values[loop.at % len(values)], self)
        if name == "changed":
            return Method(_changed, self)
        return Undefined(name)


def _changed(work: Work, loop: Loop, *values: Any) -> bool:
    before, loop.seen = loop.seen, values
    return before is Loop or not functions.compare(work, "eq", before, values)


class Expressions(ABC):
    """Computes expressions.

    Args:
        work: what may still be done.
    """

    def __init__(self, work: Work) -> None:
        self.work = work

    @abstractmethod
    def call_macro(self, macro: Macro, args: list[Any], named: dict[str, Any]) -> str:
        """Run the statements of a macro."""

    def value(self, node: Any, scope: Scope) -> Any:
        """Compute an expression."""
        self.work.spend()
        return getattr(self, f"_get_{type(node).__name__}")(node, scope)

    def _get_TemplateData(self, node: Any, scope: Scope) -> str:
        return Text.of(node.data)

    def _get_Const(self, node: Any, scope: Scope) -> Any:
        return Text.of(node.value) if isinstance(node.value, str) else bounded(node.value)

    def _get_Name(self, node: Any, scope: Scope) -> Any:
        return scope.get(node.name)

    def _get_List(self, node: Any, scope: Scope) -> list[Any]:
        return [self.value(item, scope) for item in node.items]

    def _get_Tuple(self, node: Any, scope: Scope) -> tuple[Any, ...]:
        return tuple(self.value(item, scope) for item in node.items)

    def _get_Dict(self, node: Any, scope: Scope) -> dict[Any, Any]:
        made = {}
        for pair in node.items:
            key = keyed(self.value(pair.key, scope))
            made[key] = self.value(pair.value, scope)
        return made

    def _get_CondExpr(self, node: Any, scope: Scope) -> Any:
        if bool(self.value(node.test, scope)):
            return self.value(node.expr1, scope)
        return Undefined("the inline if without else") if node.expr2 is None else self.value(node.expr2, scope)

    def _get_And(self, node: Any, scope: Scope) -> Any:
        left = self.value(node.left, scope)
        return self.value(node.right, scope) if bool(left) else left

    def _get_Or(self, node: Any, scope: Scope) -> Any:
        left = self.value(node.left, scope)
        return left if bool(left) else self.value(node.right, scope)

    def _get_Not(self, node: Any, scope: Scope) -> bool:
        return not bool(self.value(node.node, scope))

    def _get_Compare(self, node: Any, scope: Scope) -> bool:
        left = self.value(node.expr, scope)
        for operand in node.ops:
            right = self.value(operand.expr, scope)
            if not functions.compare(self.work, operand.op, left, right):
                return False
            left = right
        return True

    def _get_Concat(self, node: Any, scope: Scope) -> str:
        return self._concatenated([printed(self.work, self.value(part, scope)) for part in node.nodes])

    def _get_Neg(self, node: Any, scope: Scope) -> Any:
        return bounded(-numeric(self.value(node.node, scope)))

    def _get_Pos(self, node: Any, scope: Scope) -> Any:
        return numeric(self.value(node.node, scope))

    def _get_Add(self, node: Any, scope: Scope) -> Any:
        left, right = self.value(node.left, scope), self.value(node.right, scope)
        if isinstance(left, str) and isinstance(right, str):
            return self._concatenated([left, right])
        for kind in (list, tuple):
            if isinstance(left, kind) and isinstance(right, kind):
                self.work.spend(len(left) + len(right))
                return left + right  # type: ignore[operator]  # of one kind
        return bounded(numeric(left) + numeric(right))

    def _get_Mul(self, node: Any, scope: Scope) -> Any:
        left, right = self.value(node.left, scope), self.value(node.right, scope)
        if isinstance(left, int) and isinstance(right, (str, list, tuple)):
            left, right = right, left
        if isinstance(left, (str, list, tuple)) and isinstance(right, int):
            times = max(0, right)
            if isinstance(left, str):
                self.work.spend(times, characters=times * size(left))
                return joined([left] * times)
            self.work.spend(times * len(left))
            return left * times
        return bounded(numeric(left) * numeric(right))

    def _get_Sub(self, node: Any, scope: Scope) -> Any:
        return bounded(numeric(self.value(node.left, scope)) - numeric(self.value(node.right, scope)))

    def _get_Div(self, node: Any, scope: Scope) -> Any:
        return numeric(self.value(node.left, scope)) / numeric(self.value(node.right, scope))

    def _get_FloorDiv(self, node: Any, scope: Scope) -> Any:
        return numeric(self.value(node.left, scope)) // numeric(self.value(node.right, scope))

    def _get_Mod(self, node: Any, scope: Scope) -> Any:
        left, right = self.value(node.left, scope), self.value(node.right, scope)
        if isinstance(left, str):
            return formatted(self.work, left, right)
        return numeric(left) % numeric(right)

    def _get_Pow(self, node: Any, scope: Scope) -> Any:
        left, right = numeric(self.value(node.left, scope)), numeric(self.value(node.right, scope))
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > 64:
            raise TemplateError("computes a power beyond 64 bits")
        return bounded(left**right)

    def _get_Getattr(self, node: Any, scope: Scope) -> Any:
        return self._attribute(self.value(node.node, scope), node.attr)

    def _attribute(self, value: Any, name: str) -> Any:
        if isinstance(value, Undefined):
            raise value.fail()
        for kind, methods in _METHODS:
            if isinstance(value, kind) and name in methods:
                return Method(methods[name], value)
        if isinstance(value, dict):
            return value.get(name, Undefined(name))
        if isinstance(value, Namespace):
            return value.values.get(name, Undefined(name))
        return value.get(name) if isinstance(value, Loop) else Undefined(name)

    def _get_Getitem(self, node: Any, scope: Scope) -> Any:
        value = self.value(node.node, scope)
        if isinstance(value, Undefined):
            raise value.fail()
        if type(node.arg).__name__ == "Slice":
            bounds = [self._bound_of(part, scope) for part in (node.arg.start, node.arg.stop, node.arg.step)]
            return self._sliced(value, bounds)
        key = self.value(node.arg, scope)
        if isinstance(value, dict) and is_scalar(key) and key in value:
            return value[key]
        if isinstance(value, (str, list, tuple)) and isinstance(key, int):
            if not -len(value) <= key < len(value):
                return Undefined(key)
            return cut(value, key % len(value), key % len(value) + 1) if isinstance(value, str) else value[key]
        return self._attribute(value, key) if isinstance(key, str) else Undefined(key)

    def _bound_of(self, node: Any, scope: Scope) -> int | None:
        bound = None if node is None else self.value(node, scope)
        if bound is not None and not isinstance(bound, int):
            raise TemplateError("cuts at a place that is no integer")
        return bound

    def _sliced(self, value: Any, bounds: list[int | None]) -> Any:
        if not isinstance(value, (str, list, tuple)):
            return Undefined("a part of a value that has none")
        if isinstance(value, str):
            self.work.spend(characters=size(value))
            begin, end, step = slice(*bounds).indices(len(value))
            return cut(value, begin, max(begin, end)) if step == 1 else str(value)[slice(*bounds)]
        self.work.spend(len(value))
        return value[slice(*bounds)]

    def _get_Filter(self, node: Any, scope: Scope) -> Any:
        return self.filtered(node, self.value(node.node, scope), scope)

    def filtered(self, node: Any, value: Any, scope: Scope) -> Any:
        args, named = self._arguments(node, scope)
        if node.name in WITH_FUNCTION:
            return self._selected(node.name, value, args, named)
        return functions.FILTERS[node.name](self.work, value, *args, **named)

    def _selected(self, name: str, values: Any, args: list[Any], named: dict[str, Any]) -> list[Any]:
        """map, select, reject, selectattr and rejectattr."""
        found = listed(self.work, values) if values else []
        if name == "map" and "attribute" in named:
            default = named.get("default", Undefined(named["attribute"]))
            got = [attribute_of(self.work, value, named["attribute"]) for value in found]
            return [default if isinstance(value, Undefined) else value for value in got]
        subject = (lambda value: value) if not name.endswith("attr") else self._subject(args)
        table = functions.FILTERS if name == "map" else functions.TESTS
        if args and (not isinstance(args[0], str) or args[0] not in table):
            raise TemplateError(f"applies {args[0]!r:.80}, which is no {'filter' if name == 'map' else 'test'}")
        if not args:
            results = [(value, bool(subject(value))) for value in found]
        else:
            function = table[args[0]]
            results = []
            for value in found:
                self.work.spend()
                results.append((value, function(self.work, subject(value), *args[1:], **named)))
        if name == "map":
            return [result for _, result in results]
        return [value for value, result in results if bool(result) == name.startswith("select")]

    def _subject(self, args: list[Any]) -> Any:
        if not args:
            raise TemplateError("selects by an attribute without naming it")
        attribute = args.pop(0)
        return lambda value: attribute_of(self.work, value, attribute)

    def _get_Test(self, node: Any, scope: Scope) -> bool:
        args, named = self._arguments(node, scope)
        return bool(functions.TESTS[node.name](self.work, self.value(node.node, scope), *args, **named))

    def _get_Call(self, node: Any, scope: Scope) -> Any:
        return self.called(node, scope, {})

    def called(self, node: Any, scope: Scope, more: dict[str, Any]) -> Any:
        function = self.value(node.node, scope)
        args, named = self._arguments(node, scope)
        if isinstance(function, Method):
            return function.function(self.work, function.value, *args, **named)
        if isinstance(function, Global):
            return function.function(self.work, *args, **named)
        if isinstance(function, Macro):
            return self.call_macro(function, args, {**named, **more})
        if isinstance(function, Undefined):
            raise function.fail()
        raise TemplateError(f"calls a value of type {type(function).__name__}")

    def _arguments(self, node: Any, scope: Scope) -> tuple[list[Any], dict[str, Any]]:
        args = [self.value(arg, scope) for arg in node.args]
        named = {pair.key: self.value(pair.value, scope) for pair in node.kwargs}
        if node.dyn_args is not None:
            args += listed(self.work, self.value(node.dyn_args, scope))
        if node.dyn_kwargs is not None:
            named |= dict(functions.items(self.work, self.value(node.dyn_kwargs, scope)))
        return args, named

    def _concatenated(self, pieces: list[str]) -> str:
        self.work.spend(characters=sum(map(size, pieces)))
        return joined(pieces)
