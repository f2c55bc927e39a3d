"""Write the files of a checkpoint's ranks, each with its part of every weight, and read them back as whole weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from trtllm_pt.checkpoint.dtypes import TORCH_DTYPES
from trtllm_pt.checkpoint.encoded import StoredWeights
from trtllm_pt.checkpoint.manifest import CheckpointManifest, rank_file
from trtllm_pt.checkpoint.quantize import dequantize, pack_int4, unpack_int4
from trtllm_pt.checkpoint.source import listed
from trtllm_pt.errors import UsageError
from trtllm_pt.files.safetensors import SafetensorsFile, SafetensorsWriter, TensorInfo
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.layout import RankLayout, rank_layout
from trtllm_pt.model.quantization import WEIGHT_ONLY, StoredTensor, kv_scales
from trtllm_pt.model.tensors import TensorSpec, rank_tensors


def rank_infos(manifest: CheckpointManifest, rank: int) -> dict[str, TensorInfo]:
    """Return the names, dtypes and shapes of the tensors in a rank's file."""
    config, layout = manifest.model, rank_layout(manifest.model, manifest.ranks, rank)
    held = [tensor for spec in rank_tensors(config) for tensor in manifest.stored(spec)]
    held += kv_scales(config, manifest.kv_cache_quant_algo)
    return {
        tensor.spec.name: TensorInfo(getattr(torch, tensor.dtype), tensor.rank_shape(config, layout)) for tensor in held
    }


def rank_part(spec: TensorSpec, config: ModelConfig, layout: RankLayout, whole: Tensor) -> Tensor:
    """Return a rank's part of one track's weight [*spec.shape]. Rows that pad the vocabulary are zero."""
    if spec.split == "first_rank":
        return whole if layout.rank == 0 else torch.zeros_like(whole)
    axis, spans = spec.rows(config, layout)
    if spans is None:
        return whole
    if spec.split == "vocab":
        part = whole[layout.vocab.start : layout.vocab.stop]
        return F.pad(part, (0, 0) * (part.dim() - 1) + (0, len(layout.vocab) - len(part)))
    parts = [whole.narrow(axis, span.start, len(span)) for span in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def place_part(spec: TensorSpec, config: ModelConfig, layout: RankLayout, part: Tensor, whole: Tensor) -> None:
    """Copy a rank's part of one track's weight to its place in `whole` [*spec.shape]; the inverse of `rank_part`."""
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
    weights: StoredWeights,
    manifest: CheckpointManifest,
    folder: Path,
    *,
    only: int | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: bool | None = None,
) -> None:
    """Write the files of all ranks, or only that of rank `only`, into `folder`, one track of one weight at a time.

    progress: whether to show a bar on stderr; None shows it on a terminal.
    Peak memory: one track of one weight, and a rank's part of it if that is not a contiguous range of rows.
    Raises UsageError, naming the weights, if some hold NaN, infinity or values beyond the dtype; no file is left then.
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
            for tensor, whole in zip(manifest.stored(spec), weights.stored(spec, track), strict=True):
                if whole.dtype in TORCH_DTYPES.values() and not _is_finite(whole):
                    bad[spec.name] = None  # a quantised weight is found by its scale, which is then not finite
                for at in holders:
                    part = rank_part(tensor.spec, config, at, whole)
                    writers[at.rank].append(tensor.spec.name, pack_int4(part) if tensor.per_byte == 2 else part)
        for layer, tensor in enumerate(kv_scales(config, manifest.kv_cache_quant_algo)):
            for writer in writers.values():
                writer.append(tensor.spec.name, weights.kv_scale(layer))
        if bad:
            raise UsageError(f"NaN, infinity, or values beyond {manifest.dtype} in the tensors {listed(list(bad))}")


def _is_finite(tensor: Tensor) -> bool:
    low, high = torch.aminmax(tensor)  # NaN propagates to both; unlike isfinite(tensor) this allocates no mask
    return bool(low.isfinite() and high.isfinite())


class RankWeights(Protocol):
    """The tensors that one rank holds."""

    def get(self, name: str, track: int | None) -> Tensor:
        """Return a tensor under its name in a checkpoint. It may be a view of a mapped file.

        track: which of the rank's tracks, for a tensor of a rank that holds several; None for any other tensor.
        """
        ...


class WholeWeights:
    """The weights of all ranks, put together: a `Source` of weights, and `StoredWeights`.

    ranks: the tensors of every rank of the manifest.
    """

    def __init__(self, manifest: CheckpointManifest, ranks: Sequence[RankWeights], tokenizer: Path) -> None:
        self.manifest, self.config, self.dtype = manifest, manifest.model, manifest.dtype
        self.tokenizer: Path | None = tokenizer
        self.quantization = manifest.quantization
        self._layouts = [rank_layout(self.config, manifest.ranks, rank) for rank in range(manifest.ranks)]
        self._ranks = ranks

    def read(self, spec: TensorSpec, track: int, dtype: torch.dtype) -> Tensor:
        weight, *scales = self.stored(spec, track)
        if not scales:
            return weight.to(dtype)
        kind = WEIGHT_ONLY.get(self.quantization.of(spec) or "")
        return dequantize(weight, scales[0], dtype, scales[1] if kind is not None and kind.zeros else None)

    def stored(self, spec: TensorSpec, track: int) -> list[Tensor]:
        return [self._whole(tensor, track) for tensor in self.manifest.stored(spec)]

    def kv_scale(self, layer: int) -> Tensor:
        *_, tensor = islice(kv_scales(self.config, self.manifest.kv_cache_quant_algo), layer + 1)
        return self._whole(tensor, 0)

    def _whole(self, tensor: StoredTensor, track: int) -> Tensor:
        """Assemble one track of a stored tensor from the ranks' parts."""
        spec = tensor.spec
        whole = torch.empty(spec.shape, dtype=getattr(torch, tensor.dtype))
        for layout, rank in zip(self._layouts, self._ranks, strict=True):
            if spec.per_track and not layout.tracks.start <= track < layout.tracks.stop:
                continue
            several = spec.per_track and len(layout.tracks) > 1
            part = rank.get(spec.name, track - layout.tracks.start if several else None)
            place_part(spec, self.config, layout, unpack_int4(part) if tensor.per_byte == 2 else part, whole)
            if spec.split == "none":  # all ranks that hold the tensor hold the same values
                break
        return whole


