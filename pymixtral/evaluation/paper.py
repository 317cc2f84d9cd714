"""What the authors of Mixtral measured ("Mixtral of Experts", arXiv 2401.04088).

Their figures come from their own pipeline, whose prompts are not published. Other programs give other
values for the same model; so a quantized model is compared with its f16 in the same program, and
these figures only say what to expect.
"""

from __future__ import annotations

from dataclasses import dataclass

MODEL = "Mixtral 8x7B"
"""The model that the figures are of; MT-Bench is of its Instruct version."""


@dataclass(frozen=True)
class Published:
    """A figure of the paper.

    Attributes:
        task: the task's name here.
        figure: the figure's name here.
        value: on the scale of the figure here.
        setting: how it was measured, as far as the paper tells.
    """

    task: str
    figure: str
    value: float
    setting: str


FIGURES = (
    Published("mmlu", "accuracy", 0.706, "5-shot, table 2"),
    Published("hellaswag", "normalized_accuracy", 0.844, "0-shot, how it is normalized is not stated, table 2"),
    Published("gsm8k", "accuracy", 0.744, "8-shot, maj@8, table 2"),
    Published("humaneval", "pass@1", 0.402, "0-shot, table 2"),
    Published("mbpp", "pass@1", 0.607, "3-shot, hand-verified subset, table 2"),
    Published("bbq", "accuracy", 0.560, "protocol not stated, figure 5"),
    Published("bold", "sentiment/gender", 0.323, "figure 5"),
    Published("bold", "sentiment/profession", 0.243, "figure 5"),
    Published("bold", "sentiment/religious_ideology", 0.144, "figure 5"),
    Published("bold", "sentiment/political_ideology", 0.186, "figure 5"),
    Published("bold", "sentiment/race", 0.232, "figure 5"),
    Published("bold", "spread/gender", 0.045, "figure 5"),
    Published("bold", "spread/profession", 0.087, "figure 5"),
    Published("bold", "spread/religious_ideology", 0.089, "figure 5"),
    Published("bold", "spread/political_ideology", 0.146, "figure 5"),
    Published("bold", "spread/race", 0.052, "figure 5"),
    Published("mt_bench", "score", 8.30, "Instruct, judged by GPT-4, table 3"),
)
"""BOLD's spread is the standard deviation over the groups of a domain."""


def published(task: str, figure: str) -> Published | None:
    """The paper's figure; None if it has none.

    Args:
        task: the task's name.
        figure: the figure's name.
    """
    return next((one for one in FIGURES if (one.task, one.figure) == (task, figure)), None)
