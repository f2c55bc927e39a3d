"""Read AFMParallelTrackMoE models of Apple's `tamm` package (PyPI, MIT), the official implementation of tracks.

A directory holds `config.json`, the model's config as written by `tamm.utils.json.dump` (with `__tamm_type__`, without
fields at their defaults), and `model.safetensors`, the model's state dict. The differences from our format are:

- tamm's weights are [tracks, in, out], ours [tracks, out, in];
- tamm's RoPE rotates pairs of neighbouring elements, ours pairs from the two halves, so the rows of q and k and the
  weights of the QK norms are reordered. Reordering q and k alike does not change attention scores, so this is also done
  in layers without positions;
- tamm applies the QK norms after RoPE (`qk_norm_after_rope`);
- tamm's `local_attention_window_size` excludes the current token, our window includes it;
- tamm's experts have a gate `linear_0` and an up `linear_1`; ours have one matrix, the rows of up before the gate's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trtllm_pt.checkpoint.source import check_tensors, dtype_of, untied_if_other_head
from trtllm_pt.errors import UsageError
from trtllm_pt.files.safetensors import ModelFiles
from trtllm_pt.model.config import ModelConfig, read_json
from trtllm_pt.model.tensors import DOWN, GATE, UP, UP_GATE, TensorSpec, tensors

TYPE_KEY = "__tamm_type__"
_TYPE = "module_configs:AFMParallelTrackMoEConfig"

# The fields of tamm 0.2.0 that determine the model, with their defaults.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 153600,
    "num_tracks": 8,
    "num_layers_per_track": 48,
    "num_layers_per_track_per_sync_point": 4,
    "hidden_dim": 2048,
    "attention_hidden_dim": 512,
    "dense_feed_forward_hidden_dim": 5888,
    "sparse_feed_forward_hidden_dim": 2944,
    "num_heads": 4,
    "num_kv_heads": None,
    "rope_theta": 500000.0,
    "attention_layer_pattern": ["local_rope", "local_rope", "local_rope", "global_nope"],
    "local_attention_window_size": 4096,
    "feed_forward_layer_pattern": ["dense", "sparse"],
    "num_experts": 40,
    "num_experts_per_token": 2,
    "experts_router_logits_cap": 50.0,
    "pre_norm": "rms_norm",
    "post_norm": None,
    "pre_residual_norm": None,
    "tracks_dispatch_norm": None,
    "tracks_combine_norm": None,
    "scale_qk_norm": True,
    "norm_eps": 1e-5,
    "tracks_combine_op": "mean",
}
# The supported values of the fields that select a kind of module.
_ACCEPTED: dict[str, tuple[Any, ...]] = {
    "pre_norm": ("rms_norm",),
    "post_norm": (None,),
    "pre_residual_norm": (None, "rms_norm"),
    "tracks_dispatch_norm": (None, "rms_norm"),
    "tracks_combine_norm": (None, "rms_norm"),
    "adapters": (None,),
    "arch_optimizers": (None,),
}
# Fields that select an implementation or belong to training. They do not change the logits.
_IGNORED = (
    TYPE_KEY,
    "sdpa_implementation",
    "hidden_dropout_p",
    "attention_dropout_p",
    "output_hidden_states",
    "output_attentions",
    "output_expert_assignments",
    "active_adapter",
    "pretrained_path",
    "pretrained",
    "device",
    "dtype",
    "freeze_params",
    "metadata",
)
_ATTENTION = {"local": "sliding", "local_rope": "sliding", "global_nope": "global_nope"}
_FEED_FORWARD = {"dense": "dense", "sparse": "moe"}
_POSITIONS = 65536  # tamm has no limit

_EMBEDDING, _HEAD = "embedding.weight", "output_transform.weight"
# Names in tamm -> our names. Several tensors with one of our names are stacked in this order.
_MODEL = {
    _EMBEDDING: "transformer.vocab_embedding.weight",
    "output_norm.weight": "transformer.ln_f.weight",
    _HEAD: "lm_head.weight",
}
_SEGMENT_START = {"input_transform.norm.weight": "dispatch_layernorm.weight"}
_SEGMENT_END = {"output_transform.norm.weight": "combine_layernorm.weight"}
_LAYER = {
    "attention.norm.weight": "input_layernorm.weight",
    "attention.qkv_transform.fused_linear.weight": "attention.qkv.weight",
    "attention.qk_norm.query_norm.weight": "attention.q_layernorm.weight",
    "attention.qk_norm.key_norm.weight": "attention.k_layernorm.weight",
    "attention.output_transform.weight": "attention.dense.weight",
    "attention.residual_connection.pre_residual_norm.weight": "attention_residual_layernorm.weight",
    "feed_forward.norm.weight": "post_layernorm.weight",
    "feed_forward.residual_connection.pre_residual_norm.weight": "mlp_residual_layernorm.weight",
}
_DENSE = {
    "feed_forward.hidden_transform.linear_0.weight": GATE,
    "feed_forward.hidden_transform.linear_1.weight": UP,
    "feed_forward.output_transform.weight": DOWN,
}
_SPARSE = {
    "feed_forward.router.input_transform.weight": "mlp.router.weight",
    "feed_forward.experts.hidden_transform.linear_1.weight": UP_GATE,  # up comes first
    "feed_forward.experts.hidden_transform.linear_0.weight": UP_GATE,  # the gate comes second
    "feed_forward.experts.output_transform.weight": DOWN,
}


class TammDir:
    """A `Source` that reads a directory with a tamm config and state dict.

    Raises UsageError for a model that `ModelConfig` cannot describe, and for tensors that do not match the config.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Path | None = folder
        data = read_json(folder / "config.json")
        config = tamm_to_model_config(data)
        self._files = ModelFiles(folder)
        self.config = untied_if_other_head(config, self._files, _EMBEDDING, _HEAD)
        self._parts = _parts(self.config, scaled_qk_norm=_value(data, "scale_qk_norm"))
        wanted = {
            name: _their_shape(spec, self.config, len(self._parts[spec.name]))
            for spec in tensors(self.config)
            for name in self._parts[spec.name]
        }
        check_tensors(self._files, wanted, dropped=[_HEAD] if self.config.tie_embeddings else [])
        self.dtype = dtype_of(self._files, _EMBEDDING)

    def read(self, spec: TensorSpec, track: int, dtype: torch.dtype) -> Tensor:
        names = self._parts[spec.name]
        if not names:  # tamm's QK norms have no weights if scale_qk_norm is false
            return torch.ones(spec.shape, dtype=dtype)
        parts = [self._files.get(name)[track] if spec.per_track else self._files.get(name) for name in names]
        if _is_matrix(spec):
            parts = [part.mT for part in parts]
        whole = (parts[0] if len(parts) == 1 else torch.cat(parts, -2)).to(dtype)
        if spec.name.endswith("attention.qkv.weight"):
            rotated = (self.config.num_heads + self.config.num_kv_heads) * self.config.head_size
            whole = torch.cat((_halves(whole[:rotated], self.config.head_size), whole[rotated:]))
        elif spec.name.endswith(("q_layernorm.weight", "k_layernorm.weight")):
            whole = _halves(whole, self.config.head_size)
        return whole.contiguous()


