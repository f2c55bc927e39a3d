"""What a checkpoint or an engine directory holds, and every message between its ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtllm_pt.backends.manifest import RECORDED, EngineManifest
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.model import cost
from trtllm_pt.model.config import read_json
from trtllm_pt.model.schedule import schedule_of, sync_points, tensor_parallel_sync_points, to_json


def inspect(folder: str | Path) -> dict[str, Any]:
    """The keys of `inspect --json`. Raises UsageError where `folder` is neither a checkpoint nor an engine directory.

    Messages of a checkpoint and of a TensorRT engine are in the checkpoint's dtype; an embedded engine sends float32,
    and announces each step. `recorded`: the plugin layers that the built network was seen to have, by plugin.
    """
    folder = Path(folder)
    data, recorded = read_json(folder / "config.json"), None
    if "pretrained_config" in data:
        engine = EngineManifest.from_dir(folder)
        manifest, kind, recorded = engine.checkpoint, str(engine.kind), data.get(RECORDED)
    else:
        manifest, kind = CheckpointManifest.from_dir(folder), "checkpoint"
    config, ranks, dtype = manifest.model, manifest.ranks, manifest.dtype
    steps = schedule_of(config)
    if kind == "embedded":
        messages = cost.collectives(config, ranks, "float32", step_bytes=cost.STEP_PLAN_BYTES)
    else:
        messages = cost.collectives(config, ranks, dtype, logits_dtype=dtype)
    return {
        "kind": kind,
        "ranks": ranks,
        "tracks": config.tracks,
        "layers": config.num_layers,
        "block_depth": config.block_depth,
        "dtype": dtype,
        "quant_algo": manifest.quant_algo,
        "kv_cache_quant_algo": manifest.kv_cache_quant_algo,
        "parameters": cost.parameters(config),
        "flops_per_token": cost.flops_per_token(config, context=1),
        "bytes_per_rank": cost.bytes_per_rank(
            config, ranks, dtype, manifest.quant_algo, manifest.kv_cache_quant_algo, own_head=kind != "embedded"
        ),
        "kv_bytes_per_token": cost.kv_bytes_per_token(config, ranks, dtype, manifest.kv_cache_quant_algo),
        "sync_points": sync_points(steps),
        "tensor_parallel_sync_points": tensor_parallel_sync_points(config),
        "collectives": [message.to_json() for message in messages],
        "recorded": recorded,
        "schedule": to_json(steps),
    }
