"""Encode a source's weights as a checkpoint stores them: rounded to its dtype or quantised, one track at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from trtllm_pt.checkpoint.dtypes import TORCH_DTYPES
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.checkpoint.quantize import fp8_scale, quantize_fp8, quantize_groups, quantize_rows, regrouped
from trtllm_pt.checkpoint.source import Source
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.quantization import WEIGHT_ONLY, Quantization, is_quantized
from trtllm_pt.model.tensors import HEAD, TensorSpec, tensors

_NOMINAL = 28.0  # 448 / 16, which gives a scale of 1/16


@dataclass(frozen=True, slots=True)
class Ranges:
    """The largest magnitudes of activations, from which FP8's scales are computed."""

    inputs: dict[str, list[float]]  # weight -> the magnitude of its input on each track
    kv: list[float]  # of each layer's keys and values, over all tracks

    @classmethod
    def nominal(cls, config: ModelConfig) -> Ranges:
        """Return 28 for every range, for models with random weights. FP8's scales are then 1/16."""
        quantized = filter(is_quantized, tensors(config))
        inputs = {spec.name: [_NOMINAL] * config.tracks for spec in quantized}
        return cls(inputs, kv=[_NOMINAL] * config.num_layers)


@runtime_checkable
class StoredWeights(Protocol):
    """The weights that `write_ranks` writes."""

    def stored(self, spec: TensorSpec, track: int) -> list[Tensor]:
        """Return one track of the tensors that `quantization.stored` lists for the weight, not divided over ranks.

        4-bit values are not packed: there is one int8 per value.
        """
        ...

    def kv_scale(self, layer: int) -> Tensor:
        """Return the scale of a layer's FP8 KV cache, float32 [1]."""
        ...


@runtime_checkable
class QuantizedSource(Source, Protocol):
    """A source some of whose weights are quantised. `read` gives what they stand for."""

    @property
    def quantization(self) -> Quantization:
        """What of the source is quantised, and how."""
        ...

    def stored(self, spec: TensorSpec, track: int) -> list[Tensor]:
        """Return one track of a quantised weight, as `StoredWeights` does."""
        ...


class Encoded:
    """The weights of a source in the dtype and quantisation of a manifest. What the source has quantised stays as it
    is, but for scales: they are rounded to the manifest's dtype, and repeated for smaller groups.

    FP8 matrices need `ranges`; without them an FP8 KV cache has scale 1.
    Peak memory with quantisation: 9 bytes for each value of one track of the largest weight.
    """

    def __init__(self, source: Source, manifest: CheckpointManifest, ranges: Ranges | None = None) -> None:
        self._source, self._manifest, self._ranges = source, manifest, ranges

    def stored(self, spec: TensorSpec, track: int) -> list[Tensor]:
        source, origin, held = self._source, _origin(spec, self._manifest.model), self._manifest.stored(spec)
        if isinstance(source, QuantizedSource) and source.quantization.of(spec) is not None:
            return [
                regrouped(values, tensor.spec.shape[-1]).to(getattr(torch, tensor.dtype))
                for values, tensor in zip(source.stored(spec, track), held, strict=True)
            ]
        algo = self._manifest.quantization.of(spec)
        if algo is None:
            return [source.read(origin, track, TORCH_DTYPES[held[0].dtype])]
        weight = source.read(origin, track, torch.float32)
        if algo in WEIGHT_ONLY:
            kind, dtype = WEIGHT_ONLY[algo], self._manifest.torch_dtype
            if kind.group is not None:
                return quantize_groups(weight, kind, dtype)
            return [*quantize_rows(weight, kind.bits, dtype)]
        assert self._ranges is not None
        return [*quantize_fp8(weight), torch.tensor([fp8_scale(self._ranges.inputs[spec.name][track])])]

    def kv_scale(self, layer: int) -> Tensor:
        source = self._source
        if isinstance(source, QuantizedSource) and isinstance(source, StoredWeights) and source.quantization.kv_cache:
            return source.kv_scale(layer)
        return torch.tensor([1.0 if self._ranges is None else fp8_scale(self._ranges.kv[layer])])


def _origin(spec: TensorSpec, config: ModelConfig) -> TensorSpec:
    """Return the weight to read for `spec`: for a tied output head the embedding, which is the first weight."""
    return next(tensors(config)) if config.tie_embeddings and spec.name == HEAD else spec
