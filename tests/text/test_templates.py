"""The interpreter of templates against jinja2's own engine, and against templates that would not end."""

from __future__ import annotations

import json
import time
import tracemalloc
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError

from pymixtral.errors import InvalidArgumentError, ModelConfigError, PymixtralError, UnsupportedError
from pymixtral.text.template_values import Text, cut, joined, own_runs
from pymixtral.text.templates import MAX_SOURCE, Template
from support.conversations import Writer
from support.jinja import NOW, TEMPLATES, render


def ours(source: str, **variables: Any) -> str:
    return Template(source).render(variables, len(json.dumps(variables)), NOW)


def same(source: str, form: str = "", **variables: Any) -> None:
    """Both write the same, or both fail."""
    try:
        expected = render(source, **variables)
    except (TemplateError, TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        if form not in FAIL_THERE:
            with pytest.raises(PymixtralError):
                pytest.fail(f"{source}: {ours(source, **variables)!r}, not {error!r}")
        return
    if form in FAIL_HERE:
        with suppress(PymixtralError):
            assert ours(source, **variables) == expected, source
    else:
        assert ours(source, **variables) == expected, source


def variables_of(writer: Writer, tools: bool) -> dict[str, Any]:
    messages = writer.messages(prefix=False)
    for message in messages:
        if isinstance(message["content"], list):
            message["content"] = "\n".join(part["text"] for part in message["content"])
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = {"city": call["function"]["arguments"]}
    return {
        "messages": messages,
        "tools": writer.some_tools() if tools else None,
        "add_generation_prompt": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
    }


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_write_what_jinja_writes(name: str) -> None:
    for tools in (False, True):
        writer = Writer(3, tools=tools, content_and_calls=True, merging=not tools)
        for _ in range(60):
            same(TEMPLATES[name], **variables_of(writer, tools))


VALUES = [
    *("'abc'", "' a b '", "''", "'A-b'", "x", "xs", "d", "none", "true", "1", "0", "-3", "2.5", "missing", "[]"),
    *("[3, 1, 2]", "['b', 'a']", "{'k': 1, 'j': [1]}", "messages", "messages[0]", "messages[0].content", "(1, 'a')"),
]
UNARY = [
    *("({}) | length", "({}) | upper", "({}) | trim", "({}) | first", "({}) | last", "({}) | tojson", "({}) | string"),
    *("({}) | list", "({}) | join('-')", "({}) | default('z')", "({}) | default('z', true)", "({}) | int", "not ({})"),
    *("({}) | float", "({}) | reverse | list", "({}) | sort", "({}) | unique | list", "({}) | items | list", "-({})"),
    *("({}) | capitalize", "({}) | title", "({}) | abs", "({}) | round(1)", "({}) | sum", "({}) | max", "({}) | min"),
    *("({}) is string", "({}) is defined", "({}) is none", "({}) is mapping", "({}) is iterable", "({}) is sequence"),
    *("({}) is number", "({}) is boolean", "({}) is integer", "({}) is float", "({}) is true", "({}) is odd"),
    *("({}).strip()", "({}).split()", "({}).split('b')", "({}).role", "({})['k']", "({})[0]", "({})[-1]", "({})[1:]"),
    *("({})[::-1]", "({}).get('k')", "({}).get('q', 4)", "({}).items() | list", "({}).keys() | list", "({}).upper()"),
    *("({}).startswith('a')", "({}).replace('a', 'xy')", "({}).k", "({}).title()", "({}).find('b')", "({})(1)"),
    *("({}) | replace('a', 'b')", "({}) | selectattr('role') | list", "({}) | map('upper') | list", "({}) | e"),
    *("({}) | map(attribute='role') | join", "({}) | select('string') | list", "({}) | reject('odd') | list"),
    *(
        "({}) | dictsort",
        "({}) | indent(2)",
        "({}) | tojson(indent=2)",
        "({}) | tojson(sort_keys=true)",
        "({}) | count",
    ),
    *(
        "({}).splitlines()",
        "({}).__class__",
        "({})['__class__']",
        "({}).lstrip('a')",
        "({}).rstrip()",
        "({}).count('a')",
    ),
    *("'%s' % ({})", "'{{}}-{{}}'.format(({}), 1)", "'%s|%d' % (({}), 3)", "({}).values() | list", "({}) | trim('a')"),
]
BINARY = [
    *("{} + {}", "{} ~ {}", "{} == {}", "{} != {}", "{} < {}", "{} >= {}", "{} in {}", "{} not in {}", "{} and {}"),
    *("{} or {}", "{} if {} else 'e'", "{} * {}", "{} - {}", "{} / {}", "{} // {}", "{} % {}", "{} ** {}", "[{}, {}]"),
    *("{} is eq({})", "{} is in({})", "{} | default({})", "{}.get({})", "{}[{}]", "{}.join({})"),
]
WORLD = {
    "x": "text with b",
    "xs": ["ab", "b", "Cb"],
    "d": {"k": "v", "role": "r"},
    "messages": [{"role": "u", "content": "hi b"}],
}
FAIL_HERE = {
    *("{} < {}", "{} >= {}", "({}) | sort", "({}) | max", "({}) | min"),  # the order of lists and mappings
    *("{} in {}", "{} not in {}", "{} is in({})", "{}.get({})"),  # keys that are tuples
    *(
        "[{}, {}]",
        "({}).__class__",
        "{} % {}",
        "{} ** {}",
    ),  # Undefined printed, formats without places, complex numbers
}
"""Where what Jinja computes is of no use to a template of chats, and fails here."""
FAIL_THERE = {"({})[1:]", "({})[::-1]"}
"""Where Jinja fails: a part of a mapping is undefined here."""


def test_expressions_have_the_values_of_jinja() -> None:
    for value in VALUES:
        same("{{ " + value + " }}", **WORLD)
        for form in UNARY:
            source = form.replace("{{}}", "\0").replace("{}", value).replace("\0", "{}")
            same("{{ " + source + " }}", form, **WORLD)
        for other in VALUES:
            for form in BINARY:
                same("{{ " + form.format(value, other) + " }}", form, **WORLD)


# --- Templates that would not end -------------------------------------------------------------------------------------

BOMBS = {
    "nested loops": "{% for a in range(100000) %}" * 5 + "x" + "{% endfor %}" * 5,
    "a huge range": "{{ range(10 ** 15) | list }}",
    "a huge range that is only counted": "{{ range(0, 10 ** 15, 3) | length }}",
    "ranges in a loop": "{% for a in range(1000) %}{% for b in range(1000) %}{% for c in range(1000) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "string multiplication": "{{ 'x' * 10 ** 12 }}",
    "list multiplication": "{{ [0] * 10 ** 12 }}",
    "repeated doubling": "{% set ns = namespace(s='xx') %}{% for i in range(100) %}{% set ns.s = ns.s ~ ns.s %}"
    "{% endfor %}{{ ns.s }}",
    "doubling by +": "{% set ns = namespace(s='xx') %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}"
    "{% endfor %}",
    "doubling by replace": "{% set ns = namespace(s='xx') %}{% for i in range(100) %}"
    "{% set ns.s = ns.s | replace('x', 'xx') %}{% endfor %}",
    "doubling by join": "{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = [ns.s, ns.s] | join %}"
    "{% endfor %}",
    "doubling by format": "{% set ns = namespace(s='x') %}{% for i in range(100) %}"
    "{% set ns.s = '{}{}'.format(ns.s, ns.s) %}{% endfor %}",
    "doubling by %": "{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = '%s%s' % (ns.s, ns.s) %}"
    "{% endfor %}",
    "doubling by tojson": "{% set ns = namespace(s='\\\\') %}{% for i in range(100) %}{% set ns.s = ns.s | tojson %}"
    "{% endfor %}",
    "doubling by escape": "{% set ns = namespace(s='&') %}{% for i in range(100) %}{% set ns.s = (ns.s ~ ns.s) | e %}"
    "{% endfor %}",
    "doubling of lists": "{% set ns = namespace(s=[1]) %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}"
    "{% endfor %}",
    "shared lists printed": "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}"
    "{% endfor %}{{ ns.s }}",
    "shared lists as JSON": "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}"
    "{% endfor %}{{ ns.s | tojson }}",
    "shared lists compared": "{% set ns = namespace(s=[1], t=[1]) %}{% for i in range(60) %}"
    "{% set ns.s = [ns.s, ns.s] %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.s == ns.t }}",
    "shared tuples as keys": "{% set ns = namespace(s=(1, 1)) %}{% for i in range(60) %}{% set ns.s = (ns.s, ns.s) %}"
    "{% endfor %}{{ {ns.s: 1} }}",
    "a power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "a product of powers": "{% set ns = namespace(n=9) %}{% for i in range(100) %}{% set ns.n = ns.n * ns.n %}"
    "{% endfor %}{{ ns.n }}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(29) }}",
    "macros that write": "{% macro f(n) %}xxxxxxxxxxxx{% if n > 0 %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(28) }}",
    "a macro as its own argument": "{% macro f(g) %}{{ g(g) }}{% endmacro %}{{ f(f) }}",
    "output without end": "{% for i in range(1000000) %}{{ 'x' * 1000 }}{% endfor %}",
    "output of messages": "{% for i in range(1000000) %}{{ messages }}{% endfor %}",
    "a width of JSON": "{{ [1] | tojson(indent=10 ** 9) }}",
    "separators of JSON": "{{ [1, 2] | tojson(separators=('x' * 100000, ':')) }}",
    "a width of indentation": "{{ ('a\n' * 100000) | indent('x' * 100000) }}",
    "a width of a format": "{{ '%1000000000d' % 1 }}",
    "a width of str.format": "{{ '{:1000000000}'.format(1) }}",
    "an attribute in str.format": "{{ '{0.__class__}'.format('') }}",
    "a precision": "{{ 1.5 | round(10 ** 9) }}",
    "cycles of nothing": "{% for i in [1] %}{{ loop.cycle() }}{% endfor %}",
    "characters of many writers": "{% set ns = namespace(s='') %}{% set t = ('a' ~ messages[0].content[0]) * 200000 %}"
    "{% for i in range(100000) %}{% set ns.s = t[i:] %}{% endfor %}",
    "indexes of many writers": "{% set t = ('a' ~ messages[0].content[0]) * 200000 %}{% for i in range(10000000) %}"
    "{% set x = t[-1] %}{% endfor %}",
    "the sum of a range": "{{ range(100000000) | sum }}",
    "sorting": "{% for i in range(1000) %}{% set x = range(100000) | sort %}{% endfor %}",
    "times": "{{ strftime_now('%1000000000Y') }}",
    "long times": "{{ strftime_now('%A' * 100000) }}",
    "splitting": "{% for i in range(1000000) %}{% set x = ('a ' * 10000).split() %}{% endfor %}",
    "searching": "{% set s = 'a' * 1000000 %}{% for i in range(1000000) %}{{ 'ab' in s }}{% endfor %}",
    "arguments": "{% macro f() %}{% endmacro %}{% for i in range(1000) %}{{ f(*range(100000)) }}{% endfor %}",
}


def beyond(name: str) -> str:
    with pytest.raises((ModelConfigError, UnsupportedError)) as caught:
        ours(BOMBS[name], messages=[{"role": "user", "content": "hi"}])
    return str(caught.value)


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_beyond_its_bounds_ends_with_one_error_in_bounded_time(name: str) -> None:
    begin = time.monotonic()
    message = beyond(name)
    assert time.monotonic() - begin < 15  # a second or two
    assert message.startswith("the model file: metadata key 'tokenizer.chat_template'")
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize("name", [name for name in BOMBS if "doubling" in name or "output" in name or "width" in name])
def test_the_memory_of_a_template_is_bounded_by_its_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pymixtral.text.templates.STEPS", 1 << 14)
    beyond(name)  # what is loaded once
    tracemalloc.start()
    try:
        beyond(name)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (1 << 14) * 16 * 8


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ ('' | attr('__class__')).__mro__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['os'].system('true') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ range.__self__.x }}",
    "{{ (1).__class__.__base__.x }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__init__.__globals__ }}",
    "{% for x in ''.__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{{ lipsum.__globals__ }}",
    "{{ '%(a)s' % messages.__class__.x }}",
    "{{ messages | map(attribute='__class__.x') | first + 1 }}",
    "{{ [''] | map('format') | map(attribute='__class__') | first + 1 }}",
    "{% import 'os' as os %}",
    "{% include '/etc/passwd' %}",
    "{% extends 'x' %}",
    "{% block a %}{% endblock %}",
    "{{ debug() }}",
    "{{ caller.__globals__ }}",
    "{% macro f() %}{{ caller.__globals__.x }}{% endmacro %}{{ f() }}",
    "{{ loop.__class__ }}{% for i in [1] %}{{ loop.__class__.x }}{% endfor %}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_no_template_reaches_python(source: str) -> None:
    with pytest.raises((ModelConfigError, UnsupportedError)):
        ours(source, messages=[{"role": "user", "content": "hi"}])


