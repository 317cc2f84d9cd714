"""The exceptions of pymixtral: each message is one sentence that says what was expected, what was found, where, and what to do."""

from __future__ import annotations


class PymixtralError(Exception):
    """Base of everything pymixtral raises on purpose."""


class ModelFileError(PymixtralError):
    """A GGUF file that cannot be read: broken, truncated, or not GGUF."""


class ModelConfigError(PymixtralError):
    """A readable file whose metadata or tensors do not describe a model that makes sense."""


class UnsupportedError(PymixtralError):
    """Something valid that pymixtral does not run: an architecture, a type, an instruction set."""


class CheckpointError(PymixtralError):
    """A checkpoint that cannot be quantized: missing, broken, or contradicting itself."""


class InvalidArgumentError(PymixtralError, ValueError):
    """An argument out of its documented range."""


class OutputError(PymixtralError, OSError):
    """A file that cannot be written: it is there already, or has no place, no space or no permission."""


class ContextLengthError(InvalidArgumentError):
    """More tokens than the context holds."""


class NonFiniteError(PymixtralError, ArithmeticError):
    """NaN or infinity met in the computation; `row` is the token's row in the batch, or -1."""

    def __init__(self, message: str, row: int = -1) -> None:
        super().__init__(message)
        self.row = row


class CanceledError(PymixtralError):
    """The computation was canceled through its cancel flag."""


class ClosedError(PymixtralError):
    """A model or engine used after close()."""


class NativeError(PymixtralError):
    """The C library could not get what it needs from the system: memory or threads."""
