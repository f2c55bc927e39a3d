"""What this backend cannot build, refused before anything slow begins."""

from __future__ import annotations

from collections.abc import Sequence

from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import UsageError
from trtllm_pt.model.layout import rank_layout


def check(manifest: CheckpointManifest, gpus: Sequence[str]) -> None:
    """Raise UsageError, naming the field, for a checkpoint that cannot be compiled for the GPU architectures `gpus`."""
    _check_quantization(manifest)
    if "sm75" in gpus and manifest.dtype != "float16":
        raise UsageError(f"dtype ({manifest.dtype!r}) must be 'float16' for gpu sm75, which multiplies no other")


def _check_quantization(manifest: CheckpointManifest) -> None:
    """Raise UsageError for a quantisation that TensorRT would undo before each product, or that is not written here."""
    algo, model = manifest.quantized, manifest.model
    if manifest.kv_cache_quant_algo or manifest.quant_algo == "FP8":
        raise UsageError(f"quantization ({algo}) must be W8A16, W4A16 or none for native TensorRT plans; convert again")
    if manifest.quant_algo and model.has_moe:
        raise UsageError(f"quantization ({algo}) is not supported by native TensorRT plans for ffn_pattern with 'moe'")
    tracks = len(rank_layout(model, manifest.ranks).tracks)
    if manifest.quant_algo == "W8A16" and tracks > 1:
        raise UsageError(
            f"quantization (W8A16) needs one track per rank for native TensorRT plans, and ranks ({manifest.ranks}) "
            f"gives {tracks}: TensorRT would unpack the weights of several before each product; convert with --ranks "
            f"{model.tracks}, or with --quantize W4A16"
        )
