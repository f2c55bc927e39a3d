"""The models of the tests. Few and small: each config on each number of ranks is a graph to compile."""

from __future__ import annotations

from pathlib import Path

from trtllm_pt.bench.contenders import schedules_of
from trtllm_pt.model.config import ModelConfig

PRETRAINED = Path(__file__).parents[1] / "pretrained" / "stdlib-pt"
SMALL = ModelConfig(
    num_layers=5,
    hidden_size=48,
    num_heads=4,
    num_kv_heads=2,
    head_size=16,
    intermediate_size=64,
    vocab_size=101,
    max_position_embeddings=128,
    tracks=4,
    schedule="pt",
    block_depth=2,
)
# Everything that the config can say of a PT model, in one: 4 tracks, 5 layers.
EVERYTHING = SMALL.replace(
    combine="sum",
    dispatch_norm=True,
    combine_norm=True,
    residual_norm=True,
    qk_norm=True,
    qk_norm_after_rope=True,
    attention_pattern=("sliding", "global_nope", "sliding"),
    window=9,
    rope_scaling={"rope_type": "linear", "factor": 2.0},
    ffn_pattern=("dense", "moe"),
    num_experts=4,
    experts_per_token=2,
    moe_intermediate_size=24,
    router_logits_cap=5.0,
    tie_embeddings=True,
)
LLAMA = SMALL.replace(
    schedule="tp",
    tracks=1,
    block_depth=None,
    qkv_bias=True,
    output_bias=True,
    rope_scaling={
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
)
PLAIN = SMALL.replace(block_depth=None, schedule="spd", num_layers=3)
OTHER_SCHEDULES = {
    "spd": PLAIN.replace(dropped_layers=(0, 2), output_bias=True),
    "dtp": PLAIN.replace(schedule="dtp", delay=2),
    "desync": PLAIN.replace(schedule="desync", sync_every=2),
    "parallel": PLAIN.replace(
        schedule="parallel",
        tracks=1,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "attention_factor": 1.5,
            "beta_fast": 4.0,
        },
    ),
    "ladder": PLAIN.replace(schedule="ladder", tracks=1),
}
TINY = ModelConfig(
    num_layers=2,
    hidden_size=32,
    num_heads=2,
    num_kv_heads=2,
    head_size=16,
    intermediate_size=32,
    vocab_size=64,
    max_position_embeddings=128,
    tracks=2,
    schedule="pt",
    block_depth=2,
)
TINY_TP = schedules_of(TINY, 2, ["pt-d2"])["tp"]  # the dense model that `bench compare` builds beside TINY
