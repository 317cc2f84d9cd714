"""Which tokens a grammar allows, against a search by the letter; and what is no grammar."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from pymixtral.errors import InvalidArgumentError, UnsupportedError
from pymixtral.sampling import matcher as matching
from pymixtral.sampling.grammar import MAX_TEXT, Grammar, grammar_of
from pymixtral.sampling.matcher import Grammars, Matcher
from pymixtral.text.tokenizer import Tokenizer
from support.bpe import metadata_of, trained

WORDS = [
    "ab",
    "abc",
    "ba",
    "xx",
    "xxxx",
    "12",
    "00",
    "\u2581",
    "\u2581a",
    "\u2581the",
    '":',
    '{"',
    "},",
    "a" * 300,
    "\u2581" * 250,
]
PIECES = ["<unk>", "<s>", "</s>", "<|end|>", *(f"<0x{i:02X}>" for i in range(256)), *map(chr, range(33, 127)), *WORDS]
KINDS = [2, 3, 3, 3] + [6] * 256 + [1] * (94 + len(WORDS))


def sentencepiece(n_bytes: int = 256) -> Tokenizer:
    """A vocabulary with one piece a letter, some words, and tokens of single bytes."""
    kept = [i for i, kind in enumerate(KINDS) if kind != 6 or i < 4 + n_bytes]
    pieces = [PIECES[i] for i in kept]
    return Tokenizer.from_metadata(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": pieces,
            "tokenizer.ggml.scores": np.array([-float(i) for i in range(len(pieces))], np.float32),
            "tokenizer.ggml.token_type": np.array([KINDS[i] for i in kept], np.int32),
        }
    )


TOKENIZERS = {
    "sentencepiece": sentencepiece(),
    "bytes": Tokenizer.from_metadata(metadata_of(trained("smollm"), "smollm")),
}
GRAMMARS = {name: Grammars(tokenizer) for name, tokenizer in TOKENIZERS.items()}


@pytest.fixture(params=TOKENIZERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def matcher(name: str, **options: Any) -> Matcher:
    grammar = grammar_of(options)
    assert grammar
    return GRAMMARS[name].matcher(grammar, TOKENIZERS[name].eos_ids)


def allowed(one: Matcher) -> list[int]:
    mask = one.mask()
    assert mask is not None
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


# --- What is allowed ----------------------------------------------------------------------------------------------

PATTERNS = [
    r"a+b?c",
    r"(ab|ba)*x{2,5}",
    r"[a-z ]{0,12}\.",
    r"\{\"[a-c]{1,3}\":(12|[0-9]+)\}",
    r"x*|the( the)*",
    r"(ab?)+(ba)?",
]


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("vocabulary", TOKENIZERS)
def test_a_token_is_allowed_if_a_match_begins_so(vocabulary: str, pattern: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[vocabulary]
    want = regex.compile(pattern.encode())
    one, text = matcher(vocabulary, regex=pattern), b""
    for _ in range(6):
        forced = one.forced()
        found = allowed(one)
        ends = want.fullmatch(text) is not None
        expected = [
            i
            for i in range(tokenizer.n_vocab)
            if (ends and i in tokenizer.eos_ids)
            or (
                0 < len(tokenizer.token_bytes(i)) <= 200
                and want.fullmatch(text + tokenizer.token_bytes(i), partial=True)
            )
        ]
        if forced:  # no other spelling of what comes anyway
            assert found == forced[:1]
            assert forced[0] in expected
        else:
            assert set(found) <= set(expected)
            # A text may be spelled in one way only where the grammar has no choice for some bytes.
            spelled = {tokenizer.token_bytes(i)[:1] for i in expected}
            assert {tokenizer.token_bytes(i)[:1] for i in found} == spelled
            if len(spelled - {b""}) > 1 or ends:
                assert found == expected
        token = data.draw(st.sampled_from(found))
        if token in tokenizer.eos_ids:
            return
        one.accept(token)
        text += tokenizer.token_bytes(token)
        if one.complete:
            assert want.fullmatch(text)
            return


def spelled(one: Matcher, tokenizer: Tokenizer, data: bytes) -> bool:
    """Whether a text can be written to its end, where the text can end or go on."""
    while data:
        if one.complete:
            return False
        found = [i for i in allowed(one) if tokenizer.token_bytes(i) and data.startswith(tokenizer.token_bytes(i))]
        if not found:
            return False
        token = max(found, key=lambda i: len(tokenizer.token_bytes(i)))
        one.accept(token)
        data = data[len(tokenizer.token_bytes(token)) :]
    return one.complete or bool(set(allowed(one)) & tokenizer.eos_ids)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(list(TOKENIZERS)),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), min_size=1, max_size=5),
)
def test_each_choice_can_be_written_and_nothing_else(name: str, choices: list[str]) -> None:
    tokenizer = TOKENIZERS[name]
    for choice in choices:
        assert spelled(matcher(name, choice=choices), tokenizer, choice.encode())
    for other in ("q" + choices[0], choices[0] + "q"):
        if other not in choices and not any(choice.startswith(other) for choice in choices):
            assert not spelled(matcher(name, choice=choices), tokenizer, other.encode())


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(TOKENIZERS)), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_what_is_forced_is_the_text(name: str, text: str) -> None:
    tokenizer, one = TOKENIZERS[name], matcher(name, choice=[text])
    forced = one.forced()
    assert one.n_allowed([*forced, 5]) == len(forced)
    for token in forced:
        assert allowed(one) == [token]
        one.accept(token)
    assert b"".join(map(tokenizer.token_bytes, forced)) == text.encode()
    assert one.complete
    assert one.mask() is None


def test_a_text_inside_of_a_text_has_no_space_before_it(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    for text in ("{", 'the": [', "\u00e9", "a" * 700):
        ids = tokenizer.encode(text, False, continued=True)
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_the_end_is_allowed_where_the_text_may_end(name: str) -> None:
    tokenizer, one = TOKENIZERS[name], matcher(name, regex="a{2,3}")
    (a,) = tokenizer.encode("a", False, continued=True)
    ends = []
    for _ in range(3):
        ends.append(tokenizer.eos_ids <= set(allowed(one)))
        one.accept(a)
    assert ends == [False, False, True]
    assert one.complete


def test_an_end_that_has_a_text_is_no_part_of_one(name: str) -> None:
    """Files have the end of a turn as a user-defined token, which is a text, too."""
    (end,) = TOKENIZERS[name].encode("x", False, continued=True)
    found = []
    for pattern in ("[xy]+", "y?[xy]*"):
        grammar = grammar_of({"regex": pattern})
        assert grammar
        found.append(end in allowed(GRAMMARS[name].matcher(grammar, [end])))
    assert found == [False, True]
    assert end in allowed(matcher(name, regex="[xy]+"))


def test_a_grammar_names_control_tokens() -> None:
    one, end = matcher("sentencepiece", lark='start: "a" <|end|> "b"'), PIECES.index("<|end|>")
    a, b = (PIECES.index(letter) for letter in "ab")
    assert one.forced() == [a, end, b]
    assert allowed(matcher("sentencepiece", lark="start: <[2]> | <|end|>")) == [2, end]


def test_copies_of_a_grammar_go_on_by_themselves(name: str) -> None:
    grammar = grammar_of({"regex": "ab*c"})
    assert grammar
    first, second = (GRAMMARS[name].matcher(grammar) for _ in range(2))
    before = allowed(second)
    first.accept(before[0])
    assert allowed(second) == before != allowed(first)


def test_a_token_that_is_not_allowed_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="regex to be a grammar"):
        matcher(name, regex="a").accept(TOKENIZERS[name].encode("b", False, continued=True)[0])


def test_what_the_vocabulary_cannot_spell_is_refused() -> None:
    grammars = Grammars(sentencepiece(0))
    for options in ({"choice": ["\u00e9"]}, {"regex": "[\u0410-\u042f]+"}):
        grammar = grammar_of(options)
        assert grammar
        with pytest.raises(InvalidArgumentError, match=r"no token of the vocabulary|no text of the vocabulary"):
            grammars.matcher(grammar)


def test_a_few_grammars_are_kept(name: str) -> None:
    for i in range(matching.MAX_CACHED + 9):
        matcher(name, regex=f"a{{{i + 1}}}")
    assert len(GRAMMARS[name]._compiled) == matching.MAX_CACHED


# --- What is refused ----------------------------------------------------------------------------------------------


def arrays(n: int) -> str:
    return '{"items":' * n + "{}" + "}" * n


def chain(n: int, rule: str) -> str:
    return "start: r0\n" + "".join(rule.format(f"r{i}", f"r{i + 1}") + "\n" for i in range(n)) + f'r{n}: "a"'


def upper(n: int, rule: str) -> str:
    return chain(n, rule).replace("r", "R").replace("staRt", "start")


def references(n: int, depth: int) -> dict[str, Any]:
    defs: dict[str, Any] = {f"d{n}": {"type": "string"}}
    for i in range(n):
        defs[f"d{i}"] = {"$ref": f"#/$defs/d{i + 1}"}
        for _ in range(depth):
            defs[f"d{i}"] = {"type": "array", "items": defs[f"d{i}"]}
    return {"$defs": defs, "$ref": "#/$defs/d0"}


REFUSED: dict[str, dict[str, Any]] = {
    "type": {"json_schema": {"type": "hiccup"}},
    "not": {"json_schema": {"not": {}}},
    "remote": {"json_schema": {"$ref": "https://example.com/schema.json"}},
    "endless": {"json_schema": {"$ref": "#"}},
    "deep": {"json_schema": arrays(500)},
    "deeper": {"json_schema": arrays(5000)},
    "deepest": {"json_schema": "[" * 100_000},
    "no JSON": {"json_schema": "{"},
    "no object": {"json_schema": "[]"},
    "list": {"json_schema": []},
    "number": {"json_schema": {"minimum": float("nan")}},
    "bytes": {"json_schema": {"const": b"x"}},
    "surrogate": {"json_schema": {"const": "\udcff"}},
    "patterns": {
        "json_schema": {"allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(1, 14)]}
    },
    "large": {"json_schema": {"enum": [f"w{i}" for i in range(20_000)]}},
    "larger": {"json_schema": " " * 10_000_000 + "{}"},
    "bracket": {"regex": "a(b"},
    "brackets": {"regex": "(" * 30_000 + "a" + ")" * 30_000},
    "anything": {"regex": r"[^\s\S]"},
    "empty": {"regex": ""},
    "look": {"regex": "(?=a)b"},
    "back": {"regex": r"(a)\1"},
    "regex number": {"regex": 5},
    "regex surrogate": {"regex": "\udcff"},
    "unknown": {"lark": "start: x"},
    "loop": {"lark": "start: start"},
    "no start": {"lark": ""},
    "nested": {"lark": "start: " + "(" * 30_000 + '"a"' + ")" * 30_000},
    "doubling": {"lark": upper(40, "{0}: {1} {1}")},
    "no choice": {"choice": []},
    "one text": {"choice": "abc"},
    "empty choice": {"choice": ["a", ""]},
    "no text": {"choice": ["a", 5]},
    "huge choice": {"choice": ["a"] * 10_000_000},
    "flag": {"json_object": 3},
    "two": {"json_object": True, "regex": "a"},
}


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED)
def test_what_is_no_grammar_is_refused_in_one_sentence(options: dict[str, Any]) -> None:
    begin = time.perf_counter()
    with pytest.raises(InvalidArgumentError) as error:
        matcher("sentencepiece", **options)
    assert time.perf_counter() - begin < matching.COMPILE_SECONDS + 5
    message = str(error.value)
    assert message.startswith("expected ")
    assert ", found " in message
    assert next(iter(options)) in message
    assert len(message) < 500
    assert message.isprintable()


N = MAX_TEXT // 16

HOSTILE: dict[str, dict[str, Any]] = {
    "chain": {"lark": chain(N, '{0}: {1}|"b"')},
    "terminals": {"lark": upper(N, '{0}: {1} "b"')},
    "stars": {"lark": upper(N, '{0}: ("a" {1})*')},
    "references": {"json_schema": references(1200, 1)},
    "nested references": {"json_schema": references(30, 60)},
    "ambiguous": {"lark": 'start: start start | "a" | '},
    "empty words": {"lark": chain(300, "{0}: {1} {1}|")},
    "regex": {"regex": "(a{1,1000}){1,1000}"},
    "exponential": {"regex": "(a|b)*a(a|b){200}"},
    "long": {"regex": "a" * (MAX_TEXT - 1)},
    "words": {"regex": "|".join(f"w{i}" for i in range(9000))},
    "repeated": {"lark": 'start: "a"{1000000}'},
    "optional": {"json_schema": {"properties": {f"p{i}": {"type": "string"} for i in range(2000)}}},
    "items": {"json_schema": {"type": "array", "minItems": 10**8, "maxItems": 10**9}},
    "letters": {"json_schema": {"type": "string", "minLength": 10**6, "maxLength": 10**7}},
    "itself": {"json_schema": {"anyOf": [{"properties": {f"p{i}": {"$ref": "#"}}} for i in range(300)]}},
}


def walk(one: Matcher, seed: int) -> Iterator[int]:
    rng = np.random.default_rng(seed)
    while not one.complete:
        found = [i for i in allowed(one) if i not in TOKENIZERS["sentencepiece"].eos_ids]
        if not found:
            return
        one.accept(int(rng.choice(found)))
        yield 1


@pytest.mark.parametrize("options", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_grammar_takes_bounded_time(options: dict[str, Any]) -> None:
    """It is followed, or refused, at the beginning or later; nothing crashes and nothing hangs."""
    begin = time.perf_counter()
    n = 0
    try:
        one = matcher("sentencepiece", **options)
        compiled = time.perf_counter()
        assert compiled - begin < matching.COMPILE_SECONDS + 2
        for _ in walk(one, 1):
            n += 1
            if n == 40:
                break
        assert time.perf_counter() - compiled < 40 * 0.5
    except InvalidArgumentError as error:
        assert next(iter(options)) in str(error)  # noqa: PT017
        assert time.perf_counter() - begin < matching.COMPILE_SECONDS + 20


def test_a_grammar_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "COMPILE_SECONDS", 0.05)
    begin = time.perf_counter()
    with pytest.raises(InvalidArgumentError, match=r"it takes more than 0\.05 s to compile"):
        matcher("sentencepiece", **REFUSED["patterns"])
    assert time.perf_counter() - begin < 1


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(
        UnsupportedError, match=r"expected llguidance for regex, .* pip install 'pymixtral\[structured\]'"
    ):
        Grammars(sentencepiece()).matcher(Grammar("regex", "regex", "a"))


def test_several_arguments_are_refused_and_none_is_no_grammar() -> None:
    assert grammar_of({"regex": None, "json_object": False, "temperature": 3}) is None
    with pytest.raises(InvalidArgumentError, match="found regex and lark: leave one out"):
        grammar_of({"regex": "a", "lark": "b"})


def test_a_schema_is_the_same_as_its_text() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    assert grammar_of({"json_schema": schema}) == grammar_of(
        {"json_schema": ' {"type": "object",\n"properties":{"b":{},"a":{}}} '}
    )


@pytest.mark.parametrize("name", ["json_schema", "regex", "choice", "lark"])
def test_false_is_no_grammar_and_not_none_either(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"expected {name} to be"):
        grammar_of({name: False})
    assert grammar_of({"json_object": False}) is None