BROKEN = [
    "{% for %}",
    "{{ (" + "(" * 5000 + "1",
    "{{ " + "-" * 20000 + "1 }}",
    "{{ 1" + "+1" * 30000 + " }}",
    "{% if x %}" * 5000 + "{% endif %}" * 5000,
    "{{ 'x",
    "{" * 100_000,
    "{%" * 50_000,
    "{{ x " + "|trim" * 20000 + " }}",
    "{#" * 50_000,
    "{{ [" + "[" * 20_000,
    "\n" * 100_000 + "{% x %}",
    " " * 100_000 + "{%- y",
    "x" * (MAX_SOURCE + 1),
    "{{ 1e99999999 + 'x' }}",
    "{{ " + "9" * 100_000 + " }}",
    "{% break %}",
    "{{ x.y.z }}",
    "{% set a, b = [1] %}",
    "{{ none() }}",
    "{{ 'a' + 1 }}",
    "{{ 1 // 0 }}",
    "{{ 1 % 0 }}",
    "{{ [] | frobnicate }}",
    "{{ 1 is frobnicated }}",
    "{{ [1] | map('frobnicate') | list }}",
    "{{ [1] | select('frobnicated') | list }}",
    "{% for a in 1 %}{% endfor %}",
    "{% for a in x recursive %}{% endfor %}",
    "{{ [].index(1) }}",
    "{{ 'a'.strip(1, 2, 3) }}",
    "{{ messages[0].content.center(10) }}",
    "{{ ''.join([1]) }}",
    "{% autoescape true %}{% endautoescape %}",
    "{{ {[]: 1} }}",
    "{{ namespace(1) }}",
    "{{ 'x' | indent }}{{ 'x' | round }}",
    "{% trans %}x{% endtrans %}",
    "\ud800{{ \ud800 }}",
]


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_a_template_that_is_none_or_fails_is_one_typed_error(number: int) -> None:
    begin = time.monotonic()
    with pytest.raises((ModelConfigError, UnsupportedError)) as caught:
        ours(BROKEN[number], messages=[{"role": "user", "content": "hi"}])
    assert time.monotonic() - begin < 20
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_a_template_that_refuses_says_why() -> None:
    with pytest.raises(InvalidArgumentError, match="roles must alternate"):
        ours(TEMPLATES["mixtral of 2023"], messages=[{"role": "user", "content": "a"}] * 2, bos_token="", eos_token="")


