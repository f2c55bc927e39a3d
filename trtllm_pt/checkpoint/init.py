"""Random weights, counter-based: every number is a function of (seed, name of the weight, track, place in it).

So the model is the same for any number of ranks, a rank can be made alone, and blocks are made in parallel.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trtllm_pt.checkpoint.encoded import Encoded, Ranges
from trtllm_pt.checkpoint.manifest import CheckpointManifest, rank_file
from trtllm_pt.checkpoint.ranks import write_ranks
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.files.atomic import new_folder, refuse_existing, write_json
from trtllm_pt.files.safetensors import SafetensorsFile
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.layout import rank_layout
from trtllm_pt.model.tensors import TensorSpec

_BLOCK = 1 << 18  # numbers of one counter; part of what a seed means
_BATCH = 16  # blocks made before they are rounded: 16 MiB of float32
_EMBEDDING_STD = 0.02


def std(config: ModelConfig, spec: TensorSpec) -> float:
    """The standard deviation of a weight's initial values.

    1/sqrt(fan_in), and for what is added to the residual stream 1/sqrt(2L) of that (GPT-2). A mean over n tracks that
    differ shrinks their updates by about sqrt(n): there output projections are larger by that.
    """
    if spec.kind == "embedding":
        return _EMBEDDING_STD
    scale = 1 / math.sqrt(spec.fan_in)
    if spec.kind == "output":
        scale /= math.sqrt(2 * config.num_layers)
        if config.schedule == "pt" and config.combine == "mean":
            scale *= math.sqrt(config.tracks)
    return scale


def initial(config: ModelConfig, spec: TensorSpec, track: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """One track of one weight, [*spec.shape]: norms one, biases zero, all others normal. Rounded once, from float32.

    Peak memory: the weight itself and 16 MiB.
    """
    if spec.kind == "norm":
        return torch.ones(spec.shape, dtype=dtype)
    if spec.kind == "bias":
        return torch.zeros(spec.shape, dtype=dtype)
    whole = torch.empty(math.prod(spec.shape), dtype=dtype)
    key = int.from_bytes(hashlib.sha256(f"{seed}/{spec.name}/{track}".encode()).digest()[:16], "little")
    scale = std(config, spec)
    scratch = np.empty(min(whole.numel(), _BLOCK * _BATCH), dtype=np.float32)
    for start in range(0, whole.numel(), _BLOCK * _BATCH):
        part = whole[start : start + _BLOCK * _BATCH]
        normal = scratch[: part.numel()]
        blocks = range(-(-part.numel() // _BLOCK))
        list(_threads().map(partial(_fill, normal, key, scale, start // _BLOCK), blocks))
        part.copy_(torch.from_numpy(normal))
    return whole.view(spec.shape)


def _fill(normal: np.ndarray[tuple[int], np.dtype[np.float32]], key: int, scale: float, first: int, block: int) -> None:
    """Fills one block; numpy lets go of the interpreter lock meanwhile."""
    counter = (first + block) << 192  # Philox counts up from there, in the low words
    generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
    out = normal[block * _BLOCK : (block + 1) * _BLOCK]
    generator.standard_normal(dtype=np.float32, out=out)
    out *= scale


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="init")


class RandomWeights:
    """A source of initial weights."""

    tokenizer: Path | None = None

    def __init__(self, config: ModelConfig, seed: int, dtype: str = "bfloat16") -> None:
        self.config, self.seed, self.dtype = config, seed, dtype

    def read(self, spec: TensorSpec, track: int, dtype: torch.dtype) -> Tensor:
        return initial(self.config, spec, track, self.seed, dtype)


def init(
    config: ModelConfig,
    output: str | Path,
    ranks: int = 1,
    rank: int | None = None,
    dtype: str = "bfloat16",
    seed: int = 0,
    quantize: str | None = None,
    kv_cache: str | None = None,
    progress: bool | None = None,
) -> Path:
    """Writes a checkpoint of random weights for `ranks` ranks; returns `output`.

    rank: write that rank's file alone (and config.json, where it is not there yet), for machines that share no disk or
    have room for one rank; the checkpoint is complete when all ranks' files are in the directory.
    quantize: W8A16, W4A16 or FP8; kv_cache: FP8. FP8's scales for activations and KV cache are nominal: 1/16.
    Peak memory: one track of the largest weight, and 16 MiB; where it is quantised 9 bytes for each of its values.
    Raises UsageError where `output` holds something else already; RunError where the disk fails.
    """
    output = Path(output)
    if seed < 0:
        raise UsageError(f"seed ({seed}) must be at least 0")
    manifest = CheckpointManifest(
        model=config, ranks=ranks, dtype=dtype, quant_algo=quantize, kv_cache_quant_algo=kv_cache
    )
    weights = Encoded(RandomWeights(config, seed, dtype), manifest, Ranges.nominal(config))
    metadata = {"format": "pt", "seed": str(seed)}
    with new_folder(output) if rank is None else _shared_folder(output, manifest, rank, seed) as folder:
        write_ranks(weights, manifest, folder, only=rank, metadata=metadata, progress=progress)
        if not (folder / "config.json").exists():
            write_json(folder / "config.json", manifest.to_json())
    return output


@contextmanager
def _shared_folder(output: Path, manifest: CheckpointManifest, rank: int, seed: int) -> Iterator[Path]:
    """A directory that several processes fill, each its own rank."""
    rank_layout(manifest.model, manifest.ranks, rank)
    ours = (output / "config.json", *(rank_file(output, other) for other in range(manifest.ranks)))
    if not any(path.exists() for path in ours):
        refuse_existing(output)
    if (output / "config.json").exists() and CheckpointManifest.from_dir(output) != manifest:
        raise UsageError(f"{output} holds another checkpoint: its config.json differs; remove it or choose another")
    for path in (rank_file(output, other) for other in range(manifest.ranks)):
        if path == rank_file(output, rank) and path.exists():
            raise UsageError(f"{path} already exists; remove it or choose another output")
        if path.exists() and (found := SafetensorsFile(path).metadata.get("seed")) != str(seed):
            raise UsageError(f"{path} was made with seed {found}, not {seed}: the ranks would not be one model")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {output}: {error.strerror}") from None
    try:
        yield output
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"writing {rank_file(output, rank)} failed: {reason}; other ranks' files were kept") from error
