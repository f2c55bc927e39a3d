"""A rank's parts of the weights: their first values, and whole weights from the parts of all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import TRACKED, ModelConfig
from trtllm_pt.model.layout import RankLayout, rank_layout
from trtllm_pt.model.tensors import TensorSpec, tensors


def local_config(config: ModelConfig, size: int, rank: int) -> ModelConfig:
    """Return the config of what one rank computes: some of the tracks, or some heads and FFN rows of a single track.

    Raises UsageError if the model cannot be trained by that many ranks.
    """
    part = rank_layout(config, size, rank)
    if config.schedule not in TRACKED and config.num_kv_heads % size:
        raise UsageError(f"processes ({size}) must divide num_kv_heads ({config.num_kv_heads})")
    if config.output_bias and size > 1:
        raise UsageError(f"processes ({size}) must be 1 for output_bias (true)")
    return config.replace(
        tracks=len(part.tracks),
        num_heads=len(part.heads),
        num_kv_heads=len(part.kv_heads),
        intermediate_size=len(part.ffn),
        moe_intermediate_size=len(part.experts_ffn),
    )


def is_divided(spec: TensorSpec, config: ModelConfig, layout: RankLayout) -> bool:
    """Return whether the ranks hold different parts of a weight. Embedding and output head are held whole."""
    return spec.per_track and (config.schedule in TRACKED or spec.rows(config, layout)[1] is not None)


def part_of(whole: Tensor, spec: TensorSpec, config: ModelConfig, layout: RankLayout) -> Tensor:
    """Return a rank's part of a whole weight, which has the track axis if it is per track."""
    if not is_divided(spec, config, layout):
        return whole
    return torch.cat(
        [whole.narrow(axis, first, size) for axis, first, size in _pieces(spec, config, layout)], _axis(spec, config)
    )


def whole_of(parts: Sequence[Tensor], spec: TensorSpec, config: ModelConfig) -> Tensor:
    """Return a whole weight from the parts of all ranks, in order."""
    layouts = [rank_layout(config, len(parts), rank) for rank in range(len(parts))]
    if not is_divided(spec, config, layouts[0]):
        return parts[0]
    whole = parts[0].new_empty(spec.global_shape(config))
    for part, layout in zip(parts, layouts, strict=True):
        pieces = list(_pieces(spec, config, layout))
        sources = part.split([size for _, _, size in pieces], _axis(spec, config))
        for source, (axis, first, size) in zip(sources, pieces, strict=True):
            whole.narrow(axis, first, size).copy_(source)
    return whole


def _axis(spec: TensorSpec, config: ModelConfig) -> int:
    """Return the divided axis of a weight with its track axis."""
    return 0 if config.schedule in TRACKED else 1 + spec.rows(config, rank_layout(config, 1))[0]


def _pieces(spec: TensorSpec, config: ModelConfig, layout: RankLayout) -> Iterator[tuple[int, int, int]]:
    """Yield the spans of the divided axis that a rank holds: the axis, the first row and the number of rows."""
    spans = [layout.tracks] if config.schedule in TRACKED else spec.rows(config, layout)[1]
    assert spans is not None
    for span in spans:
        yield _axis(spec, config), span.start, len(span)


def initial_weights(config: ModelConfig, seed: int) -> Iterator[tuple[TensorSpec, Tensor]]:
    """Yield the first values of all weights, normally distributed: the same for any number of ranks.

    Every track has its own, because equal tracks would stay equal. A sub-layer's output projection is scaled so that
    the uncorrelated outputs of n tracks change the shared stream as much as one dense sub-layer would: where a
    boundary divides their sum by n, or multiplies the stream by n, by sqrt(n), and where it only adds them, by
    1/sqrt(n).
    """
    random = torch.Generator().manual_seed(seed)
    merged = math.sqrt(config.tracks) if config.schedule == "pt" else 1 / math.sqrt(config.tracks)
    for spec in tensors(config):
        value = torch.empty(spec.global_shape(config))
        if spec.kind == "norm":
            value.fill_(1.0)
        elif spec.kind == "bias":
            value.zero_()
        else:
            deviation = 0.05 if spec.kind == "embedding" else spec.fan_in**-0.5
            if spec.kind == "output":
                deviation *= merged / math.sqrt(2 * config.num_layers)
            value.normal_(0.0, deviation, generator=random)
        yield spec, value
