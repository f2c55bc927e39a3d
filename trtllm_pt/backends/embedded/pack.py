"""Rewrite the weights of a checkpoint in the order in which the ops read them, when an engine is built.

Weights that are the same on all ranks go to one file, which all ranks map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from trtllm_pt.backends.embedded import codes
from trtllm_pt.backends.embedded.form import Storage
from trtllm_pt.backends.embedded.network import EmbeddedModel
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.checkpoint.quantize import unpack_int4
from trtllm_pt.checkpoint.ranks import open_rank
from trtllm_pt.files.safetensors import SafetensorsFile, SafetensorsWriter, TensorInfo
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.layout import rank_layout
from trtllm_pt.model.quantization import WEIGHT_ONLY
from trtllm_pt.model.tensors import DOWN, EMBEDDING, GATE, HEAD, SHARED_BIAS, UP, UP_GATE, tensors
from trtllm_pt.network.rope import inverse_frequencies

SHARED_FILE = "shared.safetensors"


def storage_of(manifest: CheckpointManifest) -> Storage:
    """Return how the engine of a checkpoint stores weights and its KV cache."""
    algos = (manifest.quant_algo, manifest.embedding_quant_algo, manifest.kv_cache_quant_algo)
    return Storage(manifest.torch_dtype, *algos)


def weight_infos(manifest: CheckpointManifest) -> dict[str, TensorInfo]:
    """Return the dtype and shape of every weight of a rank by name. They are the same for all ranks."""
    model = EmbeddedModel(manifest.model, manifest.ranks, storage_of(manifest))
    return {name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}


def shared_names(config: ModelConfig, infos: dict[str, TensorInfo]) -> set[str]:
    """Return the names of the constants whose values are the same on all ranks."""
    alike = {
        spec.name for spec in tensors(config) if spec.split == "none" and (not spec.per_track or config.tracks == 1)
    }
    return (alike | {"transformer.inv_freq"}) & set(infos)


def write_weights(checkpoint: Path, manifest: CheckpointManifest, output: Path, progress: bool | None = None) -> None:
    """Write `shared.safetensors` and every `rank{r}.safetensors` into `output`, one track of one matrix at a time."""
    infos = weight_infos(manifest)
    shared = shared_names(manifest.model, infos)
    jobs = [(output / SHARED_FILE, 0, sorted(shared))]
    jobs += [
        (output / f"rank{rank}.safetensors", rank, [n for n in infos if n not in shared])
        for rank in range(manifest.ranks)
    ]
    total = sum(infos[name].nbytes for _, _, names in jobs for name in names)
    bar = tqdm(
        total=total,
        desc="packing weights",
        unit="B",
        unit_scale=True,
        disable=None if progress is None else not progress,
    )
    with bar:
        for path, rank, names in jobs:
            source = open_rank(checkpoint, manifest, rank)
            with SafetensorsWriter(path, {name: infos[name] for name in names}) as writer:
                for name in names:
                    for part in packed(name, source, manifest, rank):
                        writer.append(name, part.to(infos[name].dtype))
                        bar.update(part.nbytes)


def packed(name: str, source: SafetensorsFile, manifest: CheckpointManifest, rank: int) -> Iterator[Tensor]:
    """Yield one constant of the graph, in pieces along its first axis."""
    config, layout = manifest.model, rank_layout(manifest.model, manifest.ranks, rank)
    layer = name.removesuffix("mlp.gate_up.weight")
    matrices = _Matrices(source, len(layout.tracks), manifest.quant_algo)
    if name == "transformer.inv_freq":
        yield inverse_frequencies(config)[None]
    elif name == "lm_head.first":
        # A tied head reads the rank's rows of the whole embedding; an untied head's table has only the rank's rows.
        yield torch.tensor([layout.vocab.start if config.tie_embeddings else 0])
    elif name == "transformer.ln_f.weight":
        yield source.get(name)[None]
    elif name.endswith(SHARED_BIAS):
        yield source.get(name)
    elif name in (EMBEDDING, HEAD):
        yield _packed_table(name, source, manifest)
    elif layer != name and f"{layer}mlp.router.weight" in source:
        yield from matrices.packed([f"{layer}{UP_GATE}"], lambda parts: torch.stack(parts[0].chunk(2, 1)[::-1], 1))
    elif layer != name:
        yield from matrices.packed([f"{layer}{GATE}", f"{layer}{UP}"], torch.stack)
    elif name.endswith((".qkv.weight", ".dense.weight", "mlp.down.weight")):
        yield from matrices.packed([name.replace("mlp.down.weight", DOWN)], lambda parts: parts[0])
    else:  # norms, biases and routers are not packed
        yield matrices.of(name)


def _packed_table(name: str, source: SafetensorsFile, manifest: CheckpointManifest) -> Tensor:
    """Return the embedding or the output head in packed order."""
    if manifest.embedding_quant_algo is None:
        return torch.ops.trtllm_pt.pack(source.get(name))  # type: ignore[no-any-return]
    scales = source.get(f"{name.removesuffix('weight')}per_channel_scale")
    return codes.pack(source.get(name), scales[:, None], None, bits=8)


class _Matrices:
    """The matrices of the layers in a rank's checkpoint file."""

    def __init__(self, source: SafetensorsFile, tracks: int, quant_algo: str | None) -> None:
        self._source, self._tracks, self._kind = source, tracks, WEIGHT_ONLY.get(quant_algo or "")

    def of(self, stored: str) -> Tensor:
        """Return a per-track tensor with its track axis, which the file of a rank with one track leaves out."""
        tensor = self._source.get(stored)
        return tensor if self._tracks > 1 else tensor[None]

    def packed(self, names: list[str], join: Callable[[list[Tensor]], Tensor]) -> Iterator[Tensor]:
        """Yield each track of a matrix in packed order. `join` makes it from the tensors `names`, or from their scales,
        whose shapes differ in the number of columns only."""
        for track in range(self._tracks):
            weight = join([self.of(name)[track] for name in names])
            if self._kind is None:
                yield torch.ops.trtllm_pt.pack(weight)[None]
                continue
            scales = [join(each) for each in self._scales(names, track)]
            values = unpack_int4(weight) if self._kind.bits == 4 else weight
            yield codes.pack(values, scales[0], scales[1] if self._kind.zeros else None, self._kind.bits)[None]

    def _scales(self, names: list[str], track: int) -> Iterator[list[Tensor]]:
        """Yield the matrices' scales [..., O, groups], and then their zero points if they have them."""
        stems = [name.removesuffix("weight") for name in names]
        assert self._kind is not None
        if self._kind.group is None:
            yield [self.of(f"{stem}per_channel_scale")[track, ..., None] for stem in stems]
            return
        yield [self.of(f"{stem}weights_scaling_factor")[track] for stem in stems]
        if self._kind.zeros:
            yield [self.of(f"{stem}zero")[track] for stem in stems]
