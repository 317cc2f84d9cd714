"""From the arguments of the public calls to requests: everything is checked before it is sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pymixtral.arguments import integer, number, refuse_unknown, shown, text_of
from pymixtral.arrays import F32, I32, Ids
from pymixtral.engine.adapters import Adapters, namespace
from pymixtral.engine.generation import Continuation
from pymixtral.engine.requests import Rows
from pymixtral.engine.speculation import PromptLookup
from pymixtral.engine.trace import Trace
from pymixtral.errors import ContextLengthError, InvalidArgumentError, UnsupportedError
from pymixtral.model.config import ModelConfig
from pymixtral.ops import PAGE
from pymixtral.options import OPTIONS, How, Options
from pymixtral.sampling.grammar import grammar_of
from pymixtral.sampling.matcher import Grammars
from pymixtral.sampling.parameters import SamplingParameters
from pymixtral.sampling.sampler import Sampler
from pymixtral.text.stops import StopStrings
from pymixtral.text.tokenizer import Tokenizer

MAX_LOGPROBS = 100
"""The most likely tokens that may be asked for at each place."""

MAX_LOOKUP = 16
"""The most tokens that prompt lookup may propose."""


_SAMPLING = {field.name for field in fields(SamplingParameters)}


@dataclass(frozen=True)
class RequestFactory:
    """Makes the requests of one model.

    Attributes:
        config: the model's numbers.
        tokenizer: its tokenizer, if the file has one.
        n_ctx: most tokens of a text.
        pass_bytes: bytes of weights that a pass of one token reads.
        source: the file's name in messages.
        adapters: those that are loaded.
    """

    config: ModelConfig
    tokenizer: Tokenizer | None
    n_ctx: int
    pass_bytes: int
    source: str
    adapters: Adapters

    def continuations(
        self,
        prompts: Sequence[str | Ids],
        options: Options,
        n: int = 1,
        *,
        streams: bool,
        begins_text: bool | None = None,
        more_stops: Sequence[str] = (),
        more_stop_ids: frozenset[int] = frozenset(),
    ) -> list[list[Continuation]]:
        """Make the requests for the texts that follow prompts.

        The options are checked once, and each prompt is tokenized once, however many texts there are.

        Args:
            prompts: texts, or token ids.
            options: see Options.
            n: texts of each prompt.
            streams: whether pieces of the texts are delivered.
            begins_text: whether the space that a tokenizer may put before a text is none of what
                follows; None: if the prompt has no text.
            more_stops: strings that end a text, beside those of the options.
            more_stop_ids: tokens that end a text, beside those of the model.

        Returns:
            n lists, each with a request for each prompt. The i-th of one prompt and seed is always
            the same text.

        Raises:
            InvalidArgumentError: for arguments out of range, of another type, or unknown.
            ContextLengthError: if a prompt is longer than n_ctx.
            UnsupportedError: for a prompt or stop strings of text, if the file has no tokenizer, and
                for routing of a dense model.
        """
        refuse_unknown(options, OPTIONS, "stream()" if streams else "generate()", "pymixtral.Options lists the options")
        given: dict[str, Any] = dict(options)
        sampling = {name: given.pop(name) for name in list(given) if name in _SAMPLING}
        if sampling.get("bad_words") is not None:
            sampling["bad_words"] = self._words(sampling["bad_words"])
        parameters = SamplingParameters(**sampling)
        eos_ids = self.tokenizer.eos_ids if self.tokenizer else frozenset()
        stop_strings, stop_ids = self._stops(given.get("stop"), more_stops)
        stop_ids |= self._stop_ids(given.get("stop_token_ids"))
        eos_ids |= more_stop_ids
        ends = eos_ids | stop_ids
        max_tokens = given.get("max_tokens")
        if max_tokens is not None:
            max_tokens = integer("max_tokens", max_tokens, 0)
        lookup = integer("prompt_lookup", given.get("prompt_lookup", 0), 0, MAX_LOOKUP)
        grammar = grammar_of(given)
        processor = given.get("logits_processor")
        if processor is not None and not callable(processor):
            raise InvalidArgumentError(f"expected logits_processor to be a function, found {shown(processor)}")
        parse_special = _flag("parse_special", given.get("parse_special", False))
        ignore_eos = _flag("ignore_eos", given.get("ignore_eos", False))
        same: dict[str, Any] = {
            "n_ctx": self.n_ctx,
            "max_tokens": max_tokens,
            "eos_ids": ends,
            "pass_bytes": self.pass_bytes,
            "n_logprobs": _n_logprobs("logprobs", given.get("logprobs")),
            "n_prompt_logprobs": _n_logprobs("prompt_logprobs", given.get("prompt_logprobs")),
            "processor": processor,
            "streams": streams,
            "kept": self._kept(given.get("context_shift")),
            **self.served(given),
        }
        tokenizer = self.text_tokenizer() if stop_strings else self.tokenizer
        texts = []
        for prompt in prompts:
            ids = self.prompt_ids(prompt, parse_special=parse_special)
            begins = begins_text
            if begins is None:
                begins = tokenizer is not None and not any(tokenizer.has_text(i) for i in ids.tolist())
            texts.append((ids, begins))
        return [
            [
                Continuation(
                    ids,
                    sampler=Sampler(
                        parameters,
                        n_vocab=self.config.n_vocab,
                        eos_ids=eos_ids,
                        ignore_eos=ignore_eos,
                        n_prompt=len(ids),
                        seed_index=i,
                    ),
                    decoder=tokenizer.stream(begins_text=begins) if tokenizer else None,
                    stop=StopStrings(stop_strings.strings),
                    lookup=PromptLookup(lookup) if lookup else None,
                    matcher=self._grammars.matcher(grammar, ends, begins_text=begins) if grammar else None,
                    trace=self.trace(given.get("routing", False)),
                    **same,
                )
                for ids, begins in texts
            ]
            for i in range(n)
        ]

    def rows(
        self,
        ids: I32,
        first: int,
        reader: Callable[[int, F32], None],
        served: Mapping[str, Any],
        *,
        reads_hidden: bool = False,
        trace: Trace | None = None,
    ) -> Rows:
        """Make a request for numbers of a text.

        Args:
            ids: the text, as checked_ids() returns it.
            first: the first position whose row is wanted.
            reader: takes the rows; see Rows.
            served: how it is served, as served_alone() returns it.
            reads_hidden: see Rows.
            trace: takes the routers' choices; None: nobody wants them.

        Returns:
            The request.
        """
        return Rows(ids, reader, reads_hidden=reads_hidden, rows=range(first, len(ids)), trace=trace, **served)

    def served(self, how: Mapping[str, Any]) -> dict[str, Any]:
        """Turn options of pymixtral.options.How into arguments of requests.

        Requests that belong together are made with the same: a name leads to one adapter for all of
        them.

        Args:
            how: has them; others in it are left alone.

        Returns:
            priority, deadline, namespace and adapters; see pymixtral.engine.requests.Request.

        Raises:
            InvalidArgumentError: for values out of range, and an adapter that is not loaded.
        """
        adapted = self.adapters.chosen(how.get("adapter"))
        return {
            "priority": integer("priority", how.get("priority", 0), -(1 << 31)),
            "deadline": deadline_of(how.get("timeout")),
            "namespace": namespace(_salt(how.get("cache_salt")), adapted),
            "adapters": adapted,
        }

    def served_alone(self, how: How) -> dict[str, Any]:
        """Turn the keyword arguments of calls that want numbers of texts into arguments of requests.

        Args:
            how: all of them.

        Returns:
            See served().

        Raises:
            InvalidArgumentError: for unknown ones, and as served().
        """
        refuse_unknown(how, How.__annotations__, "logits(), score(), embed() and routing()")
        return self.served(how)

    def trace(self, routing: object) -> Trace | None:
        """Make what takes the routers' choices for a text.

        Args:
            routing: see Options.

        Returns:
            The trace, still empty; None if none is wanted.

        Raises:
            InvalidArgumentError: for another value.
            UnsupportedError: for a dense model.
        """
        full = isinstance(routing, str) and routing == "full"
        if not full and not isinstance(routing, (bool, np.bool_)):
            raise InvalidArgumentError(f'expected routing to be True, False or "full", found {shown(routing)}')
        if not routing:
            return None
        c = self.config
        if c.n_experts == 1:
            raise UnsupportedError(
                f"{self.source}: expected a model with experts, found a dense one, in which nothing is routed: leave "
                "routing out"
            )
        return Trace(c.n_layers, c.n_experts, c.n_experts_used, full=full)

    # --- Parts ------------------------------------------------------------------------------------

    @cached_property
    def _grammars(self) -> Grammars:
        """What compiles grammars, and keeps them."""
        return Grammars(self.text_tokenizer())

    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            UnsupportedError: if the file has none.
        """
        if self.tokenizer is None:
            raise UnsupportedError(
                f"{self.source}: expected the keys tokenizer.ggml.*, found no tokenizer: pass token ids instead of text"
            )
        return self.tokenizer

    def prompt_ids(self, prompt: str | Ids, *, parse_special: bool = False, name: str = "prompt") -> I32:
        """Turn a prompt into ids. One that is far too long is refused before it is tokenized.

        Args:
            prompt: a text, or token ids.
            parse_special: see Options.
            name: the argument's name in messages.

        Returns:
            int32 [1 to n_ctx].

        Raises:
            InvalidArgumentError: for anything else.
            ContextLengthError: if it is longer than n_ctx.
            UnsupportedError: for a text, if the file has no tokenizer.
        """
        if isinstance(prompt, str):
            tokenizer = self.text_tokenizer()
            fewest = tokenizer.fewest_tokens(prompt)  # tokenizing takes seconds for some megabytes
            if fewest > self.n_ctx:
                raise self.too_long(name, fewest, " or more")
            prompt = tokenizer.encode(text_of(name, prompt), True, parse_special=parse_special)
        elif not isinstance(prompt, (Sequence, np.ndarray)) or isinstance(prompt, (bytes, bytearray)):
            text_of(name, prompt)  # says what to do with bytes, None and the like
        elif isinstance(prompt, (list, tuple)) and prompt and isinstance(prompt[0], (str, Mapping)):
            found, advice = ("messages", "chat() and stream_chat() take them")
            if isinstance(prompt[0], str):
                found, advice = ("a list of texts", "generate() takes several prompts, stream() one")
            raise InvalidArgumentError(f"expected {name} to be one text or its token ids, found {found}: {advice}")
        return self.checked_ids(name, prompt)

    def _words(self, words: object) -> list[Any]:
        """The bad words as ids: a text as it is written at the beginning of a text, and inside."""
        if isinstance(words, str):
            words = [words]
        if isinstance(words, bytes) or not isinstance(words, Sequence):
            raise InvalidArgumentError(f"expected bad_words to be a text or a list, found {shown(words)}")
        ids: list[Any] = []
        for word in words:
            if not isinstance(word, str):
                ids.append(word)
                continue
            if not word:
                raise InvalidArgumentError("expected bad_words without an empty text, found one: leave it out")
            tokenizer = self.text_tokenizer()
            inside = tokenizer.encode("\n" + word, False)[len(tokenizer.encode("\n", False)) :]
            ids += [list(each) for each in dict.fromkeys((tuple(tokenizer.encode(word, False)), tuple(inside))) if each]
        return ids

    def _kept(self, context_shift: int | None) -> int | None:
        """How many tokens a full context keeps at the beginning."""
        if context_shift is None:
            return None
        n = integer("context_shift", context_shift, 0)
        most = (self.n_ctx // PAGE - 1) * PAGE
        if n > most:
            raise InvalidArgumentError(
                f"expected context_shift to leave a whole page of {PAGE} of the context's {self.n_ctx} tokens, "
                f"found {shown(n)} to keep: keep fewer, or raise n_ctx"
            )
        return n

    def _stops(self, stop: str | Sequence[str] | None, more: Sequence[str]) -> tuple[StopStrings, frozenset[int]]:
        """The stop strings, and the control tokens that some of them name."""
        strings = [*StopStrings(stop).strings, *more]
        if not strings:
            return StopStrings(None), frozenset()
        tokenizer = self.text_tokenizer()
        ids = {string: tokenizer.control_id(string) for string in strings}
        return StopStrings([string for string in strings if ids[string] is None]), frozenset(
            id for id in ids.values() if id is not None
        )

    def _stop_ids(self, ids: object) -> frozenset[int]:
        """The tokens that end this text, beside the model's end tokens."""
        if ids is None or (isinstance(ids, (list, tuple)) and not ids):
            return frozenset()
        return frozenset(self.checked_ids("stop_token_ids", ids).tolist())

    def checked_ids(self, name: str, tokens: object) -> I32:
        """Check token ids that a caller gives.

        Args:
            name: the argument's name in the message.
            tokens: a list or an array of integers.

        Returns:
            int32 [1 to n_ctx].

        Raises:
            InvalidArgumentError: for anything but a list of at least one id of the vocabulary.
            ContextLengthError: for more than n_ctx ids.
        """
        if isinstance(tokens, (str, bytes, bytearray)) or not isinstance(tokens, (Sequence, np.ndarray)):
            raise InvalidArgumentError(
                f"expected {name} to be a list of token ids, found {type(tokens).__name__} {shown(tokens)}"
            )
        if isinstance(tokens, np.ndarray) and tokens.ndim == 0:
            raise InvalidArgumentError(f"expected {name} to be a list of token ids, found one number {shown(tokens)}")
        if len(tokens) > self.n_ctx:  # before they are copied
            raise self.too_long(name, len(tokens))
        ids: NDArray[Any]
        try:
            ids = np.asarray(tokens)
        except (ValueError, OverflowError):  # lists of different lengths, integers beyond 64 bits
            raise InvalidArgumentError(
                f"expected {name} to be a list of token ids, found nested lists or huge numbers"
            ) from None
        if ids.size == 0:
            raise InvalidArgumentError(f"expected {name} of at least one token, found none")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InvalidArgumentError(
                f"expected {name} to be a list of token ids, found {ids.ndim} dimensions of {ids.dtype}"
            )
        outside = ids[(ids < 0) | (ids >= self.config.n_vocab)]
        if outside.size:
            raise InvalidArgumentError(
                f"expected token ids from 0 to {self.config.n_vocab - 1} in {name}, found {outside[0]}"
            )
        return ids.astype(np.int32)

    def too_long(self, name: str, n_tokens: int, or_more: str = "") -> ContextLengthError:
        """Make the error of a text that does not fit, which says whether a longer context helps.

        Args:
            name: the argument's name.
            n_tokens: its length.
            or_more: what is said of that.
        """
        most = self.config.n_ctx_train
        advice = f"or raise n_ctx, up to {most}" if self.n_ctx < most else "as the model was trained for no more"
        return ContextLengthError(
            f"expected {name} of at most {self.n_ctx} tokens (n_ctx), found {n_tokens}{or_more}: shorten the text, "
            f"{advice}",
            n_tokens,
            self.n_ctx,
        )


def deadline_of(timeout: float | None) -> float | None:
    """Turn a time from now into a deadline.

    Args:
        timeout: seconds, 0 to 10^9; None: no limit.

    Returns:
        The deadline as time.monotonic() counts; None if there is no limit.

    Raises:
        InvalidArgumentError: for another number.
    """
    return None if timeout is None else time.monotonic() + number("timeout", timeout, 0, 1e9)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidArgumentError(f"expected {name} to be True or False, found {shown(value)}")
    return bool(value)


def _salt(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InvalidArgumentError(f"expected cache_salt to be a text or None, found {shown(value)}")
    return value


def _n_logprobs(name: str, value: object) -> int | None:
    return None if value is None else integer(name, value, 0, MAX_LOGPROBS)
