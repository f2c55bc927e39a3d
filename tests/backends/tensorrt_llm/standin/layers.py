"""TensorRT-LLM's layers, unquantised."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.backends.tensorrt_llm.standin.attention import gpt_attention
from tests.backends.tensorrt_llm.standin.binding import evaluate, implements
from tests.backends.tensorrt_llm.standin.functional import (
    Tensor,
    allgather,
    allreduce,
    concat,
    embedding,
    matmul,
    rms_norm,
    silu,
    split,
    view,
)
from tests.backends.tensorrt_llm.standin.module import Module, Parameter

LINEAR = "tensorrt_llm.layers.linear"
ATTENTION = "tensorrt_llm.layers.attention"


class _Linear(Module):
    """What column- and row-parallel products share."""

    def _init(self, rows: int, columns: int, bias: bool, dtype: Any, tp_group: Any, tp_size: int) -> None:
        Module.__init__(self)
        self.in_features, self.out_features = columns, rows
        self.dtype, self.tp_group, self.tp_size = dtype, tp_group, tp_size
        self.prefer_managed_weight = True
        self.weight = Parameter(shape=(rows, columns), dtype=dtype)
        if bias:
            self.bias = Parameter(shape=(rows,), dtype=dtype)
        else:
            self.register_parameter("bias", None)

    def _multiply(self, x: Tensor) -> Tensor:
        return matmul(x, self.weight.value, transb=True)

    def _biased(self, x: Tensor) -> Tensor:
        return x if self.bias is None else x + self.bias.value

    @property
    def _meets(self) -> bool:
        return self.tp_size > 1 and self.tp_group is not None


@implements(LINEAR)
class Linear(_Linear):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        dtype: Any,
        tp_group: Any,
        tp_size: int,
        gather_output: bool,
        is_qkv: bool,
    ) -> None:
        self._init(out_features // tp_size, in_features, bias, dtype, tp_group, tp_size)
        self.gather_output, self.is_qkv = gather_output, is_qkv

    def forward(self, x: Tensor, lora_runtime_params: None) -> Tensor:
        x = self._biased(self._multiply(x))
        return allgather(x, self.tp_group, gather_dim=-1) if self.gather_output and self._meets else x


@implements(LINEAR)
class RowLinear(_Linear):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        dtype: Any,
        tp_group: Any,
        tp_size: int,
        strict_dtype: bool,
        is_expert: bool,
    ) -> None:
        self._init(out_features, in_features // tp_size, bias, dtype, tp_group, tp_size)
        self.is_expert = is_expert

    def forward(self, x: Tensor, lora_runtime_params: None, **kwargs: Any) -> Tensor:
        x = self._multiply(x)
        if self._meets:
            x = allreduce(x, self.tp_group, all_reduce_params=kwargs.get("all_reduce_params"))
        return self._biased(x)


@implements("tensorrt_llm.layers.embedding")
class Embedding(Module):
    def __init__(self, num_embeddings: int, embedding_dim: int, dtype: Any, tp_size: int) -> None:
        Module.__init__(self)
        assert tp_size == 1, "a table divided over ranks is not covered"
        self.num_embeddings, self.embedding_dim, self.dtype, self.tp_size = (
            num_embeddings,
            embedding_dim,
            dtype,
            tp_size,
        )
        self.weight = Parameter(shape=(num_embeddings, embedding_dim), dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return embedding(x, self.weight.value)


@implements("tensorrt_llm.layers.normalization")
class RmsNorm(Module):
    def __init__(self, normalized_shape: Any, num_groups: int, eps: float, dtype: Any) -> None:
        Module.__init__(self)
        assert num_groups == 1, "group norms are not covered"
        self.normalized_shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.num_groups, self.eps, self.dtype = num_groups, eps, dtype
        self.weight = Parameter(shape=self.normalized_shape, dtype=dtype)

    def forward(self, x: Tensor, normalized_shape: Any) -> Tensor:
        return rms_norm(x, normalized_shape or self.normalized_shape, self.num_groups, self.weight.value, self.eps)


@implements("tensorrt_llm.layers.mlp")
class MLP(Module):
    def __init__(
        self,
        hidden_size: int,
        ffn_hidden_size: int,
        hidden_act: str,
        bias: bool,
        dtype: Any,
        tp_group: Any,
        tp_size: int,
        quant_mode: Any,
    ) -> None:
        Module.__init__(self)
        assert hidden_act == "silu", f"activation {hidden_act} is not covered"
        self.hidden_size, self.ffn_hidden_size, self.hidden_act, self.bias = (
            hidden_size,
            ffn_hidden_size,
            hidden_act,
            bias,
        )
        self.dtype, self.tp_group, self.tp_size, self.quant_mode = dtype, tp_group, tp_size, quant_mode
        same = {"bias": bias, "dtype": dtype, "tp_group": tp_group, "tp_size": tp_size}
        self.fc = Linear(hidden_size, ffn_hidden_size, gather_output=False, **same)
        self.proj = RowLinear(ffn_hidden_size, hidden_size, **same)


@implements("tensorrt_llm.layers.mlp")
class GatedMLP(MLP):
    def __init__(
        self,
        hidden_size: int,
        ffn_hidden_size: int,
        hidden_act: str,
        bias: bool,
        dtype: Any,
        tp_group: Any,
        tp_size: int,
        quant_mode: Any,
    ) -> None:
        same = (hidden_size, ffn_hidden_size, hidden_act, bias, dtype, tp_group, tp_size)
        MLP.__init__(self, *same, quant_mode)
        self.gate = Linear(
            hidden_size,
            ffn_hidden_size,
            bias=bias,
            dtype=dtype,
            tp_group=tp_group,
            tp_size=tp_size,
            gather_output=False,
        )

    def forward(self, hidden_states: Tensor, all_reduce_params: Any) -> Tensor:
        """The activation is on fc."""
        return self.proj(
            silu(self.fc(hidden_states)) * self.gate(hidden_states), None, all_reduce_params=all_reduce_params
        )


# --- Attention --------------------------------------------------------------------------------------------------------


@implements(ATTENTION)
class AttentionParams:
    def __init__(
        self,
        sequence_length: Tensor,
        context_lengths: Tensor,
        host_context_lengths: Tensor,
        max_context_length: int,
        host_request_types: Tensor,
        host_runtime_perf_knobs: Tensor,
        host_context_progress: Tensor,
    ) -> None:
        self.sequence_length, self.context_lengths = sequence_length, context_lengths
        self.host_context_lengths, self.max_context_length = host_context_lengths, max_context_length
        self.host_request_types, self.host_runtime_perf_knobs = host_request_types, host_runtime_perf_knobs
        self.host_context_progress = host_context_progress
        self.embed_positions: Tensor | None = None
        self.rotary_inv_freq: Tensor | None = None
        self.embed_positions_for_gpt_attention: Tensor | None = None

    def fill_attention_const_params_for_rope(
        self, embed_positions: Tensor, rotary_inv_freq: Tensor, embed_positions_for_gpt_attention: Tensor
    ) -> AttentionParams:
        self.embed_positions, self.rotary_inv_freq = embed_positions, rotary_inv_freq
        self.embed_positions_for_gpt_attention = embed_positions_for_gpt_attention
        return self


@implements(ATTENTION)
class KeyValueCacheParams:
    def __init__(
        self,
        past_key_value: Any,
        host_past_key_value_lengths: Tensor,
        host_max_attention_window_sizes: Tensor,
        host_sink_token_length: Tensor,
        kv_cache_block_offsets: Tensor,
        host_kv_cache_block_offsets: Tensor,
        host_kv_cache_pool_pointers: Tensor,
        host_kv_cache_pool_mapping: Tensor,
        cache_indirection: Tensor,
    ) -> None:
        self.past_key_value = past_key_value
        self.host_past_key_value_lengths = host_past_key_value_lengths
        self.host_max_attention_window_sizes = host_max_attention_window_sizes
        self.host_sink_token_length = host_sink_token_length
        self.kv_cache_block_offsets = kv_cache_block_offsets
        self.host_kv_cache_block_offsets = host_kv_cache_block_offsets
        self.host_kv_cache_pool_pointers = host_kv_cache_pool_pointers
        self.host_kv_cache_pool_mapping = host_kv_cache_pool_mapping
        self.cache_indirection = cache_indirection

    def get_first_past_key_value(self) -> Any:
        return None if self.past_key_value is None else self.past_key_value[0]


@implements(ATTENTION)
class Attention(Module):
    def __init__(
        self,
        local_layer_idx: int,
        hidden_size: int,
        num_attention_heads: int,
        num_kv_heads: int | None,
        max_position_embeddings: int,
        attention_head_size: int | None,
        qk_layernorm: bool,
        layernorm_type: Any,
        eps: float,
        attention_mask_type: Any,
        bias: bool,
        dtype: Any,
        position_embedding_type: Any,
        rotary_embedding_base: float,
        rotary_embedding_scaling: Any,
        tp_group: Any,
        tp_size: int,
        tp_rank: int,
        quant_mode: Any,
        q_scaling: float,
        dense_bias: bool | None,
    ) -> None:
        Module.__init__(self)
        self.q_scaling = q_scaling
        heads, kv_heads = num_attention_heads // tp_size, -(-(num_kv_heads or num_attention_heads) // tp_size)
        size = hidden_size // num_attention_heads if attention_head_size is None else attention_head_size
        self.local_layer_idx, self.num_attention_heads, self.num_attention_kv_heads = local_layer_idx, heads, kv_heads
        self.num_kv_heads = num_attention_heads if num_kv_heads is None else num_kv_heads
        self.attention_head_size, self.max_position_embeddings = size, max_position_embeddings
        self.attention_mask_type, self.quant_mode = attention_mask_type, quant_mode
        self.position_embedding_type, self.rotary_embedding_base = position_embedding_type, rotary_embedding_base
        self.rotary_embedding_dim = size if position_embedding_type.is_rope() else 0
        kind, self.rotary_embedding_scale = "none", 1.0
        if rotary_embedding_scaling is not None:
            kind = rotary_embedding_scaling.get("type", rotary_embedding_scaling.get("rope_type"))
            self.rotary_embedding_scale = rotary_embedding_scaling.get("factor", 1.0)
        self.rotary_embedding_scale_type = evaluate(ATTENTION, "RotaryScalingType").from_string(kind)
        self.register_parameter("kv_cache_scaling_factor", None)
        self.register_parameter("attention_output_orig_quant_scale", None)
        same = {"dtype": dtype, "tp_group": tp_group, "tp_size": tp_size}
        rows = tp_size * (heads + 2 * kv_heads) * size
        self.qkv = Linear(hidden_size, rows, bias=bias, gather_output=False, is_qkv=True, **same)
        with_bias = bias if dense_bias is None else dense_bias
        self.dense = RowLinear(tp_size * heads * size, hidden_size, bias=with_bias, **same)
        self.qk_layernorm = qk_layernorm
        if qk_layernorm:
            assert layernorm_type.name == "RmsNorm", f"{layernorm_type.name} of q and k is not covered"
            self.q_layernorm = RmsNorm(size, eps=eps, dtype=dtype)
            self.k_layernorm = RmsNorm(size, eps=eps, dtype=dtype)

    @staticmethod
    def create_attention_const_params(model_cls: Any, config: Any) -> None:
        """The model's RoPE tables, buffers that no checkpoint holds."""
        if not config.position_embedding_type.is_rope():
            return
        inv_freq, cos_sin = _rope_tables(config)
        for name, value in (
            ("embed_positions", cos_sin),  # in another order; only a network without the plugin reads it
            ("rotary_inv_freq", inv_freq),
            ("embed_positions_for_gpt_attention", cos_sin),
        ):
            model_cls.register_parameter(name, Parameter(value, dtype="float32", is_buffer=True))

    @staticmethod
    def fill_attention_params(model_cls: Any, attention_params: Any) -> Any:
        if not model_cls.position_embedding_type.is_rope():
            return attention_params
        names = ("embed_positions", "rotary_inv_freq", "embed_positions_for_gpt_attention")
        values = [getattr(model_cls, name).value for name in names]
        return attention_params.fill_attention_const_params_for_rope(*values)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any,
        use_cache: bool,
        kv_cache_params: Any,
        attention_params: Any,
        all_reduce_params: Any,
    ) -> Any:
        qkv = self.qkv(hidden_states)
        if self.qk_layernorm:
            qkv = self._normed(qkv)
        quantises, rope = self.kv_cache_scaling_factor is not None, self.position_embedding_type.is_rope()
        out_scale = self.attention_output_orig_quant_scale
        context, cache = gpt_attention(
            qkv=qkv,
            past_key_value=kv_cache_params.get_first_past_key_value(),
            attention_mask=attention_mask,
            sequence_length=attention_params.sequence_length,
            host_past_key_value_lengths=kv_cache_params.host_past_key_value_lengths,
            host_max_attention_window_sizes=kv_cache_params.host_max_attention_window_sizes,
            host_sink_token_length=kv_cache_params.host_sink_token_length,
            context_lengths=attention_params.context_lengths,
            cache_indirection=kv_cache_params.cache_indirection,
            host_request_types=attention_params.host_request_types,
            layer_idx=self.local_layer_idx,
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_attention_kv_heads,
            num_kv_heads_origin=self.num_kv_heads,
            hidden_size_per_head=self.attention_head_size,
            q_scaling=self.q_scaling,
            rotary_embedding_dim=self.rotary_embedding_dim,
            rotary_embedding_base=self.rotary_embedding_base,
            rotary_embedding_scale_type=self.rotary_embedding_scale_type,
            rotary_embedding_scale=self.rotary_embedding_scale,
            rotary_embedding_max_positions=self.max_position_embeddings,
            position_embedding_type=self.position_embedding_type,
            rotary_inv_freq=attention_params.rotary_inv_freq if rope else None,
            rotary_cos_sin=attention_params.embed_positions_for_gpt_attention if rope else None,
            kv_orig_quant_scale=self.kv_cache_rcp_scaling_factor.value if quantises else None,
            kv_quant_orig_scale=self.kv_cache_scaling_factor.value if quantises else None,
            attention_output_orig_quant_scale=None if out_scale is None else out_scale.value,
            kv_cache_quant_mode=self.quant_mode,
            max_context_length=attention_params.max_context_length,
            mask_type=self.attention_mask_type,
            kv_cache_block_offsets=kv_cache_params.kv_cache_block_offsets,
            host_kv_cache_block_offsets=kv_cache_params.host_kv_cache_block_offsets,
            host_kv_cache_pool_pointers=kv_cache_params.host_kv_cache_pool_pointers,
            host_kv_cache_pool_mapping=kv_cache_params.host_kv_cache_pool_mapping,
            host_context_lengths=attention_params.host_context_lengths,
            use_cache=use_cache,
            host_runtime_perf_knobs=attention_params.host_runtime_perf_knobs,
            host_context_progress=attention_params.host_context_progress,
        )
        out = self.dense(context, None, all_reduce_params=all_reduce_params)
        return (out, cache) if use_cache else out

    def _normed(self, qkv: Tensor) -> Tensor:
        """With as many KV heads as heads, TensorRT-LLM takes the rows as q, k, v of one head after the other."""
        heads, kv_heads, size = self.num_attention_heads, self.num_attention_kv_heads, self.attention_head_size
        if heads != kv_heads:
            q, k, v = split(view(qkv, [-1, heads + 2 * kv_heads, size]), [heads, kv_heads, kv_heads], dim=1)
        else:
            parts = split(view(qkv, [-1, heads, 3, size]), 1, dim=2)
            q, k, v = (view(part, [-1, heads, size]) for part in parts)
        normed = concat([self.q_layernorm(q), self.k_layernorm(k), v], dim=1)
        return view(normed, [-1, (heads + 2 * kv_heads) * size])


