"""The names of a model's tensors in GGUF, and what they tell.

A name is blk.LAYER.STEM.weight, or STEM.weight for the tensors that belong to no layer. The
matrices of a layer's experts come in two forms. Merged, all experts are one tensor, with "_exps"
after the stem: blk.3.ffn_up_exps.weight. Split, as in files of December 2023, each expert has its
own: blk.3.ffn_up.5.weight. In a dense model blk.3.ffn_up.weight is the only one. Some files have
gate and up of all experts in one tensor, blk.3.ffn_gate_up_exps.weight: the rows of each expert's
gate, then those of its up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

FFN_STEMS = ("ffn_gate", "ffn_up", "ffn_down")
"""The three matrices of an expert, or of a dense layer."""

FUSED_STEM = "ffn_gate_up"
"""Gate and up in one tensor, always of all experts."""

FUSED_PARTS = FFN_STEMS[:2]
"""What it consists of."""

_CLASSES = {
    "token_embd": "embedding",
    "attn_q": "attention",
    "attn_k": "attention",
    "attn_v": "attention",
    "attn_output": "attention",
    "ffn_gate_inp": "router",
    **dict.fromkeys((*FFN_STEMS, FUSED_STEM), "feed-forward"),
    "attn_norm": "norms",
    "ffn_norm": "norms",
    "output_norm": "norms",
    "rope_freqs": "rope",
    "output": "output",
}
"""The class of each stem; an expert's feed-forward matrices are of the class "experts"."""

CLASSES = ("embedding", "attention", "router", "experts", "feed-forward", "norms", "rope", "output", "other")
"""All classes, in the order in which tables list them."""

_OUTSIDE_LAYERS = ("token_embd", "rope_freqs", "output_norm", "output")
_NAME = re.compile(r"(?:blk\.(0|[1-9]\d*)\.)?([a-z_]+?)(_exps|\.(?:0|[1-9]\d*))?\.weight", re.ASCII)


@dataclass(frozen=True)
class TensorName:
    """A tensor's name taken apart; str() puts it together again.

    Attributes:
        stem: what the tensor is, such as "attn_q" or "ffn_up".
        layer: the layer's number, None outside the layers.
        merged: whether the tensor holds this matrix of all experts.
        expert: the number of the expert whose matrix this is; None for merged experts and for
            everything that is no expert's.
    """

    stem: str
    layer: int | None = None
    merged: bool = False
    expert: int | None = None

    @classmethod
    def parse(cls, name: str) -> TensorName | None:
        """Takes the name of a Mixtral's or a dense model's weight apart.

        Args:
            name: any string.

        Returns:
            The name, or None for one that no such model has.
        """
        match = _NAME.fullmatch(name)
        if not match:
            return None
        layer, stem, which = match.groups()
        known = stem in _CLASSES and (layer is None) == (stem in _OUTSIDE_LAYERS)
        if not known or (which and stem not in (*FFN_STEMS, FUSED_STEM)):
            return None
        merged = which == "_exps"
        if stem == FUSED_STEM and not merged:
            return None
        expert = int(which[1:]) if which and not merged else None
        return cls(stem, None if layer is None else int(layer), merged, expert)

    def __str__(self) -> str:
        block = "" if self.layer is None else f"blk.{self.layer}."
        expert = "_exps" if self.merged else "" if self.expert is None else f".{self.expert}"
        return f"{block}{self.stem}{expert}.weight"

    @property
    def tensor_class(self) -> str:
        """One of CLASSES."""
        return "experts" if self.merged or self.expert is not None else _CLASSES[self.stem]

    def of_expert(self, expert: int) -> TensorName:
        """The name of one expert's part of a merged tensor."""
        return replace(self, merged=False, expert=expert)

    def of_all_experts(self) -> TensorName:
        """The name of the merged tensor that an expert's tensor is a part of."""
        return replace(self, merged=True, expert=None)


def merged_name(name: str) -> str:
    """The name of the merged tensor, if a tensor is one expert's.

    Args:
        name: a tensor's name, such as blk.0.ffn_up.3.weight.

    Returns:
        blk.0.ffn_up_exps.weight for that; any other name as it is.
    """
    parsed = TensorName.parse(name)
    return str(parsed.of_all_experts()) if parsed and parsed.expert is not None else name


def expert_name(merged: str, expert: int) -> str:
    """The name of one expert's part of a merged tensor, also of one that no model here has.

    Args:
        merged: the merged tensor's name, such as blk.0.ffn_up_exps.weight.
        expert: the expert's number.

    Returns:
        blk.0.ffn_up.3.weight for that and 3.
    """
    return f"{merged.removesuffix('_exps.weight')}.{expert}.weight"


def tensor_class(name: str) -> str:
    """The class of a tensor: one of CLASSES, "other" for names that no such model has."""
    parsed = TensorName.parse(name)
    return parsed.tensor_class if parsed else "other"
