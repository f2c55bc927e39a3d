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

from tests.checkpoint.fp8 import round_inputs
from tests.tensorrt_llm.cases import FORCED, PROMPTS, Case
from tests.tensorrt_llm.truth import round_attention_output
from trtllm_pt.checkpoint.load import load_reference
from trtllm_pt.checkpoint.quantize import to_fp8
from trtllm_pt.checkpoint.ranks import CheckpointDir
from trtllm_pt.network import reference
from trtllm_pt.network.reference import Attention


def true_logits(case: Case, ranks: int, checkpoint: Path, frequencies: Sequence[float]) -> list[np.ndarray]:
    """Per prompt, after it and after each forced token, float64 [1 + forced, vocabulary].

    frequencies: RoPE's, as TensorRT-LLM rounds them. A last bit of them would move some value from one FP8 step to
    the next; so FP8 models are turned by these. Others are turned by the reference's own.
    """
    is_fp8 = "FP8" in (case.quant_algo, case.kv_cache_quant_algo)
    as_rounded = patch.object(reference, "inverse_frequencies", lambda _: torch.tensor(frequencies))
    with torch.no_grad(), as_rounded if is_fp8 else nullcontext():
        return [_logits(case, ranks, checkpoint, *pair) for pair in zip(PROMPTS, FORCED, strict=True)]


def _logits(case: Case, ranks: int, checkpoint: Path, prompt: Sequence[int], forced: Sequence[int]) -> np.ndarray:
    model = load_reference(checkpoint, torch.float64)
    has_fp8_attention = case.quant_algo == case.kv_cache_quant_algo == "FP8"
    if case.quant_algo == "FP8":
        round_inputs(model, checkpoint)
    if has_fp8_attention:
        round_attention_output(model, ranks, checkpoint)
    if case.kv_cache_quant_algo == "FP8":
        for number, layer in enumerate(model.transformer.layers):
            scale = CheckpointDir(checkpoint).kv_scale(number)
            layer.attention.forward = _Phases(layer.attention, scale, len(prompt), has_fp8_attention).forward
    logits: Tensor = model(torch.tensor([[*prompt, *forced]]))
    return logits[0, len(prompt) - 1 :].numpy()


class _Phases:
    """An attention with an FP8 cache. Generated tokens read the cache, rounded keys and values. Tokens of a prompt see
    them as they were computed; or, where attention over prompts is in FP8 itself, rounded, with rounded queries."""

    def __init__(self, attention: Attention, scale: Tensor, prompt: int, has_fp8_attention: bool) -> None:
        self.scale, self.prompt, self.has_fp8_attention = scale, prompt, has_fp8_attention
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
