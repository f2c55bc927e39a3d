"""The models on which the TensorRT-LLM network is checked: every feature once, tiny, with weights that all show.

Truth is the reference network in float32 from the same rounded (and dequantised) weights: `load_reference` of the
checkpoint. Prompts are longer than a window and than a page of the KV cache; decode steps are forced, so that an error
cannot hide behind another choice of tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from trtllm_pt.checkpoint.convert import convert
from trtllm_pt.checkpoint.load import save_model
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.tensors import TensorSpec, tensors
from trtllm_pt.network.reference import ReferenceModel

VOCAB = 250  # no multiple of 4 or 8: padded logits show
PROMPTS = ((3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43), (7, 1), tuple(range(100, 140)))  # a page holds 32
FORCED = ((17, 23, 5, 200), (11, 240, 13, 14), (99, 98, 97, 96))  # what each prompt goes on with, whatever is best


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, and how it is stored."""

    name: str
    config: ModelConfig
    ranks: tuple[int, ...]
    dtype: str = "float32"
    quant_algo: str | None = None
    kv_cache_quant_algo: str | None = None

    @property
    def is_quantised(self) -> bool:
        return self.quant_algo is not None or self.kv_cache_quant_algo is not None


PT = ModelConfig(
    num_layers=4,
    hidden_size=64,
    num_heads=2,
    num_kv_heads=1,
    head_size=16,
    intermediate_size=96,
    vocab_size=VOCAB,
    max_position_embeddings=128,
    tracks=8,
    schedule="pt",
    block_depth=2,
)
DENSE = PT.replace(
    tracks=1, schedule="tp", block_depth=None, num_heads=8, num_kv_heads=4, intermediate_size=128, num_layers=4
)
SPD = PT.replace(schedule="spd", block_depth=None, dropped_layers=(0, 2))
DESYNC = PT.replace(schedule="desync", block_depth=None, sync_every=2, num_layers=5)
WINDOW = {"attention_pattern": ("sliding", "global", "sliding_nope", "global_nope"), "window": 7}
MOE = {"num_experts": 4, "experts_per_token": 2, "moe_intermediate_size": 64}
SOME_MOE = {"ffn_pattern": ("dense", "moe"), **MOE}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "attention_factor": 1.5,
    "beta_fast": 4.0,
}
# What a rank holds of a matrix has multiples of 64 on both sides, as weight-only products want it.
WIDE_PT = PT.replace(tracks=4, num_heads=4, num_kv_heads=2, intermediate_size=128)
WIDE_TP = DENSE.replace(intermediate_size=256)

