"""The interpreter itself: TensorRT-LLM's own LLaMA, from a checkpoint that `convert` wrote, against transformers'.

Needs TRTLLM_CHECKOUT, as test_checkout.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from tests.backends.tensorrt_llm.cases import FORCED, PROMPTS
from tests.backends.tensorrt_llm.checkout import worker
from tests.backends.tensorrt_llm.checkout.harness import Checkout
from tests.backends.tensorrt_llm.checkout.worker import MIXED, TOGETHER, Plan
from trtllm_pt.checkpoint.convert import convert

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

LIMIT = 1e-5

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "vocab_size": 250,
    "max_position_embeddings": 128,
}


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """Weights that bfloat16 holds, so that a checkpoint of any type is the same model; logits of order 4."""
    from transformers import LlamaConfig, LlamaForCausalLM  # here: slow to import

    torch.manual_seed(7)
    made = LlamaForCausalLM(LlamaConfig(**SIZES, rms_norm_eps=1e-5, tie_word_embeddings=False))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            std = 0.2 if "norm" in name else 1.0 if "embed" in name else parameter.shape[-1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape) * std + (1.0 if "norm" in name else 0.0))
            parameter.copy_(parameter.bfloat16())
    return made.eval()


@pytest.fixture(scope="module")
def wanted(model: LlamaForCausalLM) -> list[np.ndarray]:
    with torch.no_grad():
        rows = [model(torch.tensor([[*p, *f]])).logits[0, len(p) - 1 :] for p, f in zip(PROMPTS, FORCED, strict=True)]
    return [row.numpy() for row in rows]


@pytest.mark.parametrize(
    ("ranks", "dtype", "plan", "options"),
    [
        pytest.param(1, "float32", TOGETHER, (), id="one rank"),
        pytest.param(2, "float32", TOGETHER, (), id="two ranks"),
        pytest.param(4, "bfloat16", TOGETHER, (), id="four ranks, bfloat16"),
        pytest.param(2, "float32", MIXED, ("--gemm_plugin", "auto"), id="mixed batches, chunks, Gemm plugin"),
    ],
)
def test_logits(
    ranks: int,
    dtype: str,
    plan: Plan,
    options: tuple[str, ...],
    model: LlamaForCausalLM,
    wanted: list[np.ndarray],
    checkout: Checkout,
    tmp_path: Path,
) -> None:
    model.save_pretrained(tmp_path / "llama")
    checkpoint = convert(tmp_path / "llama", tmp_path / "checkpoint", ranks, dtype)
    logits = checkout.call(worker.build_stock_llama, checkpoint, tmp_path / "engines", plan, options)
    for got, want in zip(logits, wanted, strict=True):
        assert np.abs(got[:, : want.shape[1]] - want).max() < LIMIT