def _is_matrix(spec: TensorSpec) -> bool:
    return spec.per_track and spec.kind in ("matrix", "output", "router")


def _halves(x: Tensor, head_size: int) -> Tensor:
    """Reorder the rows of heads [heads * D, ...] so that RoPE's pairs are in the two halves instead of neighbouring."""
    return x.reshape(-1, head_size // 2, 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape)


def _their_shape(spec: TensorSpec, config: ModelConfig, parts: int) -> tuple[int, ...]:
    shape = spec.global_shape(config)
    return (*shape[:-2], shape[-1], shape[-2] // parts) if _is_matrix(spec) else shape


def _parts(config: ModelConfig, scaled_qk_norm: bool) -> dict[str, list[str]]:
    """Return, for each of our names, the names of the tensors it consists of."""
    parts: dict[str, list[str]] = {spec.name: [] for spec in tensors(config)}
    for theirs, ours in _table(config).items():
        if ours in parts and (scaled_qk_norm or ".qk_norm." not in theirs):
            parts[ours].append(theirs)
    return parts


def _table(config: ModelConfig) -> dict[str, str]:
    table = dict(_MODEL)
    depth = config.block_depth
    assert depth is not None
    for layer in range(config.num_layers):
        segment, inside = divmod(layer, depth)
        feed_forward = _SPARSE if config.is_moe(layer) else _DENSE
        names = {f"layer_{inside}.{theirs}": ours for theirs, ours in (_LAYER | feed_forward).items()}
        if inside == 0:
            names |= _SEGMENT_START
        if inside == depth - 1:
            names |= _SEGMENT_END
        for theirs, ours in names.items():
            table[f"layers.segment_{segment}.{theirs}"] = f"transformer.layers.{layer}.{ours}"
    return table


def _value(data: dict[str, Any], key: str) -> Any:
    return data.get(key, _DEFAULTS[key])


def tamm_to_model_config(tamm_config: dict[str, Any]) -> ModelConfig:
    """Convert an AFMParallelTrackMoEConfig from tamm's JSON. Raises UsageError, naming the field, if unsupported."""
    _refuse(tamm_config)
    c = {key: _value(tamm_config, key) for key in _DEFAULTS}
    attention = _pattern(c, "attention_layer_pattern", _ATTENTION)
    feed_forward = _pattern(c, "feed_forward_layer_pattern", _FEED_FORWARD)
    layers, depth = c["num_layers_per_track"], c["num_layers_per_track_per_sync_point"]
    if layers % depth:
        raise UsageError(f"num_layers_per_track_per_sync_point ({depth}) must divide num_layers_per_track ({layers})")
    if c["attention_hidden_dim"] % c["num_heads"]:
        raise UsageError(f"num_heads ({c['num_heads']}) must divide attention_hidden_dim ({c['attention_hidden_dim']})")
    sparse = "moe" in feed_forward
    return ModelConfig(
        num_layers=layers,
        hidden_size=c["hidden_dim"],
        num_heads=c["num_heads"],
        num_kv_heads=c["num_kv_heads"] or c["num_heads"],
        head_size=c["attention_hidden_dim"] // c["num_heads"],
        intermediate_size=c["dense_feed_forward_hidden_dim"] if "dense" in feed_forward else 0,
        vocab_size=c["vocab_size"],
        max_position_embeddings=_POSITIONS,
        tracks=c["num_tracks"],
        schedule="pt",
        block_depth=depth,
        combine=c["tracks_combine_op"].lower(),
        dispatch_norm=c["tracks_dispatch_norm"] is not None,
        combine_norm=c["tracks_combine_norm"] is not None,
        attention_pattern=attention,
        window=c["local_attention_window_size"] + 1 if "sliding" in attention else None,
        rope_theta=c["rope_theta"],
        qk_norm=True,
        qk_norm_after_rope=True,
        residual_norm=c["pre_residual_norm"] is not None,
        norm_eps=c["norm_eps"],
        ffn_pattern=feed_forward,
        num_experts=c["num_experts"] if sparse else 0,
        experts_per_token=c["num_experts_per_token"] if sparse else 0,
        moe_intermediate_size=c["sparse_feed_forward_hidden_dim"] if sparse else 0,
        router_logits_cap=c["experts_router_logits_cap"] if sparse else None,
        tie_embeddings=True,
    )


def _refuse(data: dict[str, Any]) -> None:
    if data.get(TYPE_KEY, _TYPE) != _TYPE:
        raise UsageError(f"{TYPE_KEY} ({data[TYPE_KEY]!r}) is not supported; it must be {_TYPE!r}")
    unknown = sorted(set(data) - set(_DEFAULTS) - set(_ACCEPTED) - set(_IGNORED))
    if unknown:
        raise UsageError(f"unknown key {unknown[0]!r} in the tamm config")
    for key, accepted in _ACCEPTED.items():
        value = data.get(key, _DEFAULTS.get(key))
        if value not in accepted and not (value == {} and None in accepted):
            choices = " or ".join(map(repr, accepted))
            raise UsageError(f"tamm's {key} ({value!r}) is not supported; it must be {choices}")


def _pattern(c: dict[str, Any], key: str, kinds: dict[str, str]) -> tuple[str, ...]:
    for kind in c[key]:
        if kind not in kinds:
            raise UsageError(f"tamm's {key} has {kind!r}; supported: {', '.join(kinds)}")
    return tuple(kinds[kind] for kind in c[key])
