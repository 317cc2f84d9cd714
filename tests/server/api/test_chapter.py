"""docs/server-api.md says what the requests have."""

from __future__ import annotations

import re

import pytest

from pymixtral.server.api.adapters import LoadRequest, UnloadRequest
from pymixtral.server.api.bodies import Body
from pymixtral.server.api.chat_requests import ChatRequest
from pymixtral.server.api.completions import CompletionRequest
from pymixtral.server.api.fields import IGNORED, REFUSED
from pymixtral.server.api.responses_requests import ResponseRequest
from pymixtral.server.api.tokenization import DetokenizeRequest, TemplateRequest, TokenizeRequest
from pymixtral.server.api.vectors import EmbeddingRequest, ScoreRequest
from support.paths import ROOT

CHAPTER = (ROOT / "docs" / "server-api.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "kind",
    [
        *(CompletionRequest, ChatRequest, ResponseRequest, EmbeddingRequest, ScoreRequest),
        *(TokenizeRequest, DetokenizeRequest, TemplateRequest, LoadRequest, UnloadRequest),
    ],
)
def test_every_field_is_in_the_chapter(kind: type[Body]) -> None:
    text = CHAPTER.partition("## Fields without effect")[0]
    assert [name for name in kind.model_fields if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    ("section", "table"), [("Fields without effect", IGNORED), ("Fields that are refused", REFUSED)]
)
def test_the_tables_are_those_of_the_code(section: str, table: dict[str, str]) -> None:
    text = CHAPTER.partition(f"## {section}\n")[2].partition("\n## ")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.M)) == table
