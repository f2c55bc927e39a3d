"""Read the weights of an engine directory back, bit for bit, under their names in a checkpoint.

It is the inverse of pack.py. The ops are not needed, so this works on any machine.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from trtllm_pt.backends.embedded.constants import STEP_BYTES, TILE
from trtllm_pt.backends.embedded.pack import SHARED_FILE
from trtllm_pt.checkpoint.manifest import CheckpointManifest, rank_file
from trtllm_pt.checkpoint.ranks import WholeWeights
from trtllm_pt.files.safetensors import SafetensorsFile
from trtllm_pt.model.layout import rank_layout
from trtllm_pt.model.tensors import DOWN, GATE, UP, tensors


def engine_weights(folder: Path, manifest: CheckpointManifest) -> WholeWeights:
    """Return the weights of an engine directory. `manifest` is that of its checkpoint."""
    ranks = [_EngineRank(folder, manifest, rank) for rank in range(manifest.ranks)]
    return WholeWeights(manifest, ranks, folder / "tokenizer")


def unpack(packed: Tensor, rows: int, columns: int) -> Tensor:
    """Return the matrices [..., rows, columns] of which `packed` is the result of `trtllm_pt::pack`."""
    inputs = STEP_BYTES // packed.element_size()
    *lead, tiles, steps, _ = packed.shape
    parts = packed.view(*lead, tiles, steps, TILE, inputs).transpose(-3, -2)
    return parts.reshape(*lead, tiles * TILE, steps * inputs)[..., :rows, :columns]


class _EngineRank:
    """The tensors of one rank. Its file has a track axis in every tensor that is per track."""

    def __init__(self, folder: Path, manifest: CheckpointManifest, rank: int) -> None:
        self._files = [SafetensorsFile(rank_file(folder, rank)), SafetensorsFile(folder / SHARED_FILE)]
        config, layout = manifest.model, rank_layout(manifest.model, manifest.ranks, rank)
        self._specs = {spec.name: spec for spec in tensors(config)}
        self._shapes = {}  # of one track
        for spec in self._specs.values():
            shape = spec.rank_shape(config, layout)
            self._shapes[spec.name] = shape[1:] if spec.per_track and len(layout.tracks) > 1 else shape

    def get(self, name: str, track: int | None) -> Tensor:
        spec, shape = self._specs[name], self._shapes[name]
        if spec.kind == "norm" and not spec.per_track:  # the last norm, which the engine stores as that of one track
            return self._stored(name)[0]
        if spec.kind == "bias" and not spec.per_track:
            return self._stored(name)
        if not spec.per_track:
            return unpack(self._stored(name), *shape)
        if spec.kind in ("norm", "bias", "router"):
            return self._stored(name)[track or 0]
        if name.endswith(DOWN):
            return unpack(self._stored(name.replace(DOWN, "mlp.down.weight"))[track or 0], *shape[-2:])
        if name.endswith((GATE, UP)):
            return self._gate_or_up(name, track or 0, shape)
        return unpack(self._stored(name)[track or 0], *shape)

    def _gate_or_up(self, name: str, track: int, shape: tuple[int, ...]) -> Tensor:
        """Return a matrix of the engine's gate_up, which has the gate first; for experts both, up first."""
        layer = name.removesuffix(GATE).removesuffix(UP)
        gate_up = self._stored(f"{layer}mlp.gate_up.weight")[track]
        if len(shape) == 3:  # experts
            gate, up = unpack(gate_up, shape[1] // 2, shape[2]).unbind(1)
            return torch.cat((up, gate), 1)
        return unpack(gate_up[0 if name.endswith(GATE) else 1], *shape)

    def _stored(self, name: str) -> Tensor:
        return next(file for file in self._files if name in file).get(name)
