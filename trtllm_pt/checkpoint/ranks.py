"""A rank's file: which part of a weight it holds, written from any source, and read back into whole weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from trtllm_pt.checkpoint.dtypes import TORCH_DTYPES
from trtllm_pt.checkpoint.manifest import CheckpointManifest, rank_file
from trtllm_pt.checkpoint.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorInfo
from trtllm_pt.checkpoint.source import Source, listed
from trtllm_pt.config import ModelConfig
from trtllm_pt.errors import UsageError
from trtllm_pt.layout import RankLayout, rank_layout
from trtllm_pt.tensors import TensorSpec, tensors

_HEAD = "lm_head.weight"


def rank_tensors(config: ModelConfig) -> Iterator[TensorSpec]:
    """The weights of a rank's file. A tied head is among them: a slice of the vocabulary cannot share the embedding."""
    yield from tensors(config)
    if config.tie_embeddings:
        yield TensorSpec(_HEAD, (config.vocab_size, config.hidden_size), False, "vocab", fan_in=config.hidden_size)


def stored_dtype(spec: TensorSpec, dtype: torch.dtype) -> torch.dtype:
    """Routers stay float32: a rounded logit may choose another expert."""
    return torch.float32 if spec.kind == "router" else dtype


def rank_infos(manifest: CheckpointManifest, rank: int) -> dict[str, TensorInfo]:
    """Names, dtypes and shapes of a rank's file."""
    config, layout = manifest.model, rank_layout(manifest.model, manifest.ranks, rank)
    return {
        spec.name: TensorInfo(stored_dtype(spec, manifest.torch_dtype), spec.rank_shape(config, layout))
        for spec in rank_tensors(config)
    }


def rank_part(spec: TensorSpec, config: ModelConfig, layout: RankLayout, whole: Tensor) -> Tensor:
    """What a rank holds of one track's weight [*spec.shape]; vocabulary rows beyond the last are zero."""
    if spec.split == "first_rank":
        return whole if layout.rank == 0 else torch.zeros_like(whole)
    axis, spans = spec.rows(config, layout)
    if spans is None:
        return whole
    if spec.split == "vocab":
        part = whole[layout.vocab.start : layout.vocab.stop]
        return F.pad(part, (0, 0, 0, len(layout.vocab) - len(part)))
    parts = [whole.narrow(axis, span.start, len(span)) for span in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def place_part(spec: TensorSpec, config: ModelConfig, layout: RankLayout, part: Tensor, whole: Tensor) -> None:
    """The inverse: puts a rank's part of one track's weight where it belongs in `whole`."""
    axis, spans = spec.rows(config, layout)
    if spec.split == "vocab":
        rows = max(0, min(layout.vocab.stop, config.vocab_size) - layout.vocab.start)
        whole[layout.vocab.start : layout.vocab.start + rows] = part[:rows]
    elif spans is None:
        if layout.rank == 0 or spec.split != "first_rank":
            whole.copy_(part)
    else:
        start = 0
        for span in spans:
            whole.narrow(axis, span.start, len(span)).copy_(part.narrow(axis, start, len(span)))
            start += len(span)


def write_ranks(
    source: Source,
    manifest: CheckpointManifest,
    folder: Path,
    *,
    only: int | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: bool | None = None,
) -> None:
    """Writes all ranks' files into `folder`, or that of rank `only`, one track of one weight at a time.

    Peak memory: what the source holds of one track of one weight, and a rank's part of it where that is not a plain
    range of rows. progress: a bar on stderr; None: where that is a terminal.
    Raises UsageError naming the weights that hold NaN or infinity, or values beyond the dtype; then no file is left.
    """
    config = manifest.model
    ranks = range(manifest.ranks) if only is None else [only]
    layouts = {rank: rank_layout(config, manifest.ranks, rank) for rank in ranks}
    todo = [(spec, track) for spec in rank_tensors(config) for track in range(config.tracks if spec.per_track else 1)]
    bad: dict[str, None] = {}
    with ExitStack() as stack:
        writers = {
            rank: stack.enter_context(SafetensorsWriter(rank_file(folder, rank), rank_infos(manifest, rank), metadata))
            for rank in ranks
        }
        for spec, track in tqdm(todo, desc="weights", unit="", disable=None if progress is None else not progress):
            holders = [at for at in layouts.values() if not spec.per_track or at.tracks.start <= track < at.tracks.stop]
            if not holders:
                continue
            tensor = source.read(_origin(spec, config), track, stored_dtype(spec, manifest.torch_dtype))
            if not _is_finite(tensor):
                bad[spec.name] = None
            for at in holders:
                writers[at.rank].append(spec.name, rank_part(spec, config, at, tensor))
        if bad:
            raise UsageError(f"NaN, infinity, or values beyond {manifest.dtype} in the tensors {listed(list(bad))}")


def _origin(spec: TensorSpec, config: ModelConfig) -> TensorSpec:
    """Where a tied head's rows come from: the embedding, the first of all weights."""
    return next(tensors(config)) if config.tie_embeddings and spec.name == _HEAD else spec


def _is_finite(tensor: Tensor) -> bool:
    low, high = torch.aminmax(tensor)  # of a tensor with a NaN both are NaN; and no mask as large as the tensor
    return bool(low.isfinite() and high.isfinite())


class CheckpointDir:
    """A CKPT directory of any number of ranks, read back as whole weights."""

    def __init__(self, folder: Path) -> None:
        manifest = CheckpointManifest.from_dir(folder)
        missing = manifest.missing_ranks(folder)
        if missing:
            files = [rank_file(folder, rank).name for rank in missing]
            raise UsageError(f"{folder} is incomplete, it lacks {listed(files)}")
        self.config, self.dtype, self.tokenizer = manifest.model, manifest.dtype, folder / "tokenizer"
        self._layouts = [rank_layout(self.config, manifest.ranks, rank) for rank in range(manifest.ranks)]
        self._files = [open_rank(folder, manifest, rank) for rank in range(manifest.ranks)]

    def read(self, spec: TensorSpec, track: int, dtype: torch.dtype) -> Tensor:
        whole = torch.empty(spec.shape, dtype=stored_dtype(spec, TORCH_DTYPES[self.dtype]))
        for layout, file in zip(self._layouts, self._files, strict=True):
            if spec.per_track and not layout.tracks.start <= track < layout.tracks.stop:
                continue
            part = file.get(spec.name)
            if spec.per_track and len(layout.tracks) > 1:
                part = part[track - layout.tracks.start]
            place_part(spec, self.config, layout, part, whole)
            if spec.split == "none":  # all that have it have it alike
                break
        return whole.to(dtype)


def open_rank(folder: Path, manifest: CheckpointManifest, rank: int) -> SafetensorsFile:
    """A rank's file. Raises UsageError where it does not hold what the manifest says."""
    file, infos = SafetensorsFile(rank_file(folder, rank)), rank_infos(manifest, rank)
    if set(file.names()) != set(infos):
        raise UsageError(f"{file.path} does not fit its config.json: {listed(sorted(set(file.names()) ^ set(infos)))}")
    for name, info in infos.items():
        if file.shape(name) != info.shape or file.dtype(name) != info.dtype:
            found, wanted = f"{file.dtype_name(name)} {list(file.shape(name))}", f"{info.dtype} {list(info.shape)}"
            raise UsageError(f"{file.path} does not fit its config.json: {name} is {found}, wanted {wanted}")
    return file