_ALL = (1, 2, 4, 8)
_PLAIN = (
    Case(name="tp", config=DENSE, ranks=_ALL),
    Case(name="tp few kv heads", config=DENSE.replace(num_kv_heads=2), ranks=_ALL),
    Case(name="tp mha", config=DENSE.replace(num_kv_heads=8), ranks=(1, 4)),
    Case(name="tp biases", config=DENSE.replace(qkv_bias=True, output_bias=True), ranks=(1, 2, 8)),
    Case(name="tp qk norm", config=DENSE.replace(qk_norm=True), ranks=(1, 4, 8)),
    Case(name="tp qk norm mha", config=DENSE.replace(qk_norm=True, num_kv_heads=8), ranks=(1, 4)),
    Case(name="tp window", config=DENSE.replace(**WINDOW), ranks=(1, 2)),
    Case(name="tp moe", config=DENSE.replace(**SOME_MOE), ranks=(1, 2, 4)),
    Case(name="tp tied", config=DENSE.replace(tie_embeddings=True), ranks=(1, 4)),
    Case(name="tp rope linear", config=DENSE.replace(rope_scaling={"rope_type": "linear", "factor": 2.0}), ranks=(2,)),
    Case(name="tp rope llama3", config=DENSE.replace(rope_scaling=LLAMA3, rope_theta=5e5), ranks=(2,)),
    Case(name="tp rope yarn", config=DENSE.replace(rope_scaling=YARN, **WINDOW), ranks=(1, 2)),
    Case(
        name="tp rope dynamic", config=DENSE.replace(rope_scaling={"rope_type": "dynamic", "factor": 2.0}), ranks=(2,)
    ),
    Case(name="tp residual norm", config=DENSE.replace(residual_norm=True), ranks=(1,)),  # on no more
    Case(name="tp bfloat16", config=DENSE, ranks=(1, 2), dtype="bfloat16"),
    Case(name="parallel", config=DENSE.replace(schedule="parallel"), ranks=(1, 2, 8)),
    Case(name="ladder", config=DENSE.replace(schedule="ladder"), ranks=(1, 2, 8)),
    Case(name="spd", config=SPD, ranks=_ALL),
    Case(name="spd biases", config=SPD.replace(qkv_bias=True, output_bias=True), ranks=_ALL),
    Case(name="dtp", config=PT.replace(schedule="dtp", block_depth=None, delay=2), ranks=_ALL),
    Case(name="desync", config=DESYNC, ranks=_ALL),
    Case(name="pt", config=PT, ranks=_ALL),
    Case(name="pt last block short", config=PT.replace(num_layers=5), ranks=_ALL),
    Case(name="pt sum", config=PT.replace(combine="sum"), ranks=(1, 2, 8)),
    Case(name="pt norms", config=PT.replace(dispatch_norm=True, combine_norm=True, num_layers=5), ranks=_ALL),
    Case(name="pt residual norm", config=PT.replace(residual_norm=True), ranks=(2, 8)),
    Case(name="pt mha", config=PT.replace(num_kv_heads=2), ranks=(4, 8)),
    Case(name="pt qkv bias", config=PT.replace(qkv_bias=True), ranks=(4, 8)),
    Case(name="pt qk norm", config=PT.replace(qk_norm=True), ranks=(2, 8)),
    Case(name="pt qk norm mha", config=PT.replace(qk_norm=True, num_kv_heads=2, qkv_bias=True), ranks=(2, 8)),
    Case(
        name="pt qk norm after rope", config=PT.replace(qk_norm=True, qk_norm_after_rope=True, **WINDOW), ranks=(2, 8)
    ),
    Case(name="pt window", config=PT.replace(**WINDOW), ranks=(1, 4, 8)),
    # What a GPU has kernels for: `trtllm-pt build` refuses the smaller heads of the others.
    Case(name="pt large heads", config=PT.replace(head_size=32, **WINDOW), ranks=(4, 8), dtype="bfloat16"),
    Case(name="pt moe", config=PT.replace(router_logits_cap=2.0, **SOME_MOE), ranks=_ALL),
    Case(name="pt moe everywhere", config=PT.replace(ffn_pattern=("moe",), **MOE), ranks=(4, 8)),
    Case(name="pt tied", config=PT.replace(tie_embeddings=True), ranks=(1, 4, 8)),
    Case(name="pt rope llama3", config=PT.replace(rope_scaling=LLAMA3, rope_theta=5e5), ranks=(4, 8)),
    Case(name="pt rope yarn", config=PT.replace(rope_scaling=YARN, num_kv_heads=2, qk_norm=True), ranks=(4, 8)),
    Case(
        name="pt rope yarn before qk norm",
        config=PT.replace(rope_scaling=YARN, qk_norm=True, qk_norm_after_rope=True),
        ranks=(2,),
    ),
    Case(name="pt bfloat16", config=PT, ranks=(1, 4, 8), dtype="bfloat16"),
    Case(name="pt float16", config=PT, ranks=(4, 8), dtype="float16"),
    Case(name="pt moe bfloat16", config=PT.replace(**SOME_MOE), ranks=(4, 8), dtype="bfloat16"),
    # 1/3 is exact in no dtype.
    Case(name="pt three tracks", config=PT.replace(tracks=3), ranks=(1, 3), dtype="bfloat16"),
    Case(name="desync three tracks", config=DESYNC.replace(tracks=3), ranks=(1, 3), dtype="bfloat16"),
)


