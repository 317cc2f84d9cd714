"""pymixtral: Mixtral on CPUs.

    from pymixtral import Mixtral

    with Mixtral("mixtral.gguf") as model:
        print(model.generate("Once upon a time", max_tokens=50))

Everything is imported on first use, so that the command line's help needs none of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pymixtral.errors import (
    AdapterError,
    CanceledError,
    CheckpointError,
    ClosedError,
    ContextLengthError,
    DeadlineError,
    HostLostError,
    InvalidArgumentError,
    MemoryWarning,
    ModelConfigError,
    ModelFileError,
    NativeError,
    NonFiniteError,
    OutputError,
    PymixtralError,
    SessionFileError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from pymixtral.asynchronous import AsyncMixtral
    from pymixtral.bulk.generate import Bulk
    from pymixtral.chatting import Answer, AnswerStream, AsyncAnswerStream
    from pymixtral.demo import demo_chat_path, demo_path
    from pymixtral.engine.completion import Completion, Stats, TokenLogprob
    from pymixtral.engine.stats import EngineStats
    from pymixtral.engine.stream import AsyncGeneration, Generation
    from pymixtral.evaluation.pruning import prune
    from pymixtral.files.layout import convert_layout
    from pymixtral.mixtral import Mixtral
    from pymixtral.model.adapter import Adapter
    from pymixtral.model.config import ModelConfig
    from pymixtral.model.routing import Routing
    from pymixtral.options import ChatOptions, Options
    from pymixtral.quantize.adapters import convert_adapter
    from pymixtral.questions import Score
    from pymixtral.text.messages import ToolCall
    from pymixtral.text.tool_calls import ArgumentsPiece, CallBegins, CallEnds, CallFails, TextPiece

    __version__: str

__all__ = [
    "Adapter",
    "AdapterError",
    "Answer",
    "AnswerStream",
    "ArgumentsPiece",
    "AsyncAnswerStream",
    "AsyncGeneration",
    "AsyncMixtral",
    "Bulk",
    "CallBegins",
    "CallEnds",
    "CallFails",
    "CanceledError",
    "ChatOptions",
    "CheckpointError",
    "ClosedError",
    "Completion",
    "ContextLengthError",
    "DeadlineError",
    "EngineStats",
    "Generation",
    "HostLostError",
    "InvalidArgumentError",
    "MemoryWarning",
    "Mixtral",
    "ModelConfig",
    "ModelConfigError",
    "ModelFileError",
    "NativeError",
    "NonFiniteError",
    "Options",
    "OutputError",
    "PymixtralError",
    "Routing",
    "Score",
    "SessionFileError",
    "Stats",
    "TextPiece",
    "TokenLogprob",
    "ToolCall",
    "UnsupportedError",
    "__version__",
    "convert_adapter",
    "convert_layout",
    "demo_chat_path",
    "demo_path",
    "prune",
]

_HOMES = {
    "Adapter": "pymixtral.model.adapter",
    "Answer": "pymixtral.chatting",
    "AnswerStream": "pymixtral.chatting",
    "AsyncAnswerStream": "pymixtral.chatting",
    "AsyncGeneration": "pymixtral.engine.stream",
    "AsyncMixtral": "pymixtral.asynchronous",
    "Bulk": "pymixtral.bulk.generate",
    "Score": "pymixtral.questions",
    "Mixtral": "pymixtral.mixtral",
    "ModelConfig": "pymixtral.model.config",
    "Routing": "pymixtral.model.routing",
    "Completion": "pymixtral.engine.completion",
    "EngineStats": "pymixtral.engine.stats",
    "Generation": "pymixtral.engine.stream",
    "Stats": "pymixtral.engine.completion",
    "TokenLogprob": "pymixtral.engine.completion",
    "ChatOptions": "pymixtral.options",
    "Options": "pymixtral.options",
    "ToolCall": "pymixtral.text.messages",
    "ArgumentsPiece": "pymixtral.text.tool_calls",
    "CallBegins": "pymixtral.text.tool_calls",
    "CallEnds": "pymixtral.text.tool_calls",
    "CallFails": "pymixtral.text.tool_calls",
    "TextPiece": "pymixtral.text.tool_calls",
    "demo_chat_path": "pymixtral.demo",
    "demo_path": "pymixtral.demo",
    "convert_adapter": "pymixtral.quantize.adapters",
    "convert_layout": "pymixtral.files.layout",
    "prune": "pymixtral.evaluation.pruning",
}


def _check_interpreter() -> None:
    """Refuses a subinterpreter: there the import of NumPy fails, or that of cffi waits for ever.

    Raises:
        ImportError: in a subinterpreter.
    """
    for name in ("_interpreters", "_xxsubinterpreters"):  # since Python 3.13, and before
        try:
            interpreters = import_module(name)
        except ImportError:
            continue
        if interpreters.get_current() != interpreters.get_main():
            raise ImportError(
                "expected Python's main interpreter, found a subinterpreter, where NumPy does not work: import "
                "pymixtral in the main one (in mod_wsgi: WSGIApplicationGroup %{GLOBAL})"
            )
        return


_check_interpreter()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("pymixtral")
    raise AttributeError(f"module 'pymixtral' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
