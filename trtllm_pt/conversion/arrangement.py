"""A dense model with its heads and FFN neurons in another order. It computes the same function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trtllm_pt.checkpoint.source import Source
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.tensors import TensorSpec
from trtllm_pt.spd.heads import GroupedHeads, Order


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The head and the FFN neuron at each place of a layer. The heads of a KV head stay together."""

    heads: Order
    neurons: tuple[int, ...]


class Arranged:
    """A dense `Source` with each layer in the order of its arrangement."""

    def __init__(self, dense: Source, layers: Sequence[Arrangement]) -> None:
        self._heads = GroupedHeads(dense, {number: layer.heads for number, layer in enumerate(layers)})
        self._neurons = [list(layer.neurons) for layer in layers]
        self.config: ModelConfig = dense.config
        self.dtype = dense.dtype
        self.tokenizer: Path | None = dense.tokenizer

    def read(self, spec: TensorSpec, track: int, dtype: torch.dtype) -> Tensor:
        whole = self._heads.read(spec, track, dtype)
        if spec.split not in ("ffn", "ffn_in"):
            return whole
        order = self._neurons[int(spec.name.split(".")[2])]
        return whole[order] if spec.split == "ffn" else whole[:, order]
