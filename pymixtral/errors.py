"""The exceptions of pymixtral.

Each message is one sentence: where, what was expected, what was found, and what to do.
"""

from __future__ import annotations


class PymixtralError(Exception):
    """Base class of all exceptions that pymixtral raises on purpose."""


class MemoryWarning(UserWarning):
    """A model that is larger than the memory for it, and so reads its weights again and again."""


class ModelFileError(PymixtralError):
    """A GGUF file that cannot be read: broken, truncated, or not GGUF."""


class ModelConfigError(PymixtralError):
    """A file that can be read, but whose metadata or tensors make no sense as a model."""


class SessionFileError(PymixtralError):
    """A session file that is broken, or was not written with the model that is open."""


class UnsupportedError(PymixtralError):
    """Something valid that pymixtral does not run: an architecture, a type, an instruction set."""


class CheckpointError(PymixtralError):
    """A checkpoint that cannot be quantized: missing, broken, or contradicting itself."""


class AdapterError(PymixtralError):
    """A low-rank adapter that cannot be read, or does not fit the model."""


class InvalidArgumentError(PymixtralError, ValueError):
    """An argument out of its documented range."""


class OutputError(PymixtralError, OSError):
    """A file that cannot be written: it exists, or place, space or permission is missing."""


class ContextLengthError(InvalidArgumentError):
    """More tokens than the context holds.

    Args:
        message: the sentence for the reader.
        n_tokens: how many there are at least; -1: unknown.
        n_ctx: how many the context holds; -1: unknown.

    Attributes:
        n_tokens: see above.
        n_ctx: see above.
    """

    def __init__(self, message: str, n_tokens: int = -1, n_ctx: int = -1) -> None:
        super().__init__(message)
        self.n_tokens = n_tokens
        self.n_ctx = n_ctx


class NonFiniteError(PymixtralError, ArithmeticError):
    """NaN or infinity in the computation.

    Args:
        message: the sentence for the reader.
        row: the token's row in the batch; -1: unknown.

    Attributes:
        row: the token's row in the batch; -1: unknown.
    """

    def __init__(self, message: str, row: int = -1) -> None:
        super().__init__(message)
        self.row = row


class CanceledError(PymixtralError):
    """A computation that was canceled."""


class DeadlineError(CanceledError):
    """A computation that did not end before its deadline."""


class ClosedError(PymixtralError):
    """A model, an engine or a context that is used after close()."""


class HostLostError(PymixtralError):
    """A host that had a part of a model is gone, or none is there to take the part."""


class NativeError(PymixtralError):
    """Something that the system refuses: memory, threads, or locking memory."""
