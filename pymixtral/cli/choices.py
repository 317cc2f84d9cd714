"""The words that options let a user choose among.

They are those of tables that need NumPy, which help and completion must not import; a test compares
them.
"""

from __future__ import annotations

KV_TYPES = ("f16", "f32", "q8_0")
"""Types of cached keys and values: pymixtral.model.kv_cache has the table."""

CHAT_FORMATS = ("mistral-v1", "mistral-v2", "mistral-v3", "mistral-v7", "chatml", "llama3", "llama3.1", "template")
"""Forms of conversations: pymixtral.text.chat has them."""

POOLINGS = ("mean", "last")
"""How a text's states become one vector: pymixtral.questions has them."""

MODELS = ("8x7b", "8x22b", "7b")
"""Published models: pymixtral.inspection.published has their shapes."""

RECIPES = (
    *("f32", "bf16", "f16", "q8_0", "q6_k", "q5_1", "q5_k_m", "q5_k_s", "q5_0", "q5_k", "q4_1", "q4_k_m"),
    *("q4_k_s", "iq4_nl", "q4_0", "q4_k", "iq4_xs", "q3_k_l", "q3_k_m", "iq3_m", "q3_k_s", "iq3_s"),
    *("q3_k", "iq3_xxs", "q2_k", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs"),
)
"""What quantize makes, from most bits to fewest: pymixtral.quantize.recipe has them."""

MIXES = tuple(recipe for recipe in RECIPES if recipe not in ("q5_k", "q4_k", "q3_k"))
"""What plan computes with: pymixtral.inspection.mixes has their rules."""

CRITERIA = ("reap", "frequency", "random")
"""By what prune chooses experts: pymixtral.evaluation.pruning has them."""

TASKS = ("mmlu", "hellaswag", "gsm8k", "humaneval", "mbpp", "bbq", "bold", "mt_bench")
"""What evaluate asks: pymixtral.evaluation.tasks.catalogue has them."""
