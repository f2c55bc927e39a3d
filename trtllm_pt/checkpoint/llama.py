"""Read models of the Llama family of Hugging Face's transformers, as dense models with schedule `tp`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trtllm_pt.checkpoint.source import check_tensors, dtype_of
from trtllm_pt.errors import UsageError
from trtllm_pt.files.safetensors import ModelFiles
from trtllm_pt.model.config import ModelConfig, read_json
from trtllm_pt.model.tensors import DOWN, GATE, UP, TensorSpec, tensors

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")

# Names in transformers -> our names. Several tensors with one of our names are stacked in this order. None marks
# tensors that are not needed.
_MODEL: dict[str, str | None] = {
    "model.embed_tokens.weight": "transformer.vocab_embedding.weight",
    "model.norm.weight": "transformer.ln_f.weight",
    "lm_head.weight": "lm_head.weight",
}
_LAYER: dict[str, str | None] = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attn.q_proj.weight": "attention.qkv.weight",
    "self_attn.k_proj.weight": "attention.qkv.weight",
    "self_attn.v_proj.weight": "attention.qkv.weight",
    "self_attn.q_proj.bias": "attention.qkv.bias",
    "self_attn.k_proj.bias": "attention.qkv.bias",
    "self_attn.v_proj.bias": "attention.qkv.bias",
    "self_attn.q_norm.weight": "attention.q_layernorm.weight",
    "self_attn.k_norm.weight": "attention.k_layernorm.weight",
    "self_attn.o_proj.weight": "attention.dense.weight",
    "self_attn.o_proj.bias": "attention.dense.bias",
    "self_attn.rotary_emb.inv_freq": None,
    "post_attention_layernorm.weight": "post_layernorm.weight",
    "mlp.gate_proj.weight": GATE,
    "mlp.up_proj.weight": UP,
    "mlp.down_proj.weight": DOWN,
}


class LlamaDir:
    """A `Source` that reads a directory written by transformers' save_pretrained.

    Raises UsageError for a model that `ModelConfig` cannot describe, and for tensors that do not match the config.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Path | None = folder
        self.config = llama_to_model_config(read_json(folder / "config.json"))
        self._files = ModelFiles(folder)
        self._parts, dropped = _names(self.config)
        wanted = {name: shape for parts in self._parts.values() for name, shape in parts.items()}
        check_tensors(self._files, wanted, dropped)
        self.dtype = dtype_of(self._files, "model.embed_tokens.weight")

    def read(self, spec: TensorSpec, track: int, dtype: torch.dtype) -> Tensor:
        parts = [self._files.get(name).to(dtype) for name in self._parts[spec.name]]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole.view(spec.shape)


def _names(config: ModelConfig) -> tuple[dict[str, dict[str, tuple[int, ...]]], list[str]]:
    """Return, for each of our names, the names and shapes of the tensors it consists of; and the names to ignore."""
    parts: dict[str, dict[str, tuple[int, ...]]] = {spec.name: {} for spec in tensors(config)}
    shapes = {spec.name: spec.shape for spec in tensors(config)}
    heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
    dropped = []
    for theirs, ours in _table(config).items():
        if ours in parts:
            shape = shapes[ours]
            if ".qkv." in ours:
                letter = theirs.split(".")[-2][0]
                shape = (heads[letter] * config.head_size, *shape[1:])
            parts[ours][theirs] = shape
        elif ours is None or ours == "lm_head.weight":  # transformers ignores a tied head's copy too
            dropped.append(theirs)
    return parts, dropped


def _table(config: ModelConfig) -> dict[str, str | None]:
    table = dict(_MODEL)
    for layer in range(config.num_layers):
        for theirs, ours in _LAYER.items():
            table[f"model.layers.{layer}.{theirs}"] = ours and f"transformer.layers.{layer}.{ours}"
    return table


