"""Weights of a source as a checkpoint stores them: rounded to its dtype, or quantised; a track of one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trtllm_pt.checkpoint.dtypes import TORCH_DTYPES
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.checkpoint.quantize import fp8_scale, quantize_fp8, quantize_rows
from trtllm_pt.checkpoint.source import Source
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.quantization import WEIGHT_ONLY, is_quantized, stored
from trtllm_pt.model.tensors import TensorSpec, tensors

_NOMINAL = 28.0


@dataclass(frozen=True, slots=True)
class Ranges:
    """The largest magnitudes that text gave rise to: what FP8's scales are made of."""

    inputs: dict[str, list[float]]  # by the weight that they are multiplied with, for each track
    kv: list[float]  # what the KV cache of each layer holds, over all tracks

    @classmethod
    def nominal(cls, config: ModelConfig) -> Ranges:
        """For weights that nobody trained: 28 everywhere, a scale of 1/16."""
        quantized = filter(is_quantized, tensors(config))
        inputs = {spec.name: [_NOMINAL] * config.tracks for spec in quantized}
        return cls(inputs, kv=[_NOMINAL] * config.num_layers)


class StoredWeights(Protocol):
    """What a writer of rank files asks for."""

    def stored(self, spec: TensorSpec, track: int) -> list[Tensor]:
        """One track of the tensors that `quantization.stored` lists for the weight, whole; int4 values unpacked."""
        ...

    def kv_scale(self, layer: int) -> Tensor:
        """The scale of a layer's FP8 KV cache, float32 [1]."""
        ...


class Encoded:
    """Weights of a source, stored as the manifest says. FP8 matrices need `ranges`; a KV cache has scale 1 without.

    Peak memory: 9 bytes for each value of one track of the largest weight where it is quantised.
    """

    def __init__(self, source: Source, manifest: CheckpointManifest, ranges: Ranges | None = None) -> None:
        self._source, self._manifest, self._ranges = source, manifest, ranges

    def stored(self, spec: TensorSpec, track: int) -> list[Tensor]:
        manifest, origin = self._manifest, _origin(spec, self._manifest.model)
        if manifest.quant_algo is None or not is_quantized(spec):
            (tensor,) = stored(spec, manifest.dtype)
            return [self._source.read(origin, track, TORCH_DTYPES[tensor.dtype])]
        weight = self._source.read(origin, track, torch.float32)
        if manifest.quant_algo in WEIGHT_ONLY:
            return [*quantize_rows(weight, WEIGHT_ONLY[manifest.quant_algo], manifest.torch_dtype)]
        assert self._ranges is not None
        return [*quantize_fp8(weight), torch.tensor([fp8_scale(self._ranges.inputs[spec.name][track])])]

    def kv_scale(self, layer: int) -> Tensor:
        return torch.tensor([1.0 if self._ranges is None else fp8_scale(self._ranges.kv[layer])])


def _origin(spec: TensorSpec, config: ModelConfig) -> TensorSpec:
    """Where a tied head's rows come from: the embedding, the first of all weights."""
    return next(tensors(config)) if config.tie_embeddings and spec.name == "lm_head.weight" else spec
