"""The weights of a model: tensors of a GGUF file by name, as views of the mapped file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType

from pymixtral.arrays import F32
from pymixtral.errors import ModelConfigError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.header import Tensor, quoted
from pymixtral.files.names import FFN_STEMS, FUSED_PARTS, FUSED_STEM, TensorName
from pymixtral.files.types import FLOAT_TYPES, MATRIX_TYPES, Matrix
from pymixtral.model.config import ModelConfig

Expert = tuple[Matrix, Matrix, Matrix]


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One decoder layer.

    Attributes:
        attn_norm: float32 [hidden].
        ffn_norm: float32 [hidden].
        q: n_heads*head_dim x hidden, rows in adjacent rope order.
        k: n_kv_heads*head_dim x hidden, likewise.
        v: n_kv_heads*head_dim x hidden.
        output: hidden x n_heads*head_dim.
        router: n_experts x hidden; None in a dense layer.
        experts: gate, up and down of each expert, ffn x hidden twice and hidden x ffn; a dense
            layer has one.
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
    """A model's weights.

    Attributes:
        embedding: n_vocab x hidden.
        output_norm: float32 [hidden].
        head: n_vocab x hidden; the same object as embedding where they are tied.
        layers: each decoder layer.
    """

    embedding: Matrix
    output_norm: F32
    head: Matrix
    layers: list[LayerWeights]

    def active_bytes(self, n_experts_used: int | Sequence[int]) -> int:
        """The bytes of matrices that are read for one generated token.

        These are attention, router, n_experts_used experts of average size in each layer (one number,
        or one for each layer), the output head and one row of the embedding.
        """
        layers = self._per_token(n_experts_used, lambda matrix: matrix.data.nbytes)
        return self.head.data.nbytes + self.embedding.row_bytes + layers

    def prompt_weights(self, n_experts_used: int | Sequence[int]) -> int:
        """The weights that each token of a prompt is multiplied with.

        These are the weights of the layers without the last layer's experts, which a prompt needs
        for its last token only.
        """
        last = self.layers[-1].experts
        n_last = n_experts_used if isinstance(n_experts_used, int) else n_experts_used[-1]
        unused = sum(matrix.rows * matrix.cols for expert in last for matrix in expert) * n_last // len(last)
        return self._per_token(n_experts_used, lambda matrix: matrix.rows * matrix.cols) - unused

    def _per_token(self, n_experts_used: int | Sequence[int], size: Callable[[Matrix], int]) -> int:
        total = 0
        each = [n_experts_used] * len(self.layers) if isinstance(n_experts_used, int) else n_experts_used
        for layer, n_used in zip(self.layers, each, strict=True):
            total += sum(size(matrix) for matrix in (layer.q, layer.k, layer.v, layer.output))
            total += size(layer.router) if layer.router else 0
            experts = sum(size(matrix) for expert in layer.experts for matrix in expert)
            total += experts * n_used // len(layer.experts)
        return total


def load_weights(file: GGUFFile, config: ModelConfig) -> ModelWeights:
    """The tensors of a file as the weights of a model.

    Experts may be merged (blk.N.ffn_gate_exps.weight, [n_experts, ffn, hidden]), merged with gate
    and up fused (blk.N.ffn_gate_up_exps.weight, [n_experts, 2 * ffn, hidden]), or split
    (blk.N.ffn_gate.E.weight); without output.weight the head is the embedding.

    Args:
        file: the open file.
        config: what its metadata say, from ModelConfig.from_gguf.

    Returns:
        Views of all tensors, none copied except norms in f16 and bf16. They stay valid after
        file.close().

    Raises:
        ModelConfigError: a tensor is missing, or its shape contradicts `config`.
        UnsupportedError: a type has no kernel, or a tensor has no part in the computation that
            docs/numerics.md defines.
    """
    tensors = _Tensors(file, config)
    embedding = tensors.matrix(TensorName("token_embd"))
    head = TensorName("output")
    weights = ModelWeights(
        embedding=embedding,
        output_norm=tensors.vector(TensorName("output_norm")),
        head=tensors.matrix(head) if str(head) in file.tensors else embedding,
        layers=[_layer(tensors, layer, config.n_experts) for layer in range(config.n_layers)],
    )
    if config.rope_scaling.factors:
        tensors.vector(TensorName("rope_freqs"))  # which config has read
    tensors.refuse_unused()
    return weights


def _layer(tensors: _Tensors, layer: int, n_experts: int) -> LayerWeights:
    gates, ups, downs = (tensors.experts(TensorName(stem, layer), n_experts) for stem in FFN_STEMS)
    return LayerWeights(
        attn_norm=tensors.vector(TensorName("attn_norm", layer)),
        ffn_norm=tensors.vector(TensorName("ffn_norm", layer)),
        q=tensors.matrix(TensorName("attn_q", layer)),
        k=tensors.matrix(TensorName("attn_k", layer)),
        v=tensors.matrix(TensorName("attn_v", layer)),
        output=tensors.matrix(TensorName("attn_output", layer)),
        router=tensors.matrix(TensorName("ffn_gate_inp", layer)) if n_experts > 1 else None,
        experts=list(zip(gates, ups, downs, strict=True)),
    )


class _Tensors:
    """A file's tensors by name, with the shapes that the model's numbers give them.

    It remembers which were used. Methods raise as load_weights does.
    """

    def __init__(self, file: GGUFFile, config: ModelConfig) -> None:
        self.path = file.path
        self.tensors = file.tensors
        self.shapes = dict(config.tensors())
        self.used: set[str] = set()

    def matrix(self, name: TensorName) -> Matrix:
        tensor = self._find(name, self.shapes[name], MATRIX_TYPES)
        return Matrix(tensor.type, tensor.data)

    def vector(self, name: TensorName) -> F32:
        tensor = self._find(name, self.shapes[name], FLOAT_TYPES)
        if tensor.type == GGMLQuantizationType.F16:
            return tensor.data.view(np.float16).astype(np.float32)
        if tensor.type == GGMLQuantizationType.BF16:
            return (tensor.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        # C reads floats, which must be aligned; GGUF's alignment makes this no copy.
        return np.require(tensor.data.view(np.float32), requirements="A")

    def experts(self, name: TensorName, n_experts: int) -> list[Matrix]:
        if n_experts == 1:
            return [self.matrix(name)]
        shape = self.shapes[name.of_all_experts()]
        if str(name.of_expert(0)) in self.tensors:
            split = [self._find(name.of_expert(e), shape[1:], MATRIX_TYPES) for e in range(n_experts)]
            return [Matrix(tensor.type, tensor.data) for tensor in split]
        fused = TensorName(FUSED_STEM, name.layer, merged=True)
        if name.stem in FUSED_PARTS and str(fused) in self.tensors:
            n_experts, ffn, hidden = shape
            both = self._find(fused, (n_experts, 2 * ffn, hidden), MATRIX_TYPES)
            begin = ffn * FUSED_PARTS.index(name.stem)
            return [Matrix(both.type, data[begin : begin + ffn]) for data in both.data]
        merged = self._find(name.of_all_experts(), shape, MATRIX_TYPES)
        return [Matrix(merged.type, data) for data in merged.data]

    def refuse_unused(self) -> None:
        for name in self.tensors:
            if name not in self.used:
                raise UnsupportedError(
                    f"{self.path}: expected the tensors of the model that the metadata describes, found {quoted(name)} "
                    "too, and leaving it out could change the results: the model is not supported"
                )

    def _find(self, name: TensorName, shape: tuple[int, ...], types: tuple[GGMLQuantizationType, ...]) -> Tensor:
        tensor = self.tensors.get(str(name))
        where = f"{self.path}: tensor '{name}'"
        if tensor is None:
            raise ModelConfigError(f"{where} is missing, expected one of shape {list(shape)}")
        if tensor.shape != shape:
            raise ModelConfigError(f"{where}: expected shape {list(shape)}, found {list(tensor.shape)}")
        if tensor.type not in types:
            raise UnsupportedError(
                f"{where}: expected one of the types {', '.join(kind.name for kind in types)}, found "
                f"{tensor.type.name}, which is not supported: quantize the model with `pymixtral quantize`"
            )
        self.used.add(str(name))
        return tensor
