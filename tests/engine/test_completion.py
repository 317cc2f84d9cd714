"""Generation on scripted logits: what is written, when it is certain, and why it ends.
test_engine.py has real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pymixtral.engine.completion import Completion, Generation, Stats
from pymixtral.errors import InvalidArgumentError, NonFiniteError
from pymixtral.text.stops import StopStrings
from pymixtral.text.tokenizer import Tokenizer
from support.samplers import sampler_of

BOS, EOS, END_OF_TURN, BYTE_0, A = 1, 2, 3, 4, 260
PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    "<end>",
    *(f"<0x{i:02X}>" for i in range(256)),
    *"abcdefghijklmnopqrstuvwxyz",
    "\u2581",
    "ab",
    "abc",
]
TOKENIZER = Tokenizer.from_metadata(
    {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": PIECES,
        "tokenizer.ggml.scores": np.zeros(len(PIECES), np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3, 3] + [6] * 256 + [1] * (len(PIECES) - BYTE_0 - 256), np.int32),
        "tokenizer.ggml.eot_token_id": END_OF_TURN,
    }
)
PROMPT = [BOS, A]


def ids_of(text: str) -> list[int]:
    """One id a character, its bytes where it has no piece."""
    return [i for c in text for i in ([PIECES.index(c)] if c in PIECES else [BYTE_0 + b for b in c.encode()])]


class Script:
    """A model that wants to write certain ids, whatever it is asked."""

    def __init__(self, ids: Sequence[int], n_prompt: int = len(PROMPT)) -> None:
        self.ids = ids
        self.n_prompt = n_prompt
        self.calls: list[list[int]] = []

    def __call__(self, ids: NDArray[np.int32]) -> tuple[NDArray[np.float32], int]:
        self.calls.append(ids.tolist())
        logits = np.zeros(len(PIECES), np.float32)
        logits[self.ids[len(ids) - self.n_prompt]] = 1
        return logits, 1


def generation_of(script: Script, stop: str | Sequence[str] | None = None, **options: Any) -> Generation:
    arguments: dict[str, Any] = {
        "n_ctx": 1000,
        "max_tokens": None,
        "draw": sampler_of(temperature=0).sample,
        "decoder": TOKENIZER.stream(begins_text=False),
        "stop": StopStrings(stop),
        "eos_ids": TOKENIZER.eos_ids,
        "pass_bytes": 10**9,
    }
    return Generation(script, np.array(PROMPT, np.int32), **(arguments | options))


def written(text: str, **options: Any) -> tuple[list[str], str | None]:
    generation = generation_of(Script([*ids_of(text), EOS]), **options)
    return list(generation), generation.finish_reason


@pytest.mark.parametrize("end", [EOS, END_OF_TURN])
def test_ends_at_any_end_token_which_is_no_part_of_the_text(end: int) -> None:
    generation = generation_of(Script([*ids_of("abc"), end, *ids_of("def")]))
    assert list(generation) == ["a", "b", "c"]
    assert generation.tokens == ids_of("abc")
    assert generation.finish_reason == "stop"
    assert list(generation) == []


def test_each_pass_is_given_all_ids_so_far() -> None:
    script = Script([*ids_of("abc"), EOS])
    list(generation_of(script))
    assert script.calls == [PROMPT + ids_of("abc")[:n] for n in range(4)]


@pytest.mark.parametrize(("max_tokens", "text"), [(0, ""), (1, "a"), (3, "abc"), (4, "abcd")])
def test_max_tokens_ends_for_length(max_tokens: int, text: str) -> None:
    script = Script(ids_of("abcdefg"))
    generation = generation_of(script, max_tokens=max_tokens)
    assert "".join(generation) == text
    assert (len(generation.tokens), len(script.calls), generation.finish_reason) == (max_tokens, max_tokens, "length")


def test_the_end_of_the_context_ends_after_the_last_logits() -> None:
    script = Script(ids_of("abcdefg"))
    generation = generation_of(script, n_ctx=4, max_tokens=100)
    assert "".join(generation) == "abc"  # the third is read off a full context
    assert max(map(len, script.calls)) == 4
    assert generation.finish_reason == "context"


def test_a_character_of_several_tokens_comes_whole() -> None:
    assert written("a\u4f60b\U0001f600") == (["a", "\u4f60", "b", "\U0001f600"], "stop")
    assert written("a\u4f60", max_tokens=3) == (["a", "\ufffd\ufffd"], "length")  # two of its three bytes


def test_a_stop_string_across_tokens_never_shows_its_beginning() -> None:
    assert written("xyabcz", stop="abc") == (["x", "y"], "stop")
    assert written("xyabz", stop="abc") == (["x", "y", "abz"], "stop")
    assert written("xyab", stop="abc") == (["x", "y", "ab"], "stop")  # held back, then known to be text
    assert written("xyabcz", stop="abc", max_tokens=4) == (["x", "y", "ab"], "length")
    assert written("xyabcz", stop=["zz", "c", "bc"]) == (["x", "y", "a"], "stop")
    assert written("x\u4f60y", stop="\u4f60") == (["x"], "stop")
    assert written("x\u4f60", stop="\ufffd", max_tokens=2) == (
        ["x"],
        "stop",
    )  # found in what the end makes of cut bytes


def test_tokens_of_the_stop_string_are_counted() -> None:
    generation = generation_of(Script(ids_of("xabcz")), stop="abc")
    assert "".join(generation) == "x"
    assert generation.tokens == ids_of("xabc")
    assert generation.stats.generated_tokens == 4


@settings(deadline=None)
@given(st.text("abc", max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_strings_do_not_depend_on_how_the_text_is_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    expected = text
    if ends:  # the first place where one ends; the longest of those that do
        expected = text[: ends[0] - max(len(stop) for stop in stops if text[: ends[0]].endswith(stop))]

    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    stop_strings, out = StopStrings(stops), ""
    for piece in pieces:
        certain, stopped = stop_strings.push(piece)
        out += certain
        assert expected.startswith(out)
        if stopped:
            break
    else:
        out += stop_strings.flush()
    assert out == expected


@pytest.mark.parametrize("stop", ["", ["a", ""], [1], [None]])
def test_stop_strings_that_are_none_are_refused(stop: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="expected stop to be a string or a list of strings"):
        StopStrings(stop)


def test_may_be_closed_or_dropped_midway() -> None:
    script = Script(ids_of("abcdef"))
    generation = generation_of(script)
    assert next(generation) == "a"
    generation.close()
    assert list(generation) == []
    assert len(script.calls) == 1
    assert generation.finish_reason is None


def test_an_exception_leaves_what_was_generated_and_the_next_call_goes_on() -> None:
    class Failing(Script):
        def __call__(self, ids: NDArray[np.int32]) -> tuple[NDArray[np.float32], int]:
            if len(self.calls) == 2:
                self.calls.append([])
                raise NonFiniteError("now")
            return super().__call__(ids)

    generation = generation_of(Failing([*ids_of("abcd"), EOS]))
    assert [next(generation), next(generation)] == ["a", "b"]
    with pytest.raises(NonFiniteError):
        next(generation)
    assert "".join(generation) == "cd"
    assert generation.tokens == ids_of("abcd")


def test_without_a_decoder_there_are_tokens_and_no_text() -> None:
    generation = generation_of(Script([*ids_of("ab"), EOS]), decoder=None)
    assert list(generation) == []
    assert generation.tokens == ids_of("ab")


def test_stats_count_passes_and_divide() -> None:
    generation = generation_of(Script([*ids_of("abc"), EOS]))
    assert generation.stats == Stats(2, 0, 0, 0.0, 0.0, 0, 10**9)
    list(generation)
    stats = generation.stats
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens, stats.passes) == (2, 1, 3, 3)
    assert stats.prompt_seconds > 0
    assert stats.generation_seconds > 0

    stats = Stats(100, 20, 11, 2.0, 4.0, 10, 3 * 10**9)
    assert (stats.prompt_tokens_per_second, stats.tokens_per_second, stats.gigabytes_per_second) == (40.0, 2.5, 7.5)
    stats = Stats(100, 20, 1, 2.0, 0.0, 0, 3 * 10**9)
    assert (stats.tokens_per_second, stats.gigabytes_per_second) == (0.0, 0.0)


def test_a_completion_reads_as_its_text() -> None:
    assert f"{Completion(' upon', [5], 'stop', Stats(1, 0, 1, 0.1, 0.0, 0, 1))}" == " upon"


def test_a_second_reader_is_told_so() -> None:
    generation: list[Generation] = []
    errors: list[BaseException] = []

    def read_again(ids: Any) -> Any:
        try:
            next(generation[0])
        except InvalidArgumentError as error:
            errors.append(error)
        return Script(ids_of("ab"))(ids)

    generation.append(generation_of(read_again, max_tokens=2))
    assert "".join(generation[0]) == "ab"
    assert len(errors) == 2
    assert "one reader of a generation at a time" in str(errors[0])
