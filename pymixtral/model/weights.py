"""The weights of a model: tensors of a GGUF file by name, as views of the mapped file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType

from pymixtral.arrays import F32
from pymixtral.errors import ModelConfigError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.header import Tensor, quoted
from pymixtral.files.types import DEQUANTIZED_TYPES, Matrix
from pymixtral.model.config import ModelConfig

MATRIX_TYPES = (
    GGMLQuantizationType.F32,
    GGMLQuantizationType.F16,
    GGMLQuantizationType.BF16,
    GGMLQuantizationType.Q4_0,
    GGMLQuantizationType.Q4_1,
    GGMLQuantizationType.Q5_0,
    GGMLQuantizationType.Q5_1,
    GGMLQuantizationType.Q8_0,
    GGMLQuantizationType.IQ4_NL,
    GGMLQuantizationType.Q2_K,
    GGMLQuantizationType.Q3_K,
    GGMLQuantizationType.Q4_K,
    GGMLQuantizationType.Q5_K,
    GGMLQuantizationType.Q6_K,
    GGMLQuantizationType.IQ4_XS,
    *DEQUANTIZED_TYPES,
)

Expert = tuple[Matrix, Matrix, Matrix]


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One decoder layer.

    attn_norm, ffn_norm: float32 [hidden]. q: n_heads*head_dim x hidden, rows in adjacent rope order. k, v: n_kv_heads*head_dim x hidden.
    output: hidden x n_heads*head_dim. router: n_experts x hidden; None in a dense layer.
    experts: (gate, up, down) of each expert, ffn x hidden twice and hidden x ffn; a dense layer has one.
    """

    attn_norm: F32
    ffn_norm: F32
    q: Matrix
    k: Matrix
    v: Matrix
    output: Matrix
    router: Matrix | None
    experts: list[Expert]


@dataclass(frozen=True, eq=False)
class ModelWeights:
    """embedding, head: n_vocab x hidden, the same object where they are tied. output_norm: float32 [hidden]."""

    embedding: Matrix
    output_norm: F32
    head: Matrix
    layers: list[LayerWeights]

    def active_bytes(self, n_experts_used: int) -> int:
        """Bytes of matrices read for one generated token: attention, router, n_experts_used experts of average size in each
        layer, the output head and one row of the embedding."""
        layers = self._per_token(n_experts_used, lambda matrix: matrix.data.nbytes)
        return self.head.data.nbytes + self.embedding.row_bytes + layers

    def prompt_weights(self, n_experts_used: int) -> int:
        """Weights that each token of a prompt is multiplied with when logits are asked for after the last one only: those of the layers,
        without the last layer's experts."""
        last = self.layers[-1].experts
        unused = sum(matrix.rows * matrix.cols for expert in last for matrix in expert) * n_experts_used // len(last)
        return self._per_token(n_experts_used, lambda matrix: matrix.rows * matrix.cols) - unused

    def _per_token(self, n_experts_used: int, size: Callable[[Matrix], int]) -> int:
        total = 0
        for layer in self.layers:
            total += sum(size(matrix) for matrix in (layer.q, layer.k, layer.v, layer.output))
            total += size(layer.router) if layer.router else 0
            total += sum(size(matrix) for expert in layer.experts for matrix in expert) * n_experts_used // len(layer.experts)
        return total


def load_weights(file: GGUFFile, config: ModelConfig) -> ModelWeights:
    """Views of all tensors of `file`, none copied except norms in f16 and bf16; they stay valid after file.close().

    Experts may be merged (blk.N.ffn_gate_exps.weight, [n_experts, ffn, hidden]) or split (blk.N.ffn_gate.E.weight); without
    output.weight the head is the embedding. Raises ModelConfigError for a tensor that is missing or whose shape contradicts `config`,
    and UnsupportedError for a type without a kernel and for a tensor that has no part in the computation defined in docs/numerics.md.
    """
    tensors = _Tensors(file)
    c = config
    embedding = tensors.matrix("token_embd.weight", c.n_vocab, c.hidden)
    weights = ModelWeights(
        embedding=embedding,
        output_norm=tensors.vector("output_norm.weight", c.hidden),
        head=tensors.matrix("output.weight", c.n_vocab, c.hidden) if "output.weight" in file.tensors else embedding,
        layers=[_layer(tensors, f"blk.{i}", c) for i in range(c.n_layers)],
    )
    tensors.refuse_unused()
    return weights


