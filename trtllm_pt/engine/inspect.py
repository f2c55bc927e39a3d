"""What a checkpoint or an engine directory holds, and every message between its ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtllm_pt import cost
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.config import read_json
from trtllm_pt.engine.manifest import EngineManifest
from trtllm_pt.schedule import schedule_of, sync_points, tensor_parallel_sync_points, to_json

# What the embedded runtime sends the other ranks to decode one token: 11 numbers of 8 bytes (runtime/step_plan.py).
STEP_PLAN_BYTES = 88


def inspect(folder: str | Path) -> dict[str, Any]:
    """The keys of `inspect --json`. Raises UsageError where `folder` is neither a checkpoint nor an engine directory.

    A checkpoint's boundaries are given in its own dtype; an embedded engine sends float32, and announces each step.
    """
    folder = Path(folder)
    if "pretrained_config" in read_json(folder / "config.json"):
        engine = EngineManifest.from_dir(folder)
        manifest, kind = engine.checkpoint, str(engine.kind)
    else:
        manifest, kind = CheckpointManifest.from_dir(folder), "checkpoint"
    config, ranks, embedded = manifest.model, manifest.ranks, kind == "embedded"
    steps = schedule_of(config)
    messages = cost.collectives(
        config, ranks, "float32" if embedded else manifest.dtype, step_bytes=STEP_PLAN_BYTES if embedded else 0
    )
    return {
        "kind": kind,
        "ranks": ranks,
        "tracks": config.tracks,
        "layers": config.num_layers,
        "block_depth": config.block_depth,
        "dtype": manifest.dtype,
        "quant_algo": manifest.quant_algo,
        "kv_cache_quant_algo": manifest.kv_cache_quant_algo,
        "parameters": cost.parameters(config),
        "flops_per_token": cost.flops_per_token(config, context=1),
        "bytes_per_rank": cost.bytes_per_rank(
            config, ranks, manifest.dtype, manifest.quant_algo, manifest.kv_cache_quant_algo
        ),
        "kv_bytes_per_token": cost.kv_bytes_per_token(config, ranks, manifest.dtype, manifest.kv_cache_quant_algo),
        "sync_points": sync_points(steps),
        "tensor_parallel_sync_points": tensor_parallel_sync_points(config),
        "collectives": [message.to_json() for message in messages],
        "schedule": to_json(steps),
    }
