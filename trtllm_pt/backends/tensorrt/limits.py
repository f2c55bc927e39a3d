"""What this backend cannot build, refused before anything slow begins."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trtllm_pt.backends.tensorrt.api import FP8_TARGETS
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.layout import rank_layout
from trtllm_pt.model.quantization import PER_CHANNEL, WEIGHT_ONLY


def check(manifest: CheckpointManifest, gpus: Sequence[str]) -> None:
    """Raise UsageError, naming the field, for a checkpoint that cannot be compiled for the GPU architectures `gpus`."""
    _check_quantization(manifest, gpus)
    if manifest.dtype != "float32" and manifest.model.head_size % 8:
        raise UsageError(
            f"head_size ({manifest.model.head_size}) must be a multiple of 8 in {manifest.dtype}: TensorRT's attention "
            "has no kernels for others; float32 takes any"
        )
    if "sm75" in gpus and manifest.dtype != "float16":
        raise UsageError(f"dtype ({manifest.dtype!r}) must be 'float16' for gpu sm75, which multiplies no other")


def _check_quantization(manifest: CheckpointManifest, gpus: Sequence[str]) -> None:
    """Raise UsageError for a quantisation that TensorRT would undo before each product, or that a GPU does not have."""
    algo, model = manifest.quant_algo, manifest.model
    if manifest.kv_cache_quant_algo:
        raise UsageError(
            f"kv_cache_quant_algo ({manifest.kv_cache_quant_algo!r}) is not supported by native TensorRT plans; "
            "convert without --kv-cache"
        )
    if manifest.embedding_quant_algo:
        raise UsageError(
            f"embedding_quant_algo ({manifest.embedding_quant_algo!r}) is not supported by native TensorRT plans; "
            "convert without --embedding, or build with --engine embedded"
        )
    if algo in WEIGHT_ONLY and algo not in PER_CHANNEL:
        raise UsageError(
            f"quant_algo ({algo!r}) is not supported by native TensorRT plans, which have one scale per output; "
            "convert with --quantize W4A16, or build with --engine embedded"
        )
    if algo and model.has_moe:
        raise UsageError(f"quant_algo ({algo!r}) is not supported by native TensorRT plans for ffn_pattern with 'moe'")
    tracks = len(rank_layout(model, manifest.ranks).tracks)
    if algo in ("W8A16", "FP8") and tracks > 1:
        raise UsageError(
            f"quant_algo ({algo!r}) needs one track per rank for native TensorRT plans, and ranks ({manifest.ranks}) "
            f"gives {tracks}: TensorRT would unpack the weights of several before each product; convert with --ranks "
            f"{model.tracks}, or with --quantize W4A16"
        )
    if algo == "FP8" and (older := [gpu for gpu in gpus if gpu not in FP8_TARGETS]):
        raise UsageError(f"gpu ({older[0]}) does not multiply FP8 (quant_algo 'FP8'); {', '.join(FP8_TARGETS)} do")


_FIELDS = {
    "attention": ("head_size", "num_heads", "num_kv_heads", "hidden_size"),
    "mlp": ("hidden_size", "intermediate_size", "num_experts", "moe_intermediate_size"),
    "vocab_embedding": ("vocab_size", "hidden_size"),
    "lm_head": ("vocab_size", "hidden_size"),
}


def with_fields(reason: str, model: ModelConfig) -> str:
    """Return TensorRT's reason with the fields of the config that give the layer that it names its sizes."""
    for part, names in _FIELDS.items():
        if re.search(rf"\b{part}\b", reason):
            return f"{reason} ({', '.join(f'{name} {value}' for name in names if (value := getattr(model, name)))})"
    return reason