def _layer(tensors: _Tensors, prefix: str, c: ModelConfig) -> LayerWeights:
    gates = tensors.experts(f"{prefix}.ffn_gate", c.n_experts, c.ffn, c.hidden)
    ups = tensors.experts(f"{prefix}.ffn_up", c.n_experts, c.ffn, c.hidden)
    downs = tensors.experts(f"{prefix}.ffn_down", c.n_experts, c.hidden, c.ffn)
    return LayerWeights(
        attn_norm=tensors.vector(f"{prefix}.attn_norm.weight", c.hidden),
        ffn_norm=tensors.vector(f"{prefix}.ffn_norm.weight", c.hidden),
        q=tensors.matrix(f"{prefix}.attn_q.weight", c.n_heads * c.head_dim, c.hidden),
        k=tensors.matrix(f"{prefix}.attn_k.weight", c.n_kv_heads * c.head_dim, c.hidden),
        v=tensors.matrix(f"{prefix}.attn_v.weight", c.n_kv_heads * c.head_dim, c.hidden),
        output=tensors.matrix(f"{prefix}.attn_output.weight", c.hidden, c.n_heads * c.head_dim),
        router=tensors.matrix(f"{prefix}.ffn_gate_inp.weight", c.n_experts, c.hidden) if c.n_experts > 1 else None,
        experts=list(zip(gates, ups, downs, strict=True)),
    )


class _Tensors:
    """A file's tensors by name and expected shape; remembers which were used."""

    def __init__(self, file: GGUFFile) -> None:
        self.path = file.path
        self.tensors = file.tensors
        self.used: set[str] = set()

    def matrix(self, name: str, rows: int, cols: int) -> Matrix:
        tensor = self._find(name, (rows, cols), MATRIX_TYPES)
        return Matrix(tensor.type, tensor.data)

    def vector(self, name: str, n: int) -> F32:
        tensor = self._find(name, (n,), (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16))
        if tensor.type == GGMLQuantizationType.F16:
            return tensor.data.view(np.float16).astype(np.float32)
        if tensor.type == GGMLQuantizationType.BF16:
            return (tensor.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return np.require(tensor.data.view(np.float32), requirements="A")  # C reads floats; GGUF's alignment makes this no copy

    def experts(self, name: str, n_experts: int, rows: int, cols: int) -> list[Matrix]:
        if n_experts == 1:
            return [self.matrix(f"{name}.weight", rows, cols)]
        if f"{name}.0.weight" in self.tensors:
            return [self.matrix(f"{name}.{e}.weight", rows, cols) for e in range(n_experts)]
        merged = self._find(f"{name}_exps.weight", (n_experts, rows, cols), MATRIX_TYPES)
        return [Matrix(merged.type, data) for data in merged.data]

    def refuse_unused(self) -> None:
        for name in self.tensors:
            if name not in self.used:
                raise UnsupportedError(
                    f"{self.path}: tensor {quoted(name)} is no part of the model that the metadata describes, "
                    "and leaving it out could change the results: the model is not supported"
                )

    def _find(self, name: str, shape: tuple[int, ...], types: tuple[GGMLQuantizationType, ...]) -> Tensor:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise ModelConfigError(f"{self.path}: tensor '{name}' is missing, expected one of shape {list(shape)}")
        if tensor.shape != shape:
            raise ModelConfigError(f"{self.path}: tensor '{name}': expected shape {list(shape)}, found {list(tensor.shape)}")
        if tensor.type not in types:
            raise UnsupportedError(
                f"{self.path}: tensor '{name}': expected one of the types {', '.join(kind.name for kind in types)}, found "
                f"{tensor.type.name}, which is not supported: quantize the model with `pymixtral quantize`"
            )
        self.used.add(name)
        return tensor
