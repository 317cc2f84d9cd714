"""Generation on scripted logits, without a model or a thread: what is written, when it is certain,
and why it ends. test_engine.py has real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pymixtral.engine.completion import Completion, Stats
from pymixtral.engine.generation import Continuation, Piece
from pymixtral.engine.requests import Event, Finished, Progress
from pymixtral.engine.scheduler import Entry
from pymixtral.engine.speculation import PromptLookup
from pymixtral.errors import CanceledError, InvalidArgumentError
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

    def __call__(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        self.calls.append(ids.tolist())
        logits = np.zeros(len(PIECES), np.float32)
        logits[self.ids[len(ids) - self.n_prompt]] = 1
        return logits


class Writing:
    """A request, and an engine that serves it alone."""

    def __init__(self, script: Script, stop: str | Sequence[str] | None = None, **options: Any) -> None:
        arguments: dict[str, Any] = {
            "n_ctx": 1000,
            "max_tokens": None,
            "sampler": sampler_of(temperature=0),
            "decoder": TOKENIZER.stream(begins_text=False),
            "stop": StopStrings(stop),
            "eos_ids": TOKENIZER.eos_ids,
            "pass_bytes": 10**9,
        }
        self.script = script
        self.request = Continuation(np.array(PROMPT, np.int32), **(arguments | options))
        self.events: list[Event] = []
        self.request.listen(self.events.append)
        self.entry = self.request.entry = Entry(0, 0, self.request.n_ids)
        self.request.over()

    def step(self) -> None:
        """One pass: the last certain id, and after it what is proposed."""
        request, entry = self.request, self.entry
        n_drafted = entry.n_drafted = request.propose()
        certain = request.n_ids
        for r in range(1 + n_drafted):
            logits = self.script(request.ids[: certain + r])
            token = request.sampler.sample(request.prepare(logits), request.text_ids)
            if not request.draw(token, logits, n_drafted):
                break
        entry.n_computed = certain + len(request.drawn) - 1
        request.account(0.5)
        request.advance()

    def finish(self) -> Completion:
        while not self.request.ended:
            self.step()
        self.request.tell_end()
        last = self.events[-1]
        assert isinstance(last, Finished)
        return last.result

    @property
    def pieces(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Piece) and event.text]


def written(text: str, **options: Any) -> tuple[list[str], str | None]:
    writing = Writing(Script([*ids_of(text), EOS]), **options)
    completion = writing.finish()
    assert completion.text == "".join(writing.pieces)
    return writing.pieces, completion.finish_reason


@pytest.mark.parametrize("end", [EOS, END_OF_TURN])
def test_ends_at_any_end_token_which_is_no_part_of_the_text(end: int) -> None:
    writing = Writing(Script([*ids_of("abc"), end, *ids_of("def")]))
    completion = writing.finish()
    assert writing.pieces == ["a", "b", "c"]
    assert completion.tokens == ids_of("abc")
    assert (completion.finish_reason, completion.stop_reason) == ("stop", end)


def test_each_pass_is_given_all_ids_so_far() -> None:
    script = Script([*ids_of("abc"), EOS])
    Writing(script).finish()
    assert script.calls == [PROMPT + ids_of("abc")[:n] for n in range(4)]


@pytest.mark.parametrize(("max_tokens", "text"), [(0, ""), (1, "a"), (3, "abc"), (4, "abcd")])
def test_max_tokens_ends_for_length(max_tokens: int, text: str) -> None:
    script = Script(ids_of("abcdefg"))
    completion = Writing(script, max_tokens=max_tokens).finish()
    assert completion.text == text
    assert (len(completion.tokens), len(script.calls), completion.finish_reason) == (max_tokens, max_tokens, "length")


def test_the_end_of_the_context_ends_after_the_last_logits() -> None:
    script = Script(ids_of("abcdefg"))
    completion = Writing(script, n_ctx=4, max_tokens=100).finish()
    assert completion.text == "abc"  # the third is read off a full context
    assert max(map(len, script.calls)) == 4
    assert completion.finish_reason == "context"


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
    completion = Writing(Script(ids_of("xabcz")), stop="abc").finish()
    assert completion.text == "x"
    assert completion.tokens == ids_of("xabc")
    assert completion.stop_reason == "abc"
    assert completion.stats.generated_tokens == 4


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
        if stopped is not None:
            break
    else:
        out += stop_strings.flush()
    assert out == expected


@pytest.mark.parametrize("stop", ["", ["a", ""], [1], [None]])
def test_stop_strings_that_are_none_are_refused(stop: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="expected stop to be a string or a list of strings"):
        StopStrings(stop)


@pytest.mark.parametrize("reason", ["cancelled", "deadline"])
def test_an_end_before_the_end_gives_the_text_so_far(reason: Any) -> None:
    writing = Writing(Script(ids_of("xab\u4f60yz")), stop="abc")
    for _ in range(4):  # the stop string may still come, and the character is not complete
        writing.step()
    writing.request.stop(reason)
    completion = writing.finish()
    assert (completion.text, completion.finish_reason) == ("xab\ufffd", reason)
    assert completion.text == "".join(writing.pieces)
    assert completion.tokens == ids_of("xab\u4f60")[:4]


def test_an_exception_is_the_last_event() -> None:
    writing = Writing(Script(ids_of("abc")))
    writing.step()
    error = CanceledError("now")
    writing.request.stop(error)
    writing.request.stop("cancelled")
    writing.request.tell_end()
    assert writing.events[-1] is error
    assert writing.pieces == ["a"]


def test_a_listener_that_fails_ends_its_request() -> None:
    def gone(_: Event) -> None:
        raise RuntimeError("Event loop is closed")

    writing = Writing(Script(ids_of("abc")))
    writing.request.listen(gone)
    writing.step()
    assert writing.request.overdue() == "cancelled"


def test_without_a_decoder_there_are_tokens_and_no_text() -> None:
    completion = Writing(Script([*ids_of("ab"), EOS]), decoder=None).finish()
    assert (completion.text, completion.tokens) == ("", ids_of("ab"))


def test_what_does_not_stream_delivers_the_end_alone() -> None:
    writing = Writing(Script([*ids_of("ab"), EOS]), streams=False)
    assert writing.finish().text == "ab"
    assert len(writing.events) == 1


def test_a_part_of_a_prompt_tells_its_progress() -> None:
    writing = Writing(Script(ids_of("a")))
    writing.entry.n_computed = 1
    writing.request.advance()
    assert writing.events == [Progress(1, 2)]


def test_logprobs_are_those_of_the_model() -> None:
    completion = Writing(Script([*ids_of("ab"), EOS]), n_logprobs=2).finish()
    assert completion.logprobs is not None
    assert [token.id for token in completion.logprobs] == ids_of("ab")
    expected = 1 - np.log(np.e + len(PIECES) - 1)
    for token in completion.logprobs:  # of equal ones the first comes first
        assert token.logprob == pytest.approx(expected, abs=1e-6)
        assert token.top == ((token.id, token.logprob), (0, pytest.approx(expected - 1, abs=1e-6)))


def test_a_processor_sees_all_ids_and_changes_only_its_copy() -> None:
    seen: list[list[int]] = []

    def processor(ids: NDArray[np.int32], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(ids.tolist())
        ids[:] = 0
        logits[:] = 0
        logits[ids_of("z")] = 5
        return logits

    script = Script(ids_of("abcdef"))
    completion = Writing(script, processor=processor, max_tokens=3).finish()
    assert completion.text == "zzz"
    assert seen == script.calls == [PROMPT + ids_of("zzz")[:n] for n in range(3)]


@pytest.mark.parametrize("wrong", [np.zeros(3, np.float32), 5, "abc", np.zeros(len(PIECES), np.int32)])
def test_a_processor_returns_logits_or_none(wrong: Any) -> None:
    writing = Writing(Script(ids_of("a")), processor=lambda *_: wrong)
    with pytest.raises(InvalidArgumentError, match=f"expected logits_processor to return {len(PIECES)} logits"):
        writing.step()


@settings(deadline=None)
@given(st.text("ab", min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 50))
def test_lookup_changes_the_passes_and_not_the_text(text: str, most: int, max_tokens: int) -> None:
    script = Script([*ids_of(text), EOS])
    alone = Writing(script, max_tokens=max_tokens).finish()
    writing = Writing(script, max_tokens=max_tokens, lookup=PromptLookup(most))
    completion = writing.finish()
    assert (completion.text, completion.tokens) == (alone.text, alone.tokens)
    assert completion.finish_reason == alone.finish_reason
    assert completion.stats.passes + completion.stats.accepted_tokens >= alone.stats.passes


def test_stats_count_passes_and_divide() -> None:
    writing = Writing(Script([*ids_of("abc"), EOS]))
    assert writing.request.stats == Stats(2, 0, 0, 0.0, 0.0, 0, 10**9)
    stats = writing.finish().stats
    assert (stats.prompt_tokens, stats.generated_tokens, stats.passes) == (2, 3, 3)
    assert (stats.prompt_seconds, stats.generation_seconds) == (0.5, 1.5)

    stats = Stats(100, 20, 11, 2.0, 4.0, 10, 3 * 10**9)
    assert (stats.prompt_tokens_per_second, stats.tokens_per_second, stats.gigabytes_per_second) == (40.0, 2.5, 7.5)
    stats = Stats(100, 20, 1, 2.0, 0.0, 0, 3 * 10**9)
    assert (stats.tokens_per_second, stats.gigabytes_per_second) == (0.0, 0.0)


def test_stats_have_the_times_of_a_clock() -> None:
    writing = Writing(Script([*ids_of("abc"), EOS]))
    assert writing.request.stats.first_seconds == 0.0
    writing.step()
    first = writing.request.stats
    assert 0 < first.first_seconds <= first.seconds
    writing.finish()
    last = writing.request.stats
    assert (last.first_seconds, last.seconds) == (first.first_seconds, writing.request.stats.seconds)
    assert last.seconds > first.seconds


def test_a_completion_reads_as_its_text() -> None:
    assert f"{Completion(' upon', [5], 'stop', Stats(1, 0, 1, 0.1, 0.0, 0, 1))}" == " upon"
