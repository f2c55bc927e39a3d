"""A dense model as a model with tracks: each track is the part of one rank of tensor parallelism."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from trtllm_pt.checkpoint.ranks import rank_part
from trtllm_pt.checkpoint.source import Source
from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.layout import over_tracks, rank_layout
from trtllm_pt.model.tensors import SHARED_BIAS, TensorSpec, tensors


class SplitSource:
    """A `Source` of schedule spd, which gives a dense model's logits as long as no layer is dropped.

    Raises UsageError if the source is not dense, or cannot be divided over `tracks`.
    """

    def __init__(self, dense: Source, tracks: int, dropped_layers: tuple[int, ...] = ()) -> None:
        if dense.config.schedule != "tp":
            raise UsageError(
                f"the model has schedule {dense.config.schedule!r}; only a dense model, of schedule 'tp', can lose "
                "all-reduces"
            )
        if tracks < 2:
            raise UsageError(f"ranks ({tracks}) must be at least 2: one rank has no all-reduces")
        self._dense = dense
        self._layouts = [rank_layout(dense.config, tracks, rank) for rank in range(tracks)]
        self._specs = {spec.name: spec for spec in tensors(dense.config)}
        self.config: ModelConfig = over_tracks(dense.config, tracks, schedule="spd", dropped_layers=dropped_layers)
        self.dtype = dense.dtype
        self.tokenizer: Path | None = dense.tokenizer

    def read(self, spec: TensorSpec, track: int, dtype: torch.dtype) -> Tensor:
        if spec.name.endswith(SHARED_BIAS):
            name = spec.name.replace(SHARED_BIAS, "attention.dense.bias")
            return self._dense.read(self._specs[name], 0, dtype)
        whole = self._dense.read(self._specs[spec.name], 0, dtype)
        return (
            rank_part(self._specs[spec.name], self._dense.config, self._layouts[track], whole).contiguous()
            if spec.per_track
            else whole
        )