WORDS = [
    *("{{", "}}", "{%", "%}", "{#", "#}", "x", "'", "|", "(", ")", "[", "]", ",", ".", "+", "-", "*", "9", "trim"),
    *(
        "messages",
        "loop",
        "if",
        "endif",
        "else",
        "set",
        "a=1",
        "endfor",
        "endmacro",
        " ",
        "\n",
        "for i in x",
        "macro f()",
    ),
]


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(st.sampled_from(WORDS), max_size=30))
def test_any_text_is_run_or_refused(pieces: list[str]) -> None:
    with suppress(PymixtralError):
        ours("".join(pieces), x=[1, 2], messages=[])


# --- Text that knows its writer ---------------------------------------------------------------------------------------

PIECES = st.lists(st.tuples(st.text("ab<>", max_size=5), st.booleans()), max_size=8)


@settings(max_examples=300, deadline=None)
@given(pieces=PIECES, bounds=st.tuples(st.integers(0, 20), st.integers(0, 20)), between=st.sampled_from(["", "<"]))
def test_text_knows_the_writer_of_each_character(
    pieces: list[tuple[str, bool]], bounds: tuple[int, int], between: str
) -> None:
    text = joined([Text.of(piece) if own else piece for piece, own in pieces], Text.of(between))
    expected: list[tuple[str, bool]] = []
    for i, (piece, own) in enumerate(pieces):
        expected += [(character, True) for character in (between if i else "")]
        expected += [(character, own) for character in piece]
    assert writers(text) == expected
    begin, end = sorted(min(bound, len(text)) for bound in bounds)
    assert writers(cut(text, begin, end)) == expected[begin:end]
    for before, after in pairwise(own_runs(text)):
        assert before[1] < after[0]


