"""The numbers of lm-eval through a server, compared with those of the model in this process.

lm-eval asks for tokens that it made of texts with the server's /tokenize, without the token that
begins a text; a whole text comes after that token, custom_prefix_token_id.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pymixtral import Mixtral
from pymixtral.demo import demo_chat_path


def compare(folder: Path) -> str:
    """Compares all samples of a run, to the last digit.

    Args:
        folder: what lm-eval wrote is in it.

    Returns:
        A line that says how many there are.

    Raises:
        AssertionError: where two differ, or a kind of request is missing.
    """
    counts = {"loglikelihood": 0, "loglikelihood_rolling": 0, "generate_until": 0}
    with Mixtral(demo_chat_path()) as model:
        for file in folder.rglob("samples_*.jsonl"):
            for line in file.read_text(encoding="utf-8").splitlines():
                for kind, found, expected in _pairs(model, json.loads(line)):
                    assert found == expected, f"{kind}: expected {expected!r} as in this process, found {found!r}"
                    counts[kind] += 1
    assert all(counts.values()), f"expected samples of each kind, found {counts}"
    return "equal to the last digit: " + ", ".join(f"{n} of {kind}" for kind, n in counts.items())


def _pairs(model: Mixtral, sample: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """For each request of a sample its kind, and its answer by the server and by the model here."""
    pairs: list[tuple[str, Any, Any]] = []
    for arguments, answers in zip(sample["arguments"].values(), sample["resps"], strict=True):
        first, answer = arguments["arg_0"], answers[0]
        second = arguments.get("arg_1")
        if isinstance(second, dict):
            pairs.append(("generate_until", answer, _generated(model, first, second)))
        elif second is None:
            begin = [model.bos_id]
            (score,) = model.score(begin, [model.tokenize(first, add_bos=False)])
            pairs.append(("loglikelihood_rolling", float(answer), sum(score.tokens)))
        else:
            # lm-eval moves spaces from the end of the context to the continuation.
            context = model.tokenize(first.rstrip(), add_bos=False)
            whole = model.tokenize(first + second, add_bos=False)
            (score,) = model.score(context, [whole[len(context) :]])
            greedy = {"True": True, "False": False}[str(answer[1])]
            pairs.append(("loglikelihood", (float(answer[0]), greedy), (sum(score.tokens), score.greedy)))
    return pairs


def _generated(model: Mixtral, prompt: str, how: dict[str, Any]) -> str:
    ids = model.tokenize(prompt, add_bos=False)
    return model.generate(ids, max_tokens=how["max_gen_toks"], temperature=0, stop=list(how["until"])).text
