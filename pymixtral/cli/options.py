"""Options that several commands have, each defined once.

A letter means one thing in all commands. A parameter has the name of the Python argument that it
becomes, so that errors of the library can be told in options (pymixtral.cli.in_options).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from pymixtral.adapters.naming import WANTED, parse
from pymixtral.cli.choices import KV_TYPES
from pymixtral.errors import InvalidArgumentError
from pymixtral.units import parse_bytes

Function = TypeVar("Function", bound=Callable[..., Any])

_Value = int | float | bool | str
_VALUES: dict[str, Callable[[str], _Value]] = {
    "int": int,
    "float": float,
    "bool": {"true": True, "false": False}.__getitem__,
    "str": str,
}


def size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """The callback of an option that is a size: its bytes."""
    try:
        return None if value is None else parse_bytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def _overrides(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, _Value]:
    """`KEY=TYPE:VALUE` as {KEY: value}; the last of several for one key counts."""
    found: dict[str, _Value] = {}
    for text in texts:
        key, _, rest = text.partition("=")
        kind, colon, value = rest.partition(":")
        try:
            if not key or not colon:
                raise ValueError
            found[key] = _VALUES[kind](value)
        except (KeyError, ValueError):
            raise click.BadParameter(
                f"expected KEY=TYPE:VALUE with int, float, bool or str, such as "
                f"llama.expert_used_count=int:3, found {text!r}",
                ctx,
                param,
            ) from None
    return found


def _experts_used(ctx: click.Context, param: click.Parameter, value: str | None) -> int | list[int] | None:
    """`N` as a number, `N,N,...` as a list."""
    if value is None:
        return None
    try:
        numbers = [int(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(
            f"expected a number of at least 1, or such numbers for each layer, as 2,2,1,2, found {value!r}", ctx, param
        )
    return numbers[0] if len(numbers) == 1 else numbers


def _all(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Several options as one decorator; the help shows them in this order."""

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


