"""What a model says of texts in numbers: logits, scores, vectors, the choices of its routers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pymixtral.arrays import F32, Ids
from pymixtral.chatting import Messages
from pymixtral.core import Core
from pymixtral.engine.asking import ask
from pymixtral.model.routing import Routing
from pymixtral.options import How
from pymixtral.questions import Score, embeddings, logits, routings, scores

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ModelNumbers:
    """The part of Mixtral that computes numbers of texts."""

    core: Core

    def logits(self, tokens: Ids, last_only: bool = False, *, first: int = 0, **how: Unpack[How]) -> F32:
        """Compute the logits of what follows each token.

        Args:
            tokens: 1 to n_ctx ids, taken as they are: no begin-of-text id is added.
            last_only: return only the logits after the last token, which is less work.
            first: index of the first token whose logits are returned, 0 to n_tokens - 1. Tokens
                before it that are in the cache are not computed.
            **how: priority, timeout, cache_salt and adapter; see pymixtral.Options.

        Returns:
            float32 [n_tokens - first, n_vocab], or [n_vocab] with last_only.

        Raises:
            InvalidArgumentError: for ids outside the vocabulary, and other arguments out of range.
            ContextLengthError: for more than n_ctx ids.
            NonFiniteError: if the model's weights lead to NaN or infinity.
            ModelFileError: if the model's file was shortened while in use.
            ClosedError: after close().
        """
        self.core.engine.check_open()
        return ask(self.core.engine, logits(self.core.factory, tokens, last_only, first, how))

    def score(self, context: str | Ids, continuations: Sequence[str | Ids], **how: Unpack[How]) -> list[Score]:
        """Compute how likely texts are to follow another one.

        Args:
            context: a text or token ids, at least one token.
            continuations: texts or token ids, at least one token each. A text after a text is tokenized
                with it: tokens that the context alone does not have count for the continuation.
            **how: priority, timeout, cache_salt and adapter; see pymixtral.Options.

        Returns:
            For each continuation the log-probabilities of its tokens. The context is computed once.

        Raises:
            InvalidArgumentError: for an empty context or continuation, and ids outside the
                vocabulary.
            ContextLengthError: if context and continuation are longer than n_ctx.
            UnsupportedError: for texts, if the file has no tokenizer.
            NonFiniteError: if the model's weights lead to NaN or infinity.
            ClosedError: after close().
        """
        self.core.engine.check_open()
        return ask(self.core.engine, scores(self.core.factory, context, continuations, how))

    def embed(
        self, texts: Sequence[str | Ids], *, pooling: str = "mean", normalize: bool = False, **how: Unpack[How]
    ) -> F32:
        """Compute vectors of texts: the hidden state after the last norm.

        Args:
            texts: texts or token ids, at least one token each.
            pooling: "mean" over the tokens of a text, or the state of its "last" token.
            normalize: divide each vector by its length.
            **how: priority, timeout, cache_salt and adapter; see pymixtral.Options.

        Returns:
            float32 [n, hidden].

        Raises:
            InvalidArgumentError: for another pooling, no text, and ids outside the vocabulary.
            ContextLengthError: for a text longer than n_ctx.
            UnsupportedError: for texts, if the file has no tokenizer.
            NonFiniteError: if the model's weights lead to NaN or infinity.
            ClosedError: after close().
        """
        self.core.engine.check_open()
        return ask(self.core.engine, embeddings(self.core.factory, texts, pooling, normalize, how))

    def routing(self, text: str | Ids | Messages, *, full: bool = False, **how: Unpack[How]) -> Routing:
        """Compute which experts the tokens of a text go to, in every layer.

        generate() and the others give the same of what they write with routing=True.

        Args:
            text: a text or token ids, at least one token; or the messages of a conversation, which the
                model's own chat format turns into ids.
            full: give the router's probability of every expert, too.
            **how: priority, timeout, cache_salt and adapter; see pymixtral.Options.

        Returns:
            The experts of every token and their weights; see docs/routing.md.

        Raises:
            InvalidArgumentError: for no tokens, ids outside the vocabulary, and messages that make no
                sense.
            ContextLengthError: for a text longer than n_ctx.
            UnsupportedError: for a dense model, for a text if the file has no tokenizer, and for
                messages if no chat format fits.
            NonFiniteError: if the model's weights lead to NaN or infinity.
            ClosedError: after close().
        """
        self.core.engine.check_open()
        return ask(self.core.engine, routings(self.core.factory, self.core.ids_of(text), full, how))
