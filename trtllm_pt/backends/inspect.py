"""Describe a checkpoint or an engine directory, with every message between its ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtllm_pt.backends.manifest import COMPILED, RECORDED
from trtllm_pt.backends.registry import read_engine
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.model import cost
from trtllm_pt.model.config import read_json
from trtllm_pt.model.schedule import schedule_of, sync_points, tensor_parallel_sync_points, to_json


def inspect(folder: str | Path) -> dict[str, Any]:
    """Return the JSON object that `inspect --json` prints.

    `kind` is "checkpoint" or the name of the engine's backend. `collectives` lists the messages that the backend sends;
    for a checkpoint their sizes are those of its dtype. `recorded` has the number of layers of each plugin in rank 0's
    network, or null if the backend does not count them. `gemm` is the option with which the engine was built: "int8" if
    its layers multiply integers, otherwise null. `compiled` has what the compiler said of the engine: versions,
    targets, profiles, plans, and the number of collectives of each kind in each profile; null if the backend does not
    read it.

    Raises UsageError if `folder` is neither a checkpoint nor an engine directory.
    """
    folder = Path(folder)
    data, recorded, compiled, keeps_tied_head = read_json(folder / "config.json"), None, None, True
    gemm = None
    if "pretrained_config" in data:
        engine = read_engine(folder)
        backend, manifest = engine.backend, engine.checkpoint
        kind, recorded, keeps_tied_head = backend.name, data.get(RECORDED), backend.keeps_tied_head
        gemm = data["build_config"].get("gemm")
        if (found := data.get(COMPILED)) is not None:
            compiled = {"versions": dict(engine.versions), **found}
        messages = backend.collectives(manifest.model, manifest.ranks, manifest.dtype)
    else:
        manifest, kind = CheckpointManifest.from_dir(folder), "checkpoint"
        messages = cost.collectives(manifest.model, manifest.ranks, manifest.dtype, logits_dtype=manifest.dtype)
    config, ranks, dtype = manifest.model, manifest.ranks, manifest.dtype
    steps = schedule_of(config)
    return {
        "kind": kind,
        "ranks": ranks,
        "tracks": config.tracks,
        "layers": config.num_layers,
        "block_depth": config.block_depth,
        "dtype": dtype,
        "quant_algo": manifest.quant_algo,
        "embedding_quant_algo": manifest.embedding_quant_algo,
        "kv_cache_quant_algo": manifest.kv_cache_quant_algo,
        "gemm": gemm,
        "parameters": cost.parameters(config),
        "flops_per_token": cost.flops_per_token(config, context=1),
        "bytes_per_rank": cost.bytes_per_rank(config, ranks, dtype, manifest.quantization, own_head=keeps_tied_head),
        "kv_bytes_per_token": cost.kv_bytes_per_token(config, ranks, dtype, manifest.kv_cache_quant_algo),
        "sync_points": sync_points(steps),
        "tensor_parallel_sync_points": tensor_parallel_sync_points(config),
        "collectives": [message.to_json() for message in messages],
        "recorded": recorded,
        "compiled": compiled,
        "schedule": to_json(steps),
    }