class _Path(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":  # Python takes it for the directory
            self.fail("expected the name of a file, found an empty one", param, ctx)
        return super().convert(value, param, ctx)


def path_type(exists: bool = False) -> click.Path:
    """The type of an option that is a file. exists: a file that is only read; else errors are the
    library's.
    """
    return _Path(exists=exists, dir_okay=not exists, path_type=Path)


model_option = click.option(
    "-m",
    "--model",
    type=path_type(),
    metavar="FILE",
    envvar="PYMIXTRAL_MODEL",
    show_envvar=True,
    help="The model, a GGUF file.  [default: the demo model in the package]",
)

model_argument = click.argument("subject", metavar="[MODEL]", type=path_type(), required=False)
"""The model where it is what a command is about: MODEL and -m mean the same
(pymixtral.cli.model.same_model).
"""

file_option = click.option(
    "-f", "--file", type=path_type(exists=True), metavar="FILE", help="Read the text from a file."
)

files_option = click.option(
    "-f",
    "--file",
    "files",
    type=path_type(exists=True),
    metavar="FILE",
    multiple=True,
    help="Read a text from a file; may be repeated.",
)

prompt_options = _all(click.option("-p", "--prompt", metavar="TEXT", help="The text; it may be empty."), file_option)

prompts_options = _all(
    click.option("-p", "--prompt", "texts", metavar="TEXT", multiple=True, help="A text; may be repeated."),
    click.option("-f", "--file", type=path_type(exists=True), metavar="FILE", help="Read the texts, one a line."),
)


special_option = click.option(
    "--special",
    "parse_special",
    is_flag=True,
    help="Names of control tokens in the text, such as </s>, become those tokens: for text that you trust.",
)


def tokens_option(name: str, lowest: int, **settings: Any) -> Callable[[Function], Function]:
    """-n, a number of tokens that are written."""
    return click.option("-n", "--max-tokens", name, type=click.IntRange(min=lowest), metavar="N", **settings)


def context_option(
    lowest: int = 1, default: int | None = None, *, runs: bool = False
) -> Callable[[Function], Function]:
    """-c. Without a default it is the model's own context: of a model that runs as far as memory allows,
    else at most 4096 tokens.
    """
    most = "as far as memory allows" if runs else "at most 4096"
    return click.option(
        "-c",
        "--context",
        "n_ctx",
        type=click.IntRange(min=lowest),
        metavar="N",
        default=default,
        show_default=True,
        help="Tokens of context, and of each window."
        if default
        else f"Tokens of context.  [default: the model's, {most}]",
    )


whole_context_option = click.option(
    "-c",
    "--context",
    "n_ctx",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens of context.  [default: the model's]",
)

threads_option = click.option(
    "-t",
    "--threads",
    "n_threads",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Threads to use.  [default: one per core]",
)

_engine_options = _all(
    click.option(
        "--max-batch",
        type=click.IntRange(1, 256),
        metavar="N",
        default=16,
        show_default=True,
        help="Texts that are computed together.",
    ),
    click.option(
        "--cache-size",
        "cache_bytes",
        metavar="SIZE",
        callback=size,
        help="Memory for keys and values of all texts, such as 2GB.  [default: four contexts]",
    ),
    click.option(
        "--pace",
        type=float,
        metavar="SECONDS",
        help="Longest wait of texts for a prompt that is computed.  [default: eight times a pass]",
    ),
)
"""How several texts share the model."""

windows_option = click.option(
    "--windows",
    "n_windows",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only the first N windows.  [default: all]",
)

kv_type_option = click.option(
    "--kv-type", type=click.Choice(KV_TYPES), default="f16", show_default=True, help="Type of cached keys and values."
)

override_options = _all(
    click.option(
        "--experts-used",
        callback=_experts_used,
        metavar="N[,N...]",
        help="Experts that each token passes; several numbers are one for each layer.  [default: the model's]",
    ),
    click.option(
        "--override-kv",
        "overrides",
        metavar="KEY=TYPE:VALUE",
        multiple=True,
        callback=_overrides,
        help="Use VALUE in place of the metadata in the file. TYPE is int, float, bool or str; may be repeated.",
    ),
)
"""As parameters `experts_used: int | list[int] | None` and `overrides: dict`."""

_expert_min_p_option = click.option(
    "--expert-min-p",
    type=float,
    metavar="P",
    default=0.0,
    help="Leave out experts less than P times as likely as a token's first: faster, less exact.  [default: 0, none]",
)

_activations_option = click.option(
    "--activations",
    type=click.Choice(("int8", "int16")),
    default="int8",
    show_default=True,
    help="How finely activations are rounded. int16 is closer to the original model, and takes prompts twice the time.",
)


def parse_adapters(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    """`[NAME=]PATH[:SCALE]` as arguments of Mixtral: the files by name, and the scales."""
    files: dict[str, Path] = {}
    scales: dict[str, float] = {}
    for text in texts:
        try:
            name, path, scale = parse(text)
        except InvalidArgumentError as error:
            raise click.BadParameter(str(error), ctx, param) from None
        if name in files:
            raise click.BadParameter(f"expected {WANTED}, found {name!r} twice", ctx, param)
        files[name], scales[name] = path, scale
    return {"adapters": files, "adapter": scales}


def _adapter_option(help: str) -> Callable[[Function], Function]:
    return click.option(
        "--adapter",
        metavar="NAME=PATH[:SCALE]",
        multiple=True,
        callback=parse_adapters,
        help=f"{help}; may be repeated.",
    )


adapter_option = _adapter_option("Use a low-rank adapter (LoRA), a file or a folder, times SCALE")
"""As a parameter `adapter: dict`: "adapters" and "adapter" of Mixtral."""

served_adapter_option = _adapter_option("Answer as the model NAME with a low-rank adapter (LoRA)")
"""As a parameter `adapter: dict`: "adapters" of Mixtral, and the scale of each as "adapter"."""

_OPENING = (
    *("n_ctx", "n_threads", "kv_type", "experts_used", "overrides", "expert_min_p", "activations"),
    *("max_batch", "cache_bytes", "pace"),
)


def opening_options(
    *, kv_type: bool = True, shared: bool = False, adapted: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """How the model is opened. The command has all of it, with its -c, as one argument: `opening`, a
    dict of arguments of pymixtral.cli.model.opened().

    Args:
        kv_type: whether the type of the cache is one of them.
        shared: whether texts of the command share the model.
        adapted: whether all of it is done with adapters that are named.
    """
    kv = [kv_type_option] if kv_type else []
    options = [threads_option, *kv, override_options, _expert_min_p_option, _activations_option]
    if adapted:
        options.append(adapter_option)

    def decorate(function: Function) -> Function:
        @wraps(function)
        def gathered(*args: Any, **params: Any) -> Any:
            opening = {name: params.pop(name) for name in _OPENING if name in params}
            if adapted:
                opening |= params.pop("adapter")
            return function(*args, opening=opening, **params)

        return _all(*options, *([_engine_options] if shared else []))(cast("Function", gathered))

    return decorate


def _output(help: str = "The file to write.", **settings: Any) -> Callable[[Function], Function]:
    return click.option("-o", "--output", type=path_type(), metavar="FILE", help=help, **settings)


output_option = _output(required=True)

optional_output_option = _output()

texts_output_option = _output("The file for the texts of --prompts.")

force_option = click.option("--force", is_flag=True, help="Replace files that exist.")

logprobs_options = _all(
    click.option(
        "--logprobs",
        type=click.IntRange(0, 100),
        metavar="N",
        help="Add the log-probability of each token, and the N most likely ones, to JSON.",
    ),
    click.option(
        "--prompt-logprobs",
        type=click.IntRange(0, 100),
        metavar="N",
        help="The same for the tokens of the prompt.",
    ),
)

ray_option = click.option(
    "--ray",
    "address",
    is_flag=False,
    flag_value="auto",
    metavar="[ADDRESS]",
    help="Compute on a cluster of Ray that runs already: that of RAY_ADDRESS or this host, or the one with its head "
    "at HOST:PORT.",
)
"""As a parameter `address: str | None`: "auto" where none is named, None without the option."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
