"""A conversation with a model: its answers go to standard output, wherever the messages come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymixtral.cli.history import History
from pymixtral.cli.text import note, write_data, write_json
from pymixtral.cli.work import bar, full, n_tokens, plain_stats
from pymixtral.errors import InvalidArgumentError

if TYPE_CHECKING:
    from pymixtral.arrays import F64
    from pymixtral.chatting import AnswerStream
    from pymixtral.mixtral import Mixtral


class Talk:
    """A conversation that is being held.

    Args:
        model: answers.
        history: the messages so far.
        options: of Mixtral.stream_chat(), for every answer; they may change between two.
        as_json: write each answer as a line of JSON.

    Attributes:
        model: see above.
        history: see above.
        options: see above.
        last: the last answer, which may still be written; None before the first.
        asked: the messages that it answers.
        adapter: what it is answered with, as pymixtral.Options has it.
        writing: whether it is.
    """

    def __init__(self, model: Mixtral, history: History, options: dict[str, Any], *, as_json: bool) -> None:
        self.model, self.history, self.options, self._as_json = model, history, options, as_json
        self.last: AnswerStream | None = None
        self.asked: list[dict[str, str]] = []
        self.adapter: Any = None
        self.writing = False

    def answer(self, seed_shift: int = 0) -> None:
        """Write the answer to the last message, and keep it as far as it comes.

        Args:
            seed_shift: is added to the seed, if one is given.

        Raises:
            PymixtralError: as Mixtral.stream_chat().
            OutputError: if it cannot be written.
        """
        options = dict(self.options)
        if options.get("seed") is not None:
            options["seed"] += seed_shift
        with bar("prompt", " tokens") as progress:
            asked, self.adapter = list(self.history.messages), options.get("adapter")
            self.last, self.asked = self.model.stream_chat(asked, progress=progress, **options), asked
            self.writing = True
            try:
                self._write(self.last)
                answer = self.last.answer
                assert answer is not None  # it was read to its end
                self.history.answer(answer.content)
            finally:
                self.writing = False
        if self._as_json:
            fields = {"content": answer.content, "finish_reason": answer.finish_reason}
            write_json(fields | {"stats": plain_stats(answer.completion.stats)}, indent=None)
        if answer.finish_reason == "context":
            note(full(self.model))
        elif answer.finish_reason == "length":
            note(f"The answer ends after {n_tokens(self.options['max_tokens'])}; -n makes it longer.")
        elif answer.finish_reason == "stop" and not answer.content:
            note("The model has nothing to say.")

    def shares(self) -> F64:
        """Compute how often each expert was chosen for the tokens of the last answer.

        The answer is read once more: its prompt may have been in the cache, which has no experts.

        Returns:
            float64 [n_layers, n_experts]; each layer adds up to 1.

        Raises:
            InvalidArgumentError: if there is no answer, or nothing in it.
            UnsupportedError: for a dense model.
        """
        import numpy as np

        ids = self.model.chat_format(self.options["chat_format"]).ids(self.asked) if self.last else []
        answer = self.last.tokens[: self.model.n_ctx - len(ids)] if self.last else []  # no pass reads one beyond that
        if not answer:
            raise InvalidArgumentError("expected an answer of the model, found none yet: say something first")
        routing = self.model.routing([*ids, *answer], adapter=self.adapter)
        experts = routing.experts[len(ids) :].swapaxes(0, 1).reshape(routing.n_layers, -1)
        counts = np.array([np.bincount(layer, minlength=routing.n_experts) for layer in experts])
        shares: F64 = counts / experts.shape[1]
        return shares

    def stop(self) -> None:
        """End the answer soon, where it is. A signal handler may call this."""
        if self.last:
            self.last.cancel()

    def _write(self, stream: AnswerStream) -> None:
        last = ""
        try:
            for piece in stream:
                last = piece
                if not self._as_json:
                    write_data(piece, keep="\n\t")
        except OSError:  # nowhere to write a newline to
            raise
        except BaseException:
            if not self._as_json:
                write_data("\n", keep="\n")
            raise
        if not self._as_json and not last.endswith("\n"):
            write_data("\n", keep="\n")
