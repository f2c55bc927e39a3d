"""Read models of the Llama family of Hugging Face's transformers, as dense models with schedule `tp`."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from trtllm_pt.checkpoint.llama_config import llama_to_model_config
from trtllm_pt.checkpoint.source import check_tensors, dtype_of, untied_if_other_head
from trtllm_pt.files.safetensors import ModelFiles
from trtllm_pt.model.config import ModelConfig, read_json
from trtllm_pt.model.tensors import DOWN, GATE, UP, TensorSpec, tensors

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Names in transformers -> our names. Several tensors with one of our names are stacked in this order.
_MODEL = {
    EMBEDDING: "transformer.vocab_embedding.weight",
    "model.norm.weight": "transformer.ln_f.weight",
    HEAD: "lm_head.weight",
}
_LAYER = {
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
    "post_attention_layernorm.weight": "post_layernorm.weight",
    "mlp.gate_proj.weight": GATE,
    "mlp.up_proj.weight": UP,
    "mlp.down_proj.weight": DOWN,
}
# Tables that follow from the config. Older versions of transformers wrote them, and all versions ignore them.
_ROTARY_BUFFER = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$")


class LlamaDir:
    """A `Source` that reads a directory written by transformers' save_pretrained.

    Raises UsageError for a model that `ModelConfig` cannot describe, and for tensors that do not match the config.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Path | None = folder
        config = llama_to_model_config(read_json(folder / "config.json"))
        self._files = ModelFiles(folder)
        self.config = untied_if_other_head(config, self._files, EMBEDDING, HEAD)
        self._parts = _names(self.config)
        self._check_tensors()
        self.dtype = dtype_of(self._files, EMBEDDING)

    def read(self, spec: TensorSpec, track: int, dtype: torch.dtype) -> Tensor:
        parts = [self._files.get(name).to(dtype) for name in self._parts[spec.name]]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole.view(spec.shape)

    def _check_tensors(self) -> None:
        """Raise UsageError if the files' tensors are not those that the config calls for."""
        check_tensors(self._files, self._shapes(), self._dropped())

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors that are read, by their names in the files."""
        return {name: shape for parts in self._parts.values() for name, shape in parts.items()}

    def _dropped(self) -> list[str]:
        """Return the names of tensors that follow from the config or from other tensors."""
        tables = [name for name in self._files.names() if _ROTARY_BUFFER.search(name)]
        return [*tables, *([HEAD] if self.config.tie_embeddings else [])]


def _names(config: ModelConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return, for each of our names, the names and shapes of the tensors it consists of."""
    parts: dict[str, dict[str, tuple[int, ...]]] = {spec.name: {} for spec in tensors(config)}
    shapes = {spec.name: spec.shape for spec in tensors(config)}
    heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
    for theirs, ours in _table(config).items():
        if ours in parts:
            shape = shapes[ours]
            if ".qkv." in ours:
                letter = theirs.split(".")[-2][0]
                shape = (heads[letter] * config.head_size, *shape[1:])
            parts[ours][theirs] = shape
    return parts


def _table(config: ModelConfig) -> dict[str, str]:
    table = dict(_MODEL)
    for layer in range(config.num_layers):
        for theirs, ours in _LAYER.items():
            table[f"model.layers.{layer}.{theirs}"] = f"transformer.layers.{layer}.{ours}"
    return table