def _rope_tables(config: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Frequencies [D/2], and cos, sin of every position, pair by pair [1, positions * D]."""
    size, scaling = config.head_size, config.rotary_scaling
    inv_freq = 1.0 / getattr(config, "rotary_base", 10000.0) ** (np.arange(0, size, 2) / size)
    kind = None if scaling is None else scaling.get("type", scaling.get("rope_type"))
    if kind == "linear":
        inv_freq = inv_freq / scaling["factor"]
    elif kind == "llama3":
        inv_freq = np.array([_llama3(float(f), scaling) for f in inv_freq])
    else:
        assert kind is None, f"rope scaling {kind} is not covered"
    angles = np.arange(config.max_position_embeddings, dtype=np.float32)[:, None] * inv_freq.astype(np.float32)
    cos_sin = np.stack((np.cos(angles), np.sin(angles)), -1)
    return inv_freq.astype(np.float32), cos_sin.reshape(1, -1).astype(np.float32)


def _llama3(freq: float, scaling: dict[str, float]) -> float:
    length = scaling["original_max_position_embeddings"]
    wave, low, high = 2 * np.pi / freq, scaling["low_freq_factor"], scaling["high_freq_factor"]
    if wave < length / high:
        return freq
    if wave > length / low:
        return freq / scaling["factor"]
    smooth = (length / wave - low) / (high - low)
    return (1 - smooth) * freq / scaling["factor"] + smooth * freq
