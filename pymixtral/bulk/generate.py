"""The texts that follow many prompts, computed together and written in the order of the prompts."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pymixtral.arguments import refuse_unknown
from pymixtral.bulk.job import Job
from pymixtral.bulk.prompts import OPTIONS, Prompt, parse_prompt
from pymixtral.bulk.records import Record
from pymixtral.engine.asking import Question
from pymixtral.engine.completion import Completion
from pymixtral.engine.requests import Event, Finished, Request
from pymixtral.engine.watch import Interest
from pymixtral.errors import InvalidArgumentError, NonFiniteError, UnsupportedError
from pymixtral.mixtral import Mixtral
from pymixtral.questions import generations
from pymixtral.sampling.parameters import SamplingParameters

_OF_A_PROMPT = (InvalidArgumentError, NonFiniteError, UnsupportedError)
"""Errors of one prompt, which others need not have."""

_WITHOUT_EFFECT = ("prompt_lookup", "priority")
"""Options that change no text."""

_AHEAD = 32
"""How many texts for each prompt in flight may wait until one before them is complete. So nobody
waits for a text that is 32 times as long as the others."""

_AHEAD_BYTES = 1 << 28
"""Their memory."""

_TICK = 0.5
"""Seconds between two looks at the speed."""

_MAX_KNOWN = 10_000
"""Different options that are remembered as right."""


class Bulk(Job[Prompt]):
    """A file of prompts, and the file that their texts are written into.

    A record that the output has is not computed again, so the same call goes on where an earlier one
    ended, even by SIGKILL. Each record has a digest of its prompt's line, of the options, and of the
    model's name, size, n_ctx, kv_type, configuration and adapters.

    Args:
        model: generates.
        prompts: the file of prompts; see pymixtral.bulk.prompts.parse_prompt.
        output: the file of texts. It grows a record at a time, in the order of the prompts.
        force: begin anew, whatever the output holds.
        **options: of Mixtral.generate(), for prompts that have none of their own.

    Attributes:
        n_prompts: prompts in the file; 0 before check().
        n_done: prompts that have a record in the output.
        n_resumed: those of them that another run has made.
        n_failed: those of them that are errors.
        n_tokens: tokens generated in this run.
        seconds: time of this run.

    Raises:
        InvalidArgumentError: for options that are not right.
        OutputError: if the output is one of the files that are read, or cannot be written.
    """

    noun = "prompt"

    def __init__(self, model: Mixtral, prompts: Path, output: Path, *, force: bool = False, **options: Any) -> None:
        refuse_unknown(options, OPTIONS, "generate()")
        self._model, self._options = model, options
        self._question([0], {})
        defaults = {**vars(SamplingParameters()), "n": 1, "stop": (), "ignore_eos": False, "parse_special": False}
        with_effect = {
            name: value
            for name, value in options.items()
            if name not in _WITHOUT_EFFECT and value is not None and value != defaults.get(name)
        }
        super().__init__(model, prompts, output, force=force, key=f" {json.dumps(with_effect, sort_keys=True)}")

    @property
    def n_prompts(self) -> int:
        return self.n_lines

    # --- Parts of the job -------------------------------------------------------------------------

    _parse = staticmethod(parse_prompt)

    def _check(self, line: Prompt, known: dict[str, int]) -> None:
        if line.options:
            SamplingParameters(seed=line.options.get("seed"))
            options = json.dumps({**line.options, "seed": None}, sort_keys=True)
            if options not in known:
                self._question([0], line.options)
                if len(known) < _MAX_KNOWN:
                    known[options] = line.number

    def _answer_all(self, lines: Iterator[Prompt], n_in_flight: int) -> None:
        """Texts that are complete before their turn wait."""
        events: queue.SimpleQueue[tuple[int, Request, Event]] = queue.SimpleQueue()
        asked: dict[int, _Asked] = {}
        waiting: dict[int, Record] = {}
        n_bytes, turn = 0, self.n_done
        speed = _Speed(self._model, self._bar)
        going = True
        while going or asked:
            while going and len(asked) < n_in_flight and len(waiting) < _AHEAD * n_in_flight and n_bytes < _AHEAD_BYTES:
                prompt = next(lines, None)
                if prompt is None:
                    going = False
                    break
                try:
                    asked[prompt.index] = self._ask(prompt, events)
                except _OF_A_PROMPT as error:
                    waiting[prompt.index] = _failure(prompt, error)
                    n_bytes += len(waiting[prompt.index].text)
            if turn not in waiting and asked and (record := self._receive(events, asked, speed)):
                waiting[record.index] = record
                n_bytes += len(record.text)
            while turn in waiting:
                record = waiting.pop(turn)
                n_bytes -= len(record.text)
                turn += 1
                self._write(record)

    # --- Parts ------------------------------------------------------------------------------------

    def _question(self, prompt: str | list[int], own: Mapping[str, Any]) -> Question[Any]:
        options = {**self._options, **own}
        n, best_of = options.pop("n", 1), options.pop("best_of", None)
        return generations(self._model.core.factory, prompt, n, best_of, options)

    def _ask(self, prompt: Prompt, events: queue.SimpleQueue[tuple[int, Request, Event]]) -> _Asked:
        asked = _Asked(prompt, self._question(prompt.prompt, prompt.options))
        for request in asked.question.requests:
            request.listen(partial(_post, events, prompt.index, request))
        asked.interest = self._model.core.engine.submit(asked.question.stages[0], asked.question.others)
        return asked

    def _receive(
        self,
        events: queue.SimpleQueue[tuple[int, Request, Event]],
        asked: dict[int, _Asked],
        speed: _Speed,
    ) -> Record | None:
        """Waits for an event; gives the record that it completes."""
        try:
            index, request, event = events.get(timeout=_TICK)
        except queue.Empty:
            return None
        finally:
            speed.show()
        one = asked.get(index)
        if one is None:  # another of its texts has failed
            return None
        if isinstance(event, _OF_A_PROMPT):
            del asked[index]
            return _failure(one.prompt, event)
        if isinstance(event, BaseException):
            raise event
        if isinstance(event, Finished):
            one.results[request] = event.result
            requests = one.question.requests
            if len(one.results) == len(requests):
                del asked[index]
                return _success(one.prompt, one.question.answer([one.results[request] for request in requests]))
        return None


@dataclass
class _Asked:
    """A prompt in flight. When it is dropped, its requests are cancelled."""

    prompt: Prompt
    question: Question[Any]
    results: dict[Request, Any] = field(default_factory=dict)
    interest: Interest | None = None


def _post(events: queue.SimpleQueue[tuple[int, Request, Event]], index: int, request: Request, event: Event) -> None:
    events.put((index, request, event))


def _failure(prompt: Prompt, error: BaseException) -> Record:
    return Record(prompt, {"error": {"type": type(error).__name__, "message": str(error)}}, failed=True)


def _success(prompt: Prompt, completion: Completion) -> Record:
    fields = plain(completion)
    others = {"others": fields.pop("others")} if completion.others else {}
    n_tokens = sum(len(text.tokens) for text in completion.choices)
    fields["usage"] = {
        "prompt_tokens": completion.stats.prompt_tokens,
        "cached_tokens": completion.stats.cached_tokens,
        "generated_tokens": n_tokens,
    }
    return Record(prompt, fields | others, n_tokens=n_tokens)


def plain(text: Completion) -> dict[str, Any]:
    """Say what JSON says of a text.

    Args:
        text: with the other texts of its prompt, or without.

    Returns:
        Text, tokens and reasons of the end; log-probabilities, if they were asked for; the other
        texts, if there are any.
    """
    fields: dict[str, Any] = {
        "text": text.text,
        "tokens": text.tokens,
        "finish_reason": text.finish_reason,
        "stop_reason": text.stop_reason,
    }
    for name in ("logprobs", "prompt_logprobs"):
        if (logprobs := getattr(text, name)) is not None:
            fields[name] = [token and asdict(token) for token in logprobs]
    if text.others:
        fields["others"] = [plain(other) for other in text.others]
    return fields


class _Speed:
    """The speed of the engine, shown beside a bar."""

    def __init__(self, model: Mixtral, bar: tqdm[Any]) -> None:
        self._model, self._bar = model, bar
        self._begin = self._shown = time.monotonic()
        self._tokens = model.stats().generated_tokens

    def show(self) -> None:
        now = time.monotonic()
        if now - self._shown >= _TICK:
            self._shown = now
            rate = (self._model.stats().generated_tokens - self._tokens) / (now - self._begin)
            self._bar.set_postfix_str(f"{rate:.1f} tokens/s")
