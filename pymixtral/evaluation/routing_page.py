"""Traces as one page of HTML that needs nothing else: texts coloured by expert, and their numbers.

The parts of the page are files in page/. A browser that opens it loads nothing from anywhere: its
Content-Security-Policy allows the script and the style that are in it, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from pymixtral.escapes import escaped
from pymixtral.evaluation.routing import Domain, chance, usage
from pymixtral.files.atomic import replacing
from pymixtral.mixtral import Mixtral

SHOWN = 4000
"""Tokens of a domain whose text the page shows; a browser lays out no more of them at once quickly."""


def page(model: Mixtral, domains: Sequence[Domain]) -> str:
    """Make the page.

    Args:
        model: the model of the traces.
        domains: the traces, which it shows in this order.

    Returns:
        HTML.
    """
    parts = files("pymixtral").joinpath("evaluation/page")
    style, script, frame = (
        parts.joinpath(f"routing.{kind}").read_text(encoding="utf-8") for kind in ("css", "js", "html")
    )
    return Template(frame).substitute(
        title=html.escape(escaped(f"Which experts: {model.path.name}")),
        policy=html.escape(
            f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'; "
            "form-action 'none'"
        ),
        style=style,
        script=script,
        data=_json(_content(model, domains)),
    )


def write(model: Mixtral, domains: Sequence[Domain], path: Path, *, force: bool = False) -> None:
    """Write the page to a file.

    Args:
        model: see page().
        domains: see page().
        path: the file.
        force: whether an existing file is replaced.

    Raises:
        OutputError: if the file cannot be written, or exists.
    """
    text = page(model, domains)
    with replacing(path, force=force) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _content(model: Mixtral, domains: Sequence[Domain]) -> dict[str, Any]:
    config = model.config
    n_tokens = sum(domain.n_tokens for domain in domains)
    return {
        "about": f"{n_tokens} tokens; {config.n_layers} layers, each token goes to {config.n_experts_used} of "
        f"{config.n_experts} experts in each",
        "n_experts": config.n_experts,
        "n_used": config.n_experts_used,
        "n_layers": config.n_layers,
        "chance": chance(config.n_experts, config.n_experts_used),
        "domains": [_domain(model, domain) for domain in domains],
    }


def _domain(model: Mixtral, domain: Domain) -> dict[str, Any]:
    ids = domain.joined("ids")[:SHOWN].tolist()
    begins = np.cumsum([0, *(window.n_tokens for window in domain.windows[:-1])])
    tokens = [escaped(model.token_bytes(id).decode("utf-8", "backslashreplace"), keep="\n\t") for id in ids]
    lines = "".join(tokens).split("\n")
    return {
        "name": escaped(domain.name),
        "code": sum(line.startswith(("  ", "\t")) for line in lines) > len(lines) / 4,  # indented, as programs are
        "ids": ids,
        "tokens": tokens,
        "begins": begins[(begins > 0) & (begins < len(ids))].tolist(),
        "experts": _base64(domain.joined("experts")[: len(ids)]),
        "weights": _base64(np.rint(domain.joined("weights")[: len(ids)].astype(np.float32) * 255).astype(np.uint8)),
        "usage": usage(domain).plain(),
    }


def _base64(array: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def _json(content: Any) -> str:
    """JSON that cannot end the element that it stands in."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
