"""A model's sessions: what a text took to compute, in a file and back."""

from __future__ import annotations

import hashlib
import json
import os

from pymixtral import ops
from pymixtral.arguments import path_of
from pymixtral.arrays import Ids
from pymixtral.core import Core
from pymixtral.engine import sessions
from pymixtral.engine.adapters import Adapted, Choice, identity
from pymixtral.files.atomic import check_dest, check_space
from pymixtral.files.sessions import Binding, SessionForm
from pymixtral.model.config import ModelConfig
from pymixtral.model.page import PageForm


class ModelSessions:
    """The part of Mixtral that saves and loads sessions."""

    config: ModelConfig
    n_ctx: int
    kv_type: str
    core: Core

    def save_session(
        self, path: str | os.PathLike[str], text: str | Ids, *, adapter: Choice = None, force: bool = False
    ) -> None:
        """Write the ids of a text, and their keys and values, to a file.

        What the cache does not have of them is computed. See docs/sessions.md.

        Args:
            path: the file to write.
            text: 1 to n_ctx ids, such as those of a prompt and its answer; or a text.
            adapter: what the text was computed with; see pymixtral.Options.
            force: whether an existing file is replaced.

        Raises:
            OutputError: if the file cannot be written, or exists.
            InvalidArgumentError: for no ids, and ids outside the vocabulary.
            ContextLengthError: for more than n_ctx ids.
            UnsupportedError: for a text, if the model's file has no tokenizer.
            NonFiniteError: if the model's weights lead to NaN or infinity.
            ClosedError: after close().
        """
        self.core.engine.check_open()
        dest, ids = path_of("path", path), self.core.factory.prompt_ids(text, name="text")
        adapted = self.core.factory.adapters.chosen(adapter)
        form = self._session_form(adapted)
        check_dest(dest, self.core.file.paths, force)
        check_space(dest, form.n_bytes(len(ids)))
        sessions.save(self.core.engine, ids, adapted, dest, form, force=force)

    def load_session(self, path: str | os.PathLike[str], *, adapter: Choice = None) -> list[int]:
        """Put a session into the prefix cache, as if its text had just been computed.

        A text that begins with the ids then goes on with the same bits as after save_session(), and
        only what is new of it is computed. Keys and values of a file are taken as they are: load
        files of people you trust.

        Args:
            path: a file of save_session(), of the same model, overrides, experts_used, expert_min_p,
                activations and kv_type.
            adapter: what the session was saved with: the same adapters and scales, under whatever
                names. See pymixtral.Options.

        Returns:
            The ids of the text.

        Raises:
            SessionFileError: for a file that is broken, or of another model or other adapters.
            InvalidArgumentError: for an adapter that is not loaded.
            ContextLengthError: for a text longer than n_ctx.
            ClosedError: after close().
        """
        self.core.engine.check_open()
        adapted = self.core.factory.adapters.chosen(adapter)
        form = self._session_form(adapted)
        return sessions.load(self.core.engine, adapted, path_of("path", path), form, self._page_form)

    @property
    def _page_form(self) -> PageForm:
        config = self.config
        return PageForm(config.n_layers, config.n_kv_heads, config.head_dim, self.kv_type)

    def _session_form(self, adapted: Adapted) -> SessionForm:
        different = {**self.core.different, **self.config.choices}
        overrides = hashlib.sha256(json.dumps(different, sort_keys=True).encode()).digest()
        adapters = hashlib.sha256(json.dumps(identity(adapted)).encode()).digest() if adapted else b""
        names = self.core.factory.adapters.written(adapted)
        binding = Binding(
            self.core.file.digest(), overrides, ops.NUMERICS_VERSION, self.kv_type, adapters, adapted=names
        )
        return SessionForm(binding, ops.PAGE, self._page_form.n_bytes, self.n_ctx, self.config.n_vocab)