def _quantised(algo: str | None, kv: str | None) -> tuple[Case, ...]:
    """PT with two tracks on a rank and with one, and dense."""
    name = " ".join(part for part in (algo, kv and f"{kv} kv") if part)
    how = {"quant_algo": algo, "kv_cache_quant_algo": kv, "dtype": "bfloat16"}
    return (
        Case(name=f"pt {name}", config=WIDE_PT, ranks=(2, 4), **how),
        Case(name=f"tp {name}", config=WIDE_TP, ranks=(1, 2), **how),
    )


_QUANTISED = (
    *(case for algo in ("W8A16", "W4A16", "FP8") for case in _quantised(algo, None)),
    *_quantised("W8A16", "FP8"),
    *_quantised("FP8", "FP8"),
    *_quantised(None, "FP8"),
    Case(
        name="pt W8A16 qk norm mha",
        config=WIDE_PT.replace(num_kv_heads=4, qk_norm=True, qkv_bias=True),
        ranks=(2, 4),
        dtype="bfloat16",
        quant_algo="W8A16",
    ),
    Case(name="pt moe W8A16", config=WIDE_PT.replace(**SOME_MOE), ranks=(2, 4), dtype="bfloat16", quant_algo="W8A16"),
    Case(name="pt moe FP8", config=WIDE_PT.replace(**SOME_MOE), ranks=(2, 4), dtype="bfloat16", quant_algo="FP8"),
    Case(name="pt moe W4A16", config=WIDE_PT.replace(**SOME_MOE), ranks=(2, 4), dtype="bfloat16", quant_algo="W4A16"),
)
CASES = {case.name: case for case in (*_PLAIN, *_QUANTISED)}
# A case for each feature, on one number of ranks: the fast tests. All cases on all their ranks are slow tests.
REPRESENTATIVES = {
    "tp biases": 2,
    "tp few kv heads": 4,
    "tp moe": 2,
    "tp rope linear": 2,
    "tp rope yarn": 2,
    "tp residual norm": 1,
    "parallel": 2,
    "ladder": 2,
    "spd": 2,
    "spd biases": 4,
    "dtp": 4,
    "desync": 2,
    "pt": 4,
    "pt last block short": 2,
    "pt sum": 2,
    "pt norms": 2,
    "pt qk norm after rope": 2,
    "pt window": 4,
    "pt moe": 2,
    "pt tied": 4,
    "pt rope llama3": 4,
    "pt rope yarn": 4,
    "pt float16": 4,
    "pt three tracks": 3,
    "pt W8A16": 2,
    "pt W4A16": 2,
    "pt FP8": 2,
    "pt FP8 kv": 2,
    "pt FP8 FP8 kv": 2,
}


def random_model(config: ModelConfig, seed: int = 0) -> ReferenceModel:
    """Float32 weights, none of them trivially one or zero; logits of order 4."""
    model = ReferenceModel(config)
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for spec in tensors(config):
            parameter = parameters[spec.name]
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * drawn if spec.kind == "norm" else _std(spec) * drawn)
    return model


def _std(spec: TensorSpec) -> float:
    if spec.kind in ("embedding", "bias"):
        return 0.2
    return (2.0 if spec.kind == "router" else 1.0) / math.sqrt(spec.fan_in)


def write_checkpoint(case: Case, ranks: int, folder: Path) -> Path:
    """The case's checkpoint for `ranks` ranks, in `folder` under the number of ranks; made once."""
    checkpoint = folder / f"ranks{ranks}"
    if not checkpoint.exists():
        model_dir = folder / "model"
        if not model_dir.exists():
            save_model(random_model(case.config), model_dir, case.dtype)
        tokens = None
        if "FP8" in (case.quant_algo, case.kv_cache_quant_algo):
            tokens = folder / "tokens.jsonl"  # FP8's ranges are those of what is run
            tokens.write_text("\n".join(str([*p, *f]) for p, f in zip(PROMPTS, FORCED, strict=True)))
        convert(
            model_dir, checkpoint, ranks, quantize=case.quant_algo, kv_cache=case.kv_cache_quant_algo, calibrate=tokens
        )
    return checkpoint
