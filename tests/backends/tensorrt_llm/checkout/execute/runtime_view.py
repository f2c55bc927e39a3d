"""What the C++ runtime takes from an engine's config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RuntimeView:
    """For one rank. Heads are those of the KV cache that the runtime allocates."""

    ranks: int
    experts: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    hidden_size: int
    vocab_size: int
    dtype: str
    quantization: tuple[str | None, str | None]  # of weights, of the KV cache
    windows: tuple[int, ...]  # tokens that each layer's attention sees
    max_seq_len: int
    tokens_per_page: int


def runtime_view(config: dict[str, Any]) -> RuntimeView:
    """By the divisions that it makes (gptJsonConfig.cpp). Raises KeyError for what it cannot do without."""
    model, mapping = config["pretrained_config"], config["pretrained_config"]["mapping"]
    ranks, layers = mapping["tp_size"] * mapping["cp_size"], model["num_hidden_layers"]
    longest = config["build_config"]["max_seq_len"]
    given = (model["runtime_defaults"] or {}).get("max_attention_window") or [longest]
    return RuntimeView(
        ranks=ranks,
        experts=model["moe"]["num_experts"] if "moe" in model else 0,
        layers=layers,
        heads=model["num_attention_heads"] // ranks,
        kv_heads=max(model["num_key_value_heads"] // ranks, 1),
        head_size=model["head_size"],
        hidden_size=model["hidden_size"],
        vocab_size=model["vocab_size"],
        dtype=model["dtype"],
        quantization=(model["quantization"]["quant_algo"], model["quantization"]["kv_cache_quant_algo"]),
        windows=tuple(min(given[layer % len(given)], longest) for layer in range(layers)),
        max_seq_len=longest,
        tokens_per_page=config["build_config"]["plugin_config"]["tokens_per_block"],
    )
