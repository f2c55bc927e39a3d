"""What the executed networks have to say: the reference's logits, rounded where TensorRT-LLM's kernels round."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.backends.tensorrt_llm.cases import FORCED, PROMPTS, Case
from tests.backends.tensorrt_llm.truth import round_attention_output
from tests.checkpoint.fp8 import round_inputs
from trtllm_pt.checkpoint.load import load_reference
from trtllm_pt.checkpoint.quantize import to_fp8
from trtllm_pt.checkpoint.ranks import CheckpointDir
from trtllm_pt.network import rope
from trtllm_pt.network.reference import Attention, ReferenceModel


def true_logits(case: Case, ranks: int, checkpoint: Path, frequencies: Sequence[float]) -> list[np.ndarray]:
    """Per prompt, after it and after each forced token, float64 [1 + forced, vocabulary].

    frequencies: RoPE's, as TensorRT-LLM rounds them. A last bit of them would move some value from one FP8 step to
    the next; so FP8 models are turned by these. Others are turned by the reference's own.
    """
    model, phases = _model(case, ranks, checkpoint)
    is_fp8 = "FP8" in (case.quant_algo, case.kv_cache_quant_algo)
    as_rounded = patch.object(rope, "inverse_frequencies", lambda _: torch.tensor(frequencies))
    logits = []
    with torch.no_grad(), as_rounded if is_fp8 else nullcontext():
        for prompt, forced in zip(PROMPTS, FORCED, strict=True):
            for attention in phases:
                attention.prompt = len(prompt)
            logits.append(model(torch.tensor([[*prompt, *forced]]))[0, len(prompt) - 1 :].numpy())
    return logits


def _model(case: Case, ranks: int, checkpoint: Path) -> tuple[ReferenceModel, list[_Phases]]:
    """In float64, with what rounds in it; and its attentions where the cache is FP8."""
    model, source = load_reference(checkpoint, torch.float64), CheckpointDir(checkpoint)
    has_fp8_attention = case.quant_algo == case.kv_cache_quant_algo == "FP8"
    if case.quant_algo == "FP8":
        round_inputs(model, checkpoint)
    if has_fp8_attention:
        round_attention_output(model, ranks, checkpoint)
    if case.kv_cache_quant_algo is None:
        return model, []
    attentions = [layer.attention for layer in model.transformer.layers]
    phases = [_Phases(found, source.kv_scale(layer), has_fp8_attention) for layer, found in enumerate(attentions)]
    for attention, replacement in zip(attentions, phases, strict=True):
        attention.forward = replacement.forward
    return model, phases


class _Phases:
    """An attention with an FP8 cache. Generated tokens read the cache, rounded keys and values. Tokens of a prompt see
    them as they were computed; or, where attention over prompts is in FP8 itself, rounded, with rounded queries."""

    prompt: int  # its tokens

    def __init__(self, attention: Attention, scale: Tensor, has_fp8_attention: bool) -> None:
        self.scale, self.has_fp8_attention = scale, has_fp8_attention
        self.exact, self.rounds_cache = attention.forward, False
        attention.kv_cache.register_forward_hook(lambda _, __, kept: self.rounded(kept) if self.rounds_cache else kept)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, B, S, W]. The rows are independent of each other but for keys and values."""
        prompt = self.run(x, self.has_fp8_attention, self.has_fp8_attention)
        generated = self.run(x, True, False)
        return torch.cat((prompt[:, :, : self.prompt], generated[:, :, self.prompt :]), 2)

    def run(self, x: Tensor, rounds_cache: bool, rounds_queries: bool) -> Tensor:
        self.rounds_cache = rounds_cache
        with self.rounded_queries() if rounds_queries else nullcontext():
            return self.exact(x)

    def rounded_queries(self) -> AbstractContextManager[Any]:
        exact = F.scaled_dot_product_attention

        def rounded(q: Tensor, *keys_and_values: Tensor, **options: Any) -> Tensor:
            return exact(self.rounded(q), *keys_and_values, **options)

        return patch.object(F, "scaled_dot_product_attention", rounded)

    def rounded(self, values: Tensor) -> Tensor:
        scale = self.scale.to(values.dtype)
        return to_fp8(values, scale).to(values.dtype) * scale
