"""The model sizes that come with the project.

pt-6b, pt-13b and pt-30b have the layers, heads and tracks of arXiv:2602.07306, Table 1. The paper gives no widths: here
a track's width is about the dense width over sqrt(8), and the FFN widths (with a vocabulary of 32000) make each PT
model and its dense counterpart equal in parameters within 0.1 %.
"""

from __future__ import annotations

import difflib

from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import ModelConfig

# (layers, width, heads, KV heads, head size, FFN rows, vocabulary, positions); width, heads and FFN rows are per track.
_SIZES: dict[str, tuple[int, int, int, int, int, int, int, int]] = {
    "pt-tiny": (4, 64, 2, 1, 32, 192, 512, 256),
    "pt-150m": (12, 384, 2, 1, 64, 1280, 16384, 2048),
    "pt-190m": (8, 512, 8, 2, 64, 1408, 16384, 2048),
    "pt-6b": (32, 1408, 4, 1, 128, 5120, 32000, 4096),
    "pt-13b": (40, 1792, 5, 1, 128, 7040, 32000, 4096),
    "pt-30b": (48, 2816, 8, 1, 128, 8320, 32000, 4096),
    "dense-tiny": (4, 128, 8, 8, 32, 640, 512, 256),
    "dense-150m": (12, 1024, 16, 4, 64, 2816, 16384, 2048),
    "dense-190m": (8, 1408, 64, 16, 64, 1056, 16384, 2048),
    "dense-1b": (16, 2048, 32, 8, 64, 8192, 32000, 2048),
    "dense-6b": (32, 4096, 32, 8, 128, 11392, 32000, 4096),
    "dense-13b": (40, 5120, 40, 8, 128, 16704, 32000, 4096),
    "dense-30b": (48, 8192, 64, 8, 128, 18560, 32000, 4096),
}
_TRACKS = 8
_DEPTHS = (2, 4, 8)
_DEFAULT_DEPTH = 4


def _config(size: tuple[int, int, int, int, int, int, int, int], depth: int | None) -> ModelConfig:
    layers, width, heads, kv_heads, head_size, ffn, vocabulary, positions = size
    return ModelConfig(
        num_layers=layers,
        hidden_size=width,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        intermediate_size=ffn,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        tracks=_TRACKS if depth else 1,
        schedule="pt" if depth else "tp",
        block_depth=depth,
    )


def _presets() -> dict[str, ModelConfig]:
    found = {}
    for name, size in _SIZES.items():
        if name.startswith("dense-"):
            found[name] = _config(size, None)
            continue
        found[name] = _config(size, _DEFAULT_DEPTH)
        found |= {f"{name}-d{depth}": _config(size, depth) for depth in _DEPTHS if depth <= size[0]}
    # A small model in the shape of Apple's PT-MoE: 3 sliding layers with RoPE for each global layer without positions,
    # and alternating dense and MoE FFNs.
    found["pt-moe-tiny"] = found["pt-tiny"].replace(
        attention_pattern=("sliding", "sliding", "sliding", "global_nope"),
        window=64,
        qk_norm=True,
        ffn_pattern=("dense", "moe"),
        num_experts=8,
        experts_per_token=2,
        moe_intermediate_size=96,
        router_logits_cap=50.0,
        tie_embeddings=True,
    )
    return found


PRESETS: dict[str, ModelConfig] = _presets()


def preset(name: str) -> ModelConfig:
    """Return the config of a preset. Raises UsageError for an unknown name, suggesting the nearest one."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 1)
        hint = f"did you mean {near[0]!r}?" if near else "`trtllm-pt presets` lists them"
        raise UsageError(f"unknown preset {name!r}; {hint}")
    return PRESETS[name]
