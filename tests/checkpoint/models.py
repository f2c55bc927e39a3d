"""Small random models of every kind that a checkpoint can hold."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from tests.configs import SMALL
from trtllm_pt.checkpoint.load import save_model
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.network.reference import ReferenceModel

MOE = {"ffn_pattern": ("dense", "moe"), "num_experts": 4, "experts_per_token": 2, "moe_intermediate_size": 32}
PT = SMALL.replace(tracks=8, num_layers=3)
DENSE = SMALL.replace(tracks=1, schedule="tp", block_depth=None, num_layers=2, num_heads=8)
CONFIGS = {
    "pt": PT,
    "pt, tied, all norms": PT.replace(
        tie_embeddings=True, qk_norm=True, qkv_bias=True, residual_norm=True, dispatch_norm=True, combine_norm=True
    ),
    "pt, experts": PT.replace(attention_pattern=("sliding", "global_nope"), window=5, router_logits_cap=9.0, **MOE),
    "spd": PT.replace(schedule="spd", block_depth=None, dropped_layers=(0, 2)),
    "spd, biases": PT.replace(
        schedule="spd", block_depth=None, dropped_layers=(1,), num_heads=2, num_kv_heads=1, output_bias=True
    ),
    "tp": DENSE.replace(num_kv_heads=8),
    "tp, few KV heads, biases": DENSE.replace(qkv_bias=True, output_bias=True, qk_norm=True, tie_embeddings=True),
    "tp, experts": DENSE.replace(rope_scaling={"rope_type": "linear", "factor": 2.0}, **MOE),
}


def random_model(config: ModelConfig, dtype: torch.dtype = torch.float32) -> ReferenceModel:
    """Weights of a size at which every one of them shows in the logits; norms around one."""
    model = ReferenceModel(config).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = "layernorm" in name or "ln_f" in name
            parameter.normal_(1.0 if is_norm else 0.0, 0.2)
    return model


def saved(config: ModelConfig, folder: Path, dtype: str = "auto") -> tuple[ReferenceModel, Path]:
    model = random_model(config)
    return model, save_model(model, folder, dtype)


def save_tokenizer(folder: Path, tokens: int = 101) -> None:
    """A tokenizer of so many words, which are numbers."""
    words = {str(token): token for token in range(tokens)}
    Tokenizer(WordLevel(words, unk_token="0")).save(str(folder / "tokenizer.json"))
