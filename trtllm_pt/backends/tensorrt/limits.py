"""What this backend cannot build, refused before anything slow begins."""

from __future__ import annotations

from collections.abc import Sequence

from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import UsageError


def check(manifest: CheckpointManifest, gpus: Sequence[str]) -> None:
    """Raise UsageError, naming the field, for a checkpoint that cannot be compiled for the GPU architectures `gpus`."""
    if manifest.quantized:
        raise UsageError(
            f"quantization ({manifest.quantized}) is not supported by native TensorRT plans; convert without "
            "--quantize and --kv-cache"
        )
    if "sm75" in gpus and manifest.dtype != "float16":
        raise UsageError(f"dtype ({manifest.dtype!r}) must be 'float16' for gpu sm75, which multiplies no other")
