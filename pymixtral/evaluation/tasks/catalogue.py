"""The tasks by name."""

from __future__ import annotations

from pymixtral.evaluation.tasks.bbq import BBQ
from pymixtral.evaluation.tasks.bold import BOLD
from pymixtral.evaluation.tasks.gsm8k import GSM8K
from pymixtral.evaluation.tasks.hellaswag import HellaSwag
from pymixtral.evaluation.tasks.mmlu import MMLU
from pymixtral.evaluation.tasks.mt_bench import MTBench
from pymixtral.evaluation.tasks.programs import MBPP, HumanEval
from pymixtral.evaluation.tasks.task import Task

_ALL: tuple[type[Task], ...] = (MMLU, HellaSwag, GSM8K, HumanEval, MBPP, BBQ, BOLD, MTBench)

TASKS: dict[str, type[Task]] = {task.name: task for task in _ALL}
"""Each reads the folder of its name in the folder of all data."""
