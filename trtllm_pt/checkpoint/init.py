"""Random weights from a counter-based generator: every value is a function of seed, weight name, track and index.

So a model is the same for any number of ranks, one rank's file can be written alone, and threads work in parallel.
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

_BLOCK = 1 << 18  # values drawn from one counter; another size would change the model of every seed
_BATCH = 16  # blocks drawn before they are rounded: 16 MiB of float32
_EMBEDDING_STD = 0.02


def std(config: ModelConfig, spec: TensorSpec) -> float:
    """Return the standard deviation of a weight's initial values.

    It is 1/sqrt(fan_in), times 1/sqrt(2L) for output projections, which add to the residual stream (GPT-2). A mean over
    n different tracks shrinks their updates by about sqrt(n), so output projections are then larger by sqrt(n).
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
    """Return the initial values of one track of a weight, [*spec.shape], rounded once from float32 to `dtype`.

    Norms are one, biases zero, all other weights normally distributed. Peak memory: the weight and 16 MiB.
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
    """Fill one block. NumPy releases the interpreter lock meanwhile, so threads run in parallel."""
    counter = (first + block) << 192  # Philox increments the low words of the counter
    generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
    out = normal[block * _BLOCK : (block + 1) * _BLOCK]
    generator.standard_normal(dtype=np.float32, out=out)
    out *= scale


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="init")


class RandomWeights:
    """A `Source` of initial weights."""

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
    embedding: str | None = None,
    progress: bool | None = None,
) -> Path:
    """Write a checkpoint of random weights for `ranks` ranks and return `output`.

    rank: write only this rank's file (and config.json unless it exists), for machines that share no disk or have room
    for one rank only. The checkpoint is complete when the files of all ranks are in the directory.
    quantize, kv_cache, embedding: as in `convert`. FP8's scales for activations and the KV cache are 1/16.
    progress: whether to show a bar on stderr; None shows it on a terminal.
    Peak memory: one track of the largest weight and 16 MiB; if it is quantised, 9 bytes per value of that track.
    Raises UsageError for invalid arguments or if `output` holds something else, and RunError if writing fails.
    """
    output = Path(output)
    if seed < 0:
        raise UsageError(f"seed ({seed}) must be at least 0")
    manifest = CheckpointManifest(
        model=config,
        ranks=ranks,
        dtype=dtype,
        quant_algo=quantize,
        kv_cache_quant_algo=kv_cache,
        embedding_quant_algo=embedding,
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
    """Yield `output` for the block to write one rank's file; other processes may write those of other ranks.

    Raises UsageError if `output` holds anything that is not part of the same checkpoint with the same seed.
    """
    rank_layout(manifest.model, manifest.ranks, rank)
    ours = (output / "config.json", *(rank_file(output, other) for other in range(manifest.ranks)))
    if not any(path.exists() for path in ours):
        refuse_existing(output)
    if (output / "config.json").exists() and CheckpointManifest.from_dir(output) != manifest:
        raise UsageError(f"{output} holds another checkpoint: its config.json differs; choose another output")
    for path in (rank_file(output, other) for other in range(manifest.ranks)):
        if path == rank_file(output, rank) and path.exists():
            raise UsageError(f"{path} already exists; remove it or choose another output")
        if path.exists() and (found := SafetensorsFile(path).metadata.get("seed")) != str(seed):
            raise UsageError(f"{path} was made with seed {found}, not {seed}; all ranks must have the same seed")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {output}: {error.strerror}") from None
    try:
        yield output
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"writing {rank_file(output, rank)} failed: {reason}; other ranks' files were kept") from error