def writers(text: str) -> list[tuple[str, bool]]:
    own = [False] * len(text)
    for begin, end in own_runs(text):
        own[begin:end] = [True] * (end - begin)
    return list(zip(text, own, strict=True))


OWN = [
    ("{{ '<s>' }}", "<s>"),
    ("{{ '<' + 's>' }}", "<s>"),
    ("<s>", "<s>"),
    ("{% set x = '<s>' %}{{ x | trim }}", "<s>"),
    ("{% set x %}<{{ 's' }}>{% endset %}{{ x }}", "<s>"),
    ("{% macro m() %}<s>{% endmacro %}{{ m() }}", "<s>"),
    ("{{ ['<', 's', '>'] | join }}", "<s>"),
    ("{{ '%s>' % '<s' }}{{ '{}>'.format('<s') }}", "<s><s>"),
    ("{{ ' <s> '.strip() }}{{ '<s>,x'.split(',')[0] }}", "<s><s>"),
    ("{{ '<x>' | replace('x', 's') }}{{ '<S>' | lower }}", "<s><s>"),
    ("{{ ('<s>' * 2)[3:] }}{{ '<s>x'[:-1] }}", "<s><s>"),
    ("{% set ns = namespace(a='') %}{% for i in 'xy' %}{% set ns.a = ns.a ~ '<s>' %}{% endfor %}{{ ns.a }}", "<s><s>"),
]
STRANGE = [
    "{{ c }}",
    "{{ '<' + s + '>' }}",
    "{{ c | upper | lower }}",
    "{{ ['<', s, '>'] | join }}",
    "{{ '<%s>' % s }}",
]
STRANGE += [
    "{{ 'x' | replace('x', c) }}",
    "{{ c | tojson }}",
    "{{ [c] }}",
    "{{ '<{}>'.format(s) }}",
    "{{ c[0] ~ 's>' }}",
]


def test_what_the_template_wrote_is_its_own_and_what_a_message_wrote_is_not() -> None:
    for source, expected in OWN:
        text = ours(source, c="<s>", s="s")
        assert (text, own_runs(text)) == (expected, ((0, len(expected)),)), source
    for source in STRANGE:
        text = ours(source, c="<s>", s="s")
        begin = text.index("<s>")
        assert not all(own for _, own in writers(text)[begin : begin + 3]), source