def llama_to_model_config(hf: dict[str, Any]) -> ModelConfig:
    """Convert the config.json of transformers 4 or 5. Raises UsageError for a missing key or an unsupported value."""
    architecture = (hf.get("architectures") or [None])[0]
    _refuse(hf, architecture)
    heads, width = _need(hf, "num_attention_heads"), _need(hf, "hidden_size")
    rope = _rope(hf)
    pattern, window = _attention(hf, architecture)
    biases = bool(hf.get("attention_bias", False)) and architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM")
    return ModelConfig(
        num_layers=_need(hf, "num_hidden_layers"),
        hidden_size=width,
        num_heads=heads,
        num_kv_heads=hf.get("num_key_value_heads") or heads,
        head_size=hf.get("head_dim") or width // heads,
        intermediate_size=_need(hf, "intermediate_size"),
        vocab_size=_need(hf, "vocab_size"),
        max_position_embeddings=_need(hf, "max_position_embeddings"),
        attention_pattern=pattern,
        window=window,
        rope_theta=rope.pop("rope_theta"),
        rope_scaling=rope if rope["rope_type"] != "default" else None,
        qk_norm=architecture == "Qwen3ForCausalLM",
        norm_eps=_need(hf, "rms_norm_eps"),
        qkv_bias=biases or architecture == "Qwen2ForCausalLM",
        output_bias=biases,
        tie_embeddings=bool(hf.get("tie_word_embeddings", False)),
    )


def _refuse(hf: dict[str, Any], architecture: object) -> None:
    if architecture not in ARCHITECTURES:
        raise UsageError(f"architecture {architecture!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
    if hf.get("quantization_config"):
        method = hf["quantization_config"].get("quant_method")
        raise UsageError(f"the model is quantised ({method}); only bfloat16, float16 and float32 weights are read")
    if hf.get("hidden_act", "silu") != "silu":
        raise UsageError(f"hidden_act ({hf['hidden_act']!r}) must be 'silu'")
    if hf.get("mlp_bias"):
        raise UsageError("mlp_bias (true) is not supported")


def _need(hf: dict[str, Any], key: str) -> Any:
    if hf.get(key) is None:
        raise UsageError(f"the model's config.json lacks {key!r}")
    return hf[key]


def _rope(hf: dict[str, Any]) -> dict[str, Any]:
    """Return rope_theta, rope_type and the keys of that type, which transformers 4 has in two places, 5 in one."""
    found = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    old_type = found.pop("type", "default")
    found.setdefault("rope_type", old_type)
    if found["rope_type"] == "default" and (rest := set(found) - {"rope_type", "rope_theta", "partial_rotary_factor"}):
        raise UsageError(f"RoPE parameters {sorted(rest)} need a rope_type; rope_type is 'default'")
    found["rope_theta"] = float(found.get("rope_theta") or hf.get("rope_theta") or 10000.0)
    rotated = found.pop("partial_rotary_factor", None) or hf.get("partial_rotary_factor") or 1.0
    if rotated != 1.0:
        raise UsageError(f"partial_rotary_factor ({rotated}) must be 1")
    return found


def _attention(hf: dict[str, Any], architecture: object) -> tuple[tuple[str, ...], int | None]:
    """Return attention_pattern and window. Like ours, transformers' window includes the current token."""
    window, layers = hf.get("sliding_window"), _need(hf, "num_hidden_layers")
    if architecture == "LlamaForCausalLM" or window is None:
        return ("global",), None
    if architecture == "MistralForCausalLM":
        return ("sliding",), window
    if not hf.get("use_sliding_window"):
        return ("global",), None
    first = hf.get("max_window_layers", 28)  # transformers' default
    types = hf.get("layer_types") or ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    unknown = set(types) - {"sliding_attention", "full_attention"}
    if unknown or len(types) != layers:
        raise UsageError(f"layer_types must be {layers} of 'sliding_attention' and 'full_attention', not {types}")
    kinds = tuple("sliding" if kind == "sliding_attention" else "global" for kind in types)
    if "sliding" not in kinds:
        return ("global",), None
    return kinds if len(set(kinds)) > 1 else kinds[:1], window
