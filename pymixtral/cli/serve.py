"""The command `pymixtral serve`."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pymixtral.cli.model import model_path, opened
from pymixtral.cli.options import (
    context_option,
    json_option,
    model_option,
    opening_options,
    path_type,
    ray_option,
    served_adapter_option,
)
from pymixtral.cli.packages import check_packages
from pymixtral.cli.text import note
from pymixtral.errors import InvalidArgumentError

if TYPE_CHECKING:
    from pymixtral.server.serve import Served
    from pymixtral.server.settings import Settings

_KEYS = "PYMIXTRAL_API_KEYS"

_MOST_REPLICAS = 1000


def _replicas(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """`N` or `MIN:MAX` as two numbers."""
    if text is None:
        return None
    least, colon, most = text.partition(":")
    try:
        found = int(least), int(most if colon else least)
    except ValueError:
        found = 0, 0
    if not 1 <= found[0] <= found[1] <= _MOST_REPLICAS:
        raise click.BadParameter(
            f"expected a number from 1 to {_MOST_REPLICAS}, or two of them as 2:8, found {text[:100]!r}", ctx, param
        )
    return found


@click.command(
    epilog="""\b
Examples:
  pymixtral serve
  pymixtral serve -m mixtral-instruct.gguf --port 9000
  pymixtral serve -m mixtral-instruct.gguf --host 0.0.0.0 \\
    --api-key-file keys.txt --timeout 300
  pymixtral serve -m mixtral-instruct.gguf --adapter tales=tales.gguf
  pymixtral serve -m mixtral-instruct.gguf --ray --replicas 2:8"""
)
@model_option
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="HOST",
    help="Address to listen on; 0.0.0.0 for other machines, too.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    metavar="N",
    help="Port to listen on; 0 for any that is free.",
)
@click.option("--name", metavar="NAME", default="", help="The model's name in answers.  [default: its file's]")
@click.option("--strict-model", is_flag=True, help="Refuse requests that name another model.")
@click.option(
    "--api-key-file",
    type=path_type(),
    metavar="FILE",
    help=f"API keys, one a line; requests need one of them. {_KEYS} has more, with commas between them.",
)
@click.option(
    "--cors-origin",
    "cors_origins",
    metavar="ORIGIN",
    multiple=True,
    help="Let pages of this origin ask, such as https://example.org; * for all; may be repeated.",
)
@click.option(
    "--queue",
    "max_waiting",
    type=click.IntRange(min=0),
    metavar="N",
    default=128,
    show_default=True,
    help="Texts that may wait; more requests are refused.",
)
@click.option(
    "--timeout",
    type=float,
    metavar="SECONDS",
    help="End each answer after this time.",
)
@click.option(
    "--drain",
    type=float,
    metavar="SECONDS",
    default=30.0,
    show_default=True,
    help="After SIGTERM or Ctrl-C, wait so long for answers to end.",
)
@click.option("--trace", type=path_type(), metavar="FILE", help="Add the times of each request's phases to a file.")
@ray_option
@click.option(
    "--replicas",
    "n_replicas",
    metavar="N|MIN:MAX",
    callback=_replicas,
    help="With --ray: engines, each with -t CPUs; MIN:MAX for as many as requests need.  [default: one per host]",
)
@click.option(
    "--pipeline",
    "n_stages",
    type=click.IntRange(min=2),
    metavar="N",
    help="With --ray: hosts of each engine, which share the model's layers, where one cannot hold it.  [default: one]",
)
@context_option(runs=True)
@served_adapter_option
@click.option(
    "--allow-adapter-loading",
    "adapter_folder",
    type=path_type(),
    metavar="DIR",
    help="Let requests load and unload adapters of this folder.  [default: none]",
)
@opening_options(shared=True, adapted=False)
@json_option
def serve(
    model: Path | None,
    host: str,
    port: int,
    name: str,
    strict_model: bool,
    api_key_file: Path | None,
    cors_origins: tuple[str, ...],
    max_waiting: int,
    timeout: float | None,
    drain: float,
    trace: Path | None,
    address: str | None,
    n_replicas: tuple[int, int] | None,
    n_stages: int | None,
    adapter: dict[str, Any],
    adapter_folder: Path | None,
    opening: dict[str, Any],
    as_json: bool,
) -> None:
    """Serve a model over HTTP, as OpenAI's service does.

    It has a page to chat, too. The first line on standard error is its address; then each request
    is a line there, with --json an object. SIGTERM and Ctrl-C let the answers that are being written
    end first; a second one does not. Only this machine can connect, unless --host names another
    address.
    """
    check_packages("server", "fastapi", "uvicorn", "httptools", "prometheus_client")
    if address is not None:
        check_packages("ray", "ray")
    elif n_replicas is not None:
        raise click.UsageError("expected --replicas beside --ray, found it alone: they are of a cluster")
    elif n_stages is not None:
        raise click.UsageError("expected --pipeline beside --ray, found it alone: it needs hosts of a cluster")
    if n_stages is not None and adapter["adapters"]:
        raise click.UsageError("expected --pipeline without --adapter, found both: its stages take no adapters")
    if address is not None and adapter_folder is not None:
        raise click.UsageError(
            "expected --ray without --allow-adapter-loading, found both: a request would load into one replica, and "
            "the next one ask another; name the adapters by --adapter"
        )
    _refuse_workers()
    keys = _keys(api_key_file)
    from pymixtral.server.log import Log
    from pymixtral.server.serve import OneModel, is_loopback, listen, run, url_of
    from pymixtral.server.settings import Settings

    settings = Settings(
        name=name,
        any_model=not strict_model,
        keys=keys,
        cors_origins=cors_origins,
        max_batch=opening["max_batch"],
        max_waiting=max_waiting,
        timeout=timeout,
        drain=drain,
        scales=adapter["adapter"],
        adapter_folder=adapter_folder,
    )
    with ExitStack() as stack:
        if address is not None:  # before there are handlers of signals: Ray has its own
            from pymixtral.cluster.connection import connect, leaving_at_once

            connect(address)
            stack.enter_context(leaving_at_once())
        listener = stack.enter_context(listen(host, port))
        log = Log("json" if as_json else "text", trace)
        settings = replace(settings, loopback=is_loopback(listener))
        note(f"Serving on {url_of(listener)}")
        if not settings.loopback and not keys:
            note("Note: other machines can connect, and there is no API key: whoever reaches this port may ask.")
        served: Served
        if address is None:
            served = OneModel(partial(opened, model, chats=True, adapters=adapter["adapters"], **opening))
        else:
            served = _on_cluster(settings, model, address, n_replicas, n_stages or 1, adapter["adapters"], opening)
        run(settings, listener, served, log)


def _on_cluster(
    settings: Settings,
    model: Path | None,
    address: str,
    n: tuple[int, int] | None,
    n_stages: int,
    adapters: dict[str, Path],
    opening: dict[str, Any],
) -> Served:
    """The model on the hosts of a cluster, each of which has its file at the same path."""
    from pymixtral.cluster.replica import open_model
    from pymixtral.cluster.replicas import Replicas

    model_path(model, chats=True)  # says that it is the demo
    opening = {**opening, "adapters": {name: path.absolute() for name, path in adapters.items()}}
    n_threads = opening.pop("n_threads")
    opened_there = partial(open_model, model and model.absolute(), n_stages=n_stages, **opening)
    return Replicas(opened_there, settings, address=address, n=n, n_threads=n_threads, n_hosts=n_stages)


def _refuse_workers() -> None:
    workers = os.environ.get("WEB_CONCURRENCY", "1")
    if workers.strip() not in ("", "1"):
        raise InvalidArgumentError(
            f"expected one process, found WEB_CONCURRENCY={workers}: each process would need a model, a cache and "
            "all cores of its own, while one computes all requests together; unset it"
        )


def _keys(file: Path | None) -> tuple[str, ...]:
    """The API keys of a file and of the environment.

    Raises:
        InvalidArgumentError: if the file cannot be read, has none, or one that no header can carry.
    """
    keys = [key.strip() for key in os.environ.get(_KEYS, "").split(",")]
    if file is not None:
        try:
            lines = file.read_text("utf-8", "replace").splitlines()
        except OSError as error:
            raise InvalidArgumentError(
                f"{file}: expected a file of API keys, found none that can be read ({error.strerror}): write one"
            ) from None
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise InvalidArgumentError(f"{file}: expected API keys, one a line, found none: write one into it")
        keys += found
    for key in keys:
        if not key.isascii() or not key.isprintable() or " " in key:
            raise InvalidArgumentError(
                "expected API keys of ASCII characters without spaces, found another one: no header can carry it"
            )
    return tuple(key for key in keys if key)
