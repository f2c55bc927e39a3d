"""The weights of one rank, mapped from its checkpoint file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.checkpoint.ranks import open_rank
from trtllm_pt.model.layout import rank_layout


class RankWeights:
    """The tensors of a rank's file by name. Those of the layers have a leading axis of tracks, also for one track."""

    def __init__(self, checkpoint: Path, manifest: CheckpointManifest, rank: int) -> None:
        self._file = open_rank(checkpoint, manifest, rank)
        self._one_track = len(rank_layout(manifest.model, manifest.ranks, rank).tracks) == 1

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._file.get(name)
        return tensor[None] if self._one_track and name.startswith("transformer.layers.") else tensor

    def __contains__(self, name: str) -> bool:
        return name in self._file
