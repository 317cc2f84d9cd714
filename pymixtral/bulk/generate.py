"""The texts that follow many prompts, computed together and written in the order of the prompts."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pymixtral.arguments import integer, refuse_unknown
from pymixtral.bulk.prompts import OPTIONS, Prompt, json_line, read_prompts
from pymixtral.bulk.records import Records
from pymixtral.engine.asking import Question
from pymixtral.engine.completion import Completion
from pymixtral.engine.requests import Event, Finished, Request
from pymixtral.engine.watch import Interest
from pymixtral.errors import InvalidArgumentError, NonFiniteError, PymixtralError, UnsupportedError
from pymixtral.files.atomic import check_dest
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.kinds import named
from pymixtral.mixtral import Mixtral
from pymixtral.progress import progress_bar
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


class Bulk:
    """A file of prompts, and the file that their texts are written into.

    A record that the output has is not computed again, so the same call goes on where an earlier one
    ended, even by SIGKILL. Each record has a digest of its prompt's line, of the options, and of the
    model's name, size, n_ctx, kv_type and configuration.

    Args:
        model: generates.
        prompts: the file of prompts; see pymixtral.bulk.prompts.read_prompts.
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

    def __init__(self, model: Mixtral, prompts: Path, output: Path, *, force: bool = False, **options: Any) -> None:
        refuse_unknown(options, OPTIONS, "generate()")
        self._model, self._prompts, self._output, self._force, self._options = model, prompts, output, force, options
        self._question([0], {})
        with GGUFFile(model.path) as file:
            check_dest(output, [prompts, *file.paths], force=True)  # all shards
        defaults = {**vars(SamplingParameters()), "n": 1, "stop": (), "ignore_eos": False, "parse_special": False}
        with_effect = {
            name: value
            for name, value in options.items()
            if name not in _WITHOUT_EFFECT and value is not None and value != defaults.get(name)
        }
        state = (model.path.name, model.path.stat().st_size, model.n_ctx, model.kv_type, model.config)
        self._key = f"{state} {json.dumps(with_effect, sort_keys=True)}"
        self.n_prompts = self.n_done = self.n_resumed = self.n_failed = self.n_tokens = 0
        self.seconds = 0.0

    def check(self) -> None:
        """Check the whole file of prompts, but for how long they are.

        Raises:
            InvalidArgumentError: for a line that is no prompt, or has an option that is not right;
                it names the file and the line.
            OSError: if the file cannot be read.
        """
        known: set[str] = set()
        n_prompts = 0
        for prompt in read_prompts(self._prompts, self._key):
            try:
                if prompt.options:
                    SamplingParameters(seed=prompt.options.get("seed"))
                    options = json.dumps({**prompt.options, "seed": None}, sort_keys=True)
                    if options not in known:
                        self._question([0], prompt.options)
                        if len(known) < _MAX_KNOWN:
                            known.add(options)
            except PymixtralError as error:
                raise InvalidArgumentError(f"{named(self._prompts)}, line {prompt.line}: {error}") from error
            n_prompts += 1
        self.n_prompts = n_prompts

    def run(self, n_in_flight: int = 32, *, progress: bool = True) -> None:
        """Generate the texts that the output does not have. An exception, such as KeyboardInterrupt,
        leaves those that are complete.

        An error of one prompt, such as one that is too long, becomes a record with "error", and the
        others go on.

        Args:
            n_in_flight: how many prompts the engine has at a time; with twice the most that it
                computes together there is always one that waits.
            progress: show a bar where standard error is a terminal.

        Raises:
            InvalidArgumentError: as check(), which comes first.
            OutputError: if the output cannot be written, or holds something else.
            ModelFileError: if the model's file was shortened while in use.
            ClosedError: if the model is closed.
        """
        n_in_flight = integer("n_in_flight", n_in_flight, 1)
        if not self.n_prompts:
            self.check()
        begin = time.perf_counter()
        with Records(self._output, force=self._force) as records:
            self.n_resumed, self.n_failed = records.skip(read_prompts(self._prompts, self._key))
            self.n_done = self.n_resumed
            prompts = islice(read_prompts(self._prompts, self._key), self.n_done, None)
            with progress_bar(total=self.n_prompts, initial=self.n_done, unit=" prompts", shown=progress) as bar:
                for record in self._in_order(prompts, n_in_flight, bar):
                    records.append(record.line)
                    self.n_done += 1
                    self.n_failed += record.failed
                    self.n_tokens += record.n_tokens
                    self.seconds = time.perf_counter() - begin
                    bar.update()

    # --- Parts ------------------------------------------------------------------------------------

    def _question(self, prompt: str | list[int], own: Mapping[str, Any]) -> Question[Any]:
        options = {**self._options, **own}
        n, best_of = options.pop("n", 1), options.pop("best_of", None)
        return generations(self._model.core.factory, prompt, n, best_of, options)

    def _in_order(self, prompts: Iterator[Prompt], n_in_flight: int, bar: tqdm[Any]) -> Iterator[_Record]:
        """The records in the order of the prompts. Texts that are complete before their turn wait."""
        events: queue.SimpleQueue[tuple[int, Request, Event]] = queue.SimpleQueue()
        asked: dict[int, _Asked] = {}
        waiting: dict[int, _Record] = {}
        n_bytes, turn = 0, self.n_done
        speed = _Speed(self._model, bar)
        going = True
        while going or asked:
            while going and len(asked) < n_in_flight and len(waiting) < _AHEAD * n_in_flight and n_bytes < _AHEAD_BYTES:
                prompt = next(prompts, None)
                if prompt is None:
                    going = False
                    break
                try:
                    asked[prompt.index] = self._ask(prompt, events)
                except _OF_A_PROMPT as error:
                    waiting[prompt.index] = _failure(prompt, error)
            if turn not in waiting and asked:
                record = self._receive(events, asked, speed)
                if record:
                    waiting[record.index] = record
                    n_bytes += len(record.line)
            while turn in waiting:
                record = waiting.pop(turn)
                n_bytes -= len(record.line)
                turn += 1
                yield record

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
    ) -> _Record | None:
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


@dataclass(frozen=True)
class _Record:
    index: int
    line: str
    n_tokens: int = 0
    failed: bool = False


def _failure(prompt: Prompt, error: BaseException) -> _Record:
    fields = json_line({"error": {"type": type(error).__name__, "message": str(error)}})
    return _Record(prompt.index, f"{prompt.head}, {fields[1:]}\n", failed=True)


def _success(prompt: Prompt, completion: Completion) -> _Record:
    fields = plain(completion)
    others = {"others": fields.pop("others")} if completion.others else {}
    fields["usage"] = {
        "prompt_tokens": completion.stats.prompt_tokens,
        "cached_tokens": completion.stats.cached_tokens,
        "generated_tokens": sum(len(text.tokens) for text in completion.choices),
    }
    return _Record(
        prompt.index, f"{prompt.head}, {json_line(fields | others)[1:]}\n", fields["usage"]["generated_tokens"]
    )


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
