"""The judge: what it is asked, and what is made of servers that fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pymixtral import InvalidArgumentError
from pymixtral.evaluation.judge import KEY, Judge
from support.judge import judging, reply

MESSAGES = [{"role": "user", "content": "Is it good? 不"}]


def test_what_a_judge_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    with judging(lambda _: "Rating: [[7]]") as (url, asked):
        for base in (url, f"{url}/"):
            assert Judge(base, "wise").ask(MESSAGES) == "Rating: [[7]]"
        monkeypatch.setenv(KEY, "sesame")
        Judge(url, "wise").ask(MESSAGES)
    assert {(one["path"], one["model"], one["temperature"]) for one in asked} == {("/v1/chat/completions", "wise", 0)}
    assert asked[0]["messages"] == MESSAGES
    assert ["Authorization" in one["headers"] for one in asked] == [False, False, True]
    assert asked[2]["headers"]["Authorization"] == "Bearer sesame"


def test_a_busy_server_is_asked_again() -> None:
    answers: Iterator[Any] = iter([(503, b"busy"), (429, b"slow down"), "fine"])
    with judging(lambda _: next(answers)) as (url, asked):
        assert Judge(url, "wise", pause=0.001).ask(MESSAGES) == "fine"
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ((401, b'{"error": "no key"}'), r"found status 401 .*no key.*PYMIXTRAL_JUDGE_KEY"),
        ((503, b"busy"), "found status 503"),
        ((302, b""), "found status 302"),
        ((200, b"<html>"), "found '<html>'"),
        ((200, b'{"choices": []}'), "choices"),
        ((200, b'{"choices": [{"message": {"content": null}}]}'), "null"),
    ],
)
def test_a_server_that_fails_is_named(said: tuple[int, bytes], words: str) -> None:
    with judging(lambda _: said) as (url, asked), pytest.raises(InvalidArgumentError, match=words) as found:
        Judge(url, "wise", tries=2, pause=0.001).ask(MESSAGES)
    assert url in str(found.value)
    assert len(asked) == (2 if said[0] == 503 else 1)


def test_a_server_that_is_not_there_is_named() -> None:
    with judging(lambda _: "") as (url, _):
        pass
    with pytest.raises(InvalidArgumentError, match="expected an opinion of the judge at"):
        Judge(url, "wise", tries=2, pause=0.001).ask(MESSAGES)


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "file:///etc/passwd", "ftp://a/v1", "http://", "http://[a", "http://[a]"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="expected the judge's URL"):
        Judge(url, "wise")


def test_the_support_server_speaks_json() -> None:
    assert b'"content": "a"' in reply("a")
