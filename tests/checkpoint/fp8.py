"""The reference network with activations rounded as an FP8 checkpoint has them rounded."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from trtllm_pt.checkpoint.load import load_reference
from trtllm_pt.checkpoint.quantize import to_fp8
from trtllm_pt.checkpoint.ranks import CheckpointDir
from trtllm_pt.model.quantization import is_quantized
from trtllm_pt.model.tensors import tensors
from trtllm_pt.network.reference import ReferenceModel


def reference_as_stored(checkpoint: Path, dtype: torch.dtype = torch.float32) -> ReferenceModel:
    """The dequantised model of a checkpoint, its activations rounded where the checkpoint is FP8."""
    model, manifest = load_reference(checkpoint, dtype), CheckpointDir(checkpoint).manifest
    if manifest.quant_algo == "FP8":
        round_inputs(model, checkpoint)
    if manifest.kv_cache_quant_algo == "FP8":
        round_kv_cache(model, checkpoint)
    return model


def round_inputs(model: ReferenceModel, checkpoint: Path) -> None:
    """x -> fp8(x / s) * s on the input of every quantised matrix, s of each track."""
    source = CheckpointDir(checkpoint)
    for spec in filter(is_quantized, tensors(model.config)):
        scales = torch.stack([source.stored(spec, track)[2] for track in range(model.config.tracks)])
        module = model.get_submodule(spec.name.removesuffix(".weight"))
        module.register_forward_pre_hook(lambda _, inputs, scales=scales: (_rounded(inputs[0], scales),))


def round_kv_cache(model: ReferenceModel, checkpoint: Path) -> None:
    """K and V -> fp8(x / s) * s, s of each layer."""
    source = CheckpointDir(checkpoint)
    for number, layer in enumerate(model.transformer.layers):
        scale = source.kv_scale(number)
        layer.attention.kv_cache.register_forward_hook(lambda _, __, output, scale=scale: _rounded(output, scale))


def _rounded(x: Tensor, scales: Tensor) -> Tensor:
    """x [n, ...], a scale for each track, or one."""
    scale = scales.to(x.dtype).view(-1, *[1] * (x.dim() - 1))
    return to_fp8(x, scale).to(x.dtype) * scale
