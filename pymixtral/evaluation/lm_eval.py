"""A model for EleutherAI's lm-evaluation-harness (the package lm-eval, extra [eval]).

From the shell, with the harness's own command line:

    python -m pymixtral.evaluation.lm_eval run --model pymixtral \\
        --model_args pretrained=mixtral-q4_0.gguf --tasks hellaswag

From Python, where importing this module makes the model known:

    import lm_eval
    import pymixtral.evaluation.lm_eval

    lm_eval.simple_evaluate(model="pymixtral", model_args="pretrained=mixtral-q4_0.gguf", tasks=["hellaswag"])

Requests are computed together, those with one context from one pass over it, and contexts that begin
alike share their beginning. The results are the same as one by one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pymixtral.arguments import refuse_unknown
from pymixtral.engine.asking import Question
from pymixtral.errors import UnsupportedError
from pymixtral.evaluation.inquiries import Asking, Inquiry, answers
from pymixtral.mixtral import Mixtral
from pymixtral.progress import progress_bar
from pymixtral.questions import Score, sampled, scores
from pymixtral.text.chat_format import Prompt

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise UnsupportedError(
        f"expected the package lm-eval, found that it is missing or broken ({error}): pip install 'pymixtral[eval]'"
    ) from error

_PAGE = 64
"""Tokens that contexts have in common at least, if one waits for the other."""

_MAX_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


@register_model("pymixtral")
class MixtralLM(TemplateLM):  # type: ignore[misc]  # it has no types
    """A model, as lm-eval wants one.

    Args:
        pretrained: a GGUF file, or a Mixtral that is open; None: the demo model.
        chat_format: the format of conversations, one of pymixtral.text.chat.NAMES; None: the one
            that fits.
        max_gen_toks: the most tokens of a text whose task says nothing of it.
        batch_size: is ignored, as are max_batch_size and device: the engine makes its own batches.
        max_batch_size: see batch_size.
        device: see batch_size.
        **options: those of Mixtral, such as n_ctx, n_threads and max_batch.

    Attributes:
        model: the model.

    Raises:
        PymixtralError: as Mixtral.
        UnsupportedError: if the model has no tokenizer.
    """

    def __init__(
        self,
        pretrained: str | os.PathLike[str] | Mixtral | None = None,
        *,
        chat_format: str | None = None,
        max_gen_toks: int = 256,
        batch_size: object = None,  # noqa: ARG002
        max_batch_size: object = None,  # noqa: ARG002
        device: object = None,  # noqa: ARG002
        **options: Any,
    ) -> None:
        super().__init__()
        self.model = pretrained if isinstance(pretrained, Mixtral) else Mixtral(pretrained, **options)
        self.model.tokenize("")  # raises where there is no tokenizer
        self._chat_format = chat_format
        self._max_gen_toks = max_gen_toks
        self._chats: dict[str, Prompt] = {}

    @property
    def max_length(self) -> int:
        """The most tokens that predict others: all of a text but the last."""
        return self.model.n_ctx - 1

    @property
    def eot_token_id(self) -> int:
        """A token that ends a text."""
        return min(self.model.eos_ids)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        return self.eot_token_id if self.model.bos_id is None else self.model.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Turn a text into ids, with the begin-of-text token if the model wants one.

        Args:
            string: the text. Names of control tokens in it are ordinary text.
            add_special_tokens: False: without the begin-of-text token.
        """
        return self.model.tokenize(string, add_special_tokens is not False)

    # --- Conversations ----------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        """A name for the vocabulary and the chat format, for the harness's caches."""
        return f"pymixtral-{self.model.core.file.digest().hex()[:16]}-{self.model.chat_format(self._chat_format).name}"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Write a conversation as the model was trained to read it.

        Args:
            chat_history: the messages.
            add_generation_prompt: False: the last message is the beginning of the answer.

        Returns:
            The text. Its ids are kept, as text alone would not tell control tokens from their names.
        """
        prompt = self.model.chat_format(self._chat_format).prompt(
            chat_history, continue_final=not add_generation_prompt
        )
        tokenizer = self.model.core.tokenizer()
        parts = [
            tokenizer.token_bytes(id) if tokenizer.has_text(id) else tokenizer.special_name(id).encode()
            for id in prompt.ids
        ]
        text = b"".join(parts).decode("utf-8", "replace")
        self._chats[text] = prompt
        return text

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        chat = self._chats.get(context)
        if chat is None:
            pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
            return pair
        return chat.ids, self.model.tokenize(continuation, False)

    # --- Requests ---------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        n_ctx = self.model.n_ctx
        continuations: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for i, (_, context, continuation) in enumerate(requests):
            continuation = continuation[-(n_ctx - 1) :]
            kept = context[-(n_ctx - len(continuation)) :]  # the end of what is too long, as the harness does
            continuations.setdefault(tuple(kept), []).append((i, continuation))
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with progress_bar(total=len(requests), unit=" texts", shown=not disable_tqdm) as bar:
            for context_ids, found in answers(self.model, self._scoring(continuations)):
                for (i, _ids), score in zip(continuations[context_ids], found, strict=True):
                    results[i] = score.logprob, score.greedy
                    if requests[i][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[i][0], results[i])
                bar.update(len(found))
        return results

    def _scoring(
        self, continuations: Mapping[tuple[int, ...], list[tuple[int, list[int]]]]
    ) -> Iterator[Asking[tuple[int, ...], list[Score]]]:
        """Those that begin alike stand together."""
        alike = Counter(context[:_PAGE] for context in continuations)
        for context in sorted(continuations):
            question = scores(self.model.core.factory, context, [ids for _, ids in continuations[context]], {})
            begins = context[:_PAGE]
            yield Asking(context, _once(question), begins if len(begins) == _PAGE and alike[begins] > 1 else None)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Compute the log-likelihoods of whole texts, window by window.

        Args:
            requests: each with args (text,).
            disable_tqdm: show no bar.

        Returns:
            A number for each text.
        """
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for i, (text,) in enumerate(request.args for request in requests):
            for context, continuation in map(
                make_disjoint_window,
                get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1),
            ):
                windows.append((None, context, continuation))
                owners.append(i)
        sums = [0.0] * len(requests)
        for i, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            sums[i] += logprob
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate texts until their stop strings.

        Args:
            requests: each with args (context, kwargs). Of kwargs, until, max_gen_toks, do_sample,
                temperature, top_k, top_p, min_p, repetition_penalty and seed count; without
                do_sample or a temperature the text is the likeliest, token by token.
            disable_tqdm: show no bar.

        Returns:
            The texts, without the stop strings.

        Raises:
            InvalidArgumentError: for other kwargs.
        """
        results = [""] * len(requests)
        askings = (Asking(i, self._generating(*request.args)) for i, request in enumerate(requests))
        with progress_bar(total=len(requests), unit=" texts", shown=not disable_tqdm) as bar:
            for i, text in answers(self.model, askings):
                results[i] = text
                self.cache_hook.add_partial("generate_until", requests[i].args, text)
                bar.update()
        return results

    def _generating(self, context: str, kwargs: Mapping[str, Any]) -> Inquiry[str]:
        refuse_unknown(kwargs, ("until", "do_sample", *_MAX_TOKENS, *_SAMPLING), "generate_until()")
        given = [kwargs[name] for name in _MAX_TOKENS if kwargs.get(name) is not None]
        max_tokens = int(given[0] if given else self._max_gen_toks)
        options: dict[str, Any] = {name: kwargs[name] for name in _SAMPLING if kwargs.get(name) is not None}
        if not kwargs.get("do_sample", bool(options.get("temperature"))):
            options["temperature"] = 0.0
        options.setdefault("seed", 0)
        until = kwargs.get("until") or []
        options["stop"] = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        chat = self._chats.get(context)
        ids = chat.ids if chat else self.tok_encode(context) or [self.prefix_token_id]
        room = max(self.model.n_ctx - max_tokens, 1)
        ids = ids[-room:]
        more: dict[str, Any] = {}
        if chat:
            format = self.model.chat_format(self._chat_format)
            more = {"begins_text": chat.begins_text, "more_stops": format.stops, "more_stop_ids": format.stop_ids}
        question = sampled(self.model.core.factory, [ids], 1, None, options | {"max_tokens": max_tokens}, **more)
        (completion,) = yield question
        return str(completion.text)


def _once(question: Question[list[Score]]) -> Inquiry[list[Score]]:
    found: list[Score] = yield question
    return found


def main() -> None:
    """Run the harness's own command line, which knows the model "pymixtral" then."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
