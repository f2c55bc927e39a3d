"""What a case's network has to give: the reference's logits from the weights as a checkpoint holds them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tests.backends.tensorrt_llm.cases import FORCED, PROMPTS, Case
from tests.checkpoint.fp8 import reference_as_stored
from trtllm_pt.checkpoint.quantize import to_fp8
from trtllm_pt.checkpoint.ranks import CheckpointDir
from trtllm_pt.model.layout import rank_layout
from trtllm_pt.model.tensors import tensors
from trtllm_pt.network.reference import ReferenceModel


def true_logits(case: Case, ranks: int, checkpoint: Path, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Per prompt [1 + forced tokens, V]: after the prompt, and after each forced token."""
    model = reference_as_stored(checkpoint, dtype)
    if case.quant_algo == case.kv_cache_quant_algo == "FP8":
        round_attention_output(model, ranks, checkpoint)
    logits = []
    with torch.no_grad():
        for prompt, forced in zip(PROMPTS, FORCED, strict=True):
            logits.append(model(torch.tensor([[*prompt, *forced]]))[0, len(prompt) - 1 :])
    return logits


def round_attention_output(model: ReferenceModel, ranks: int, checkpoint: Path) -> None:
    """FP8 context attention gives its output in FP8, with one scale for all tracks of a rank, the widest's."""
    source, tracks = CheckpointDir(checkpoint), len(rank_layout(model.config, ranks).tracks)
    specs = {spec.name: spec for spec in tensors(model.config)}
    for number, layer in enumerate(model.transformer.layers):
        spec = specs[f"transformer.layers.{number}.attention.dense.weight"]
        scales = torch.stack([source.stored(spec, track)[2] for track in range(model.config.tracks)]).view(-1, tracks)
        _round_before(layer.attention.dense, scales.amax(1, keepdim=True).expand_as(scales).reshape(-1))


def _round_before(module: nn.Module, scales: Tensor) -> None:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        scale = scales.to(inputs[0].dtype).view(-1, *[1] * (inputs[0].dim() - 1))
        return (to_fp8(inputs[0], scale).to(inputs[0].dtype) * scale,)

    module.register_forward_pre_hook(hook, prepend=True)