class CheckpointDir(WholeWeights):
    """A CKPT directory of any number of ranks.

    Raises UsageError if files or tensors are missing or do not match config.json.
    """

    def __init__(self, folder: Path) -> None:
        manifest = CheckpointManifest.from_dir(folder)
        missing = manifest.missing_ranks(folder)
        if missing:
            files = [rank_file(folder, rank).name for rank in missing]
            raise UsageError(f"{folder} is incomplete: it lacks {listed(files)}")
        ranks = [_CheckpointRank(open_rank(folder, manifest, rank)) for rank in range(manifest.ranks)]
        super().__init__(manifest, ranks, folder / "tokenizer")


class _CheckpointRank:
    """The tensors of a rank's file in a checkpoint."""

    def __init__(self, file: SafetensorsFile) -> None:
        self._file = file

    def get(self, name: str, track: int | None) -> Tensor:
        tensor = self._file.get(name)
        return tensor if track is None else tensor[track]


def open_rank(folder: Path, manifest: CheckpointManifest, rank: int) -> SafetensorsFile:
    """Open a rank's file. Raises UsageError if its tensors are not those of the manifest."""
    file, infos = SafetensorsFile(rank_file(folder, rank)), rank_infos(manifest, rank)
    if set(file.names()) != set(infos):
        raise UsageError(f"{file.path} does not fit its config.json: {listed(sorted(set(file.names()) ^ set(infos)))}")
    for name, info in infos.items():
        if file.shape(name) != info.shape or file.dtype(name) != info.dtype:
            found, wanted = f"{file.dtype_name(name)} {list(file.shape(name))}", f"{info.dtype} {list(info.shape)}"
            raise UsageError(f"{file.path} does not fit its config.json: {name} is {found}, expected {wanted}")
    return file
