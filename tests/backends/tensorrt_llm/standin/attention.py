"""The attention plugin: packed tokens, paged KV cache, context and generation requests side by side.

The cache is the runtime's: found by address, in the geometry that the runtime made of the engine's config. What is
written is what is read: with an FP8 cache every key and value is rounded, also the newest token's.

    T packed tokens   B requests   H, G heads, KV heads   D head size   P tokens of a block
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor as Data

from tests.backends.tensorrt_llm.standin.binding import implements
from tests.backends.tensorrt_llm.standin.functional import HERE, Tensor, data_of, tensor
from tests.backends.tensorrt_llm.standin.trt import DataType, dtype_of
from tests.backends.tensorrt_llm.standin.world import state

FP8_LARGEST = 448.0


def fp8(x: Data) -> Data:
    """Rounded to float8_e4m3fn, in float32."""
    return x.clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn).float()


@implements(HERE)
def gpt_attention(
    qkv: Tensor,
    past_key_value: None,
    attention_mask: None,
    sequence_length: Tensor,
    host_past_key_value_lengths: Tensor,
    host_max_attention_window_sizes: Tensor,
    host_sink_token_length: Tensor,
    context_lengths: Tensor,
    cache_indirection: Tensor,
    host_request_types: Tensor,
    layer_idx: int,
    num_heads: int,
    num_kv_heads: int,
    hidden_size_per_head: int,
    q_scaling: float,
    rotary_embedding_dim: int,
    rotary_embedding_base: float,
    rotary_embedding_scale_type: Any,
    rotary_embedding_scale: float,
    rotary_embedding_max_positions: int,
    rotary_embedding_original_max_positions: int,
    position_embedding_type: Any,
    rotary_inv_freq: Tensor | None,
    rotary_cos_sin: Tensor | None,
    kv_orig_quant_scale: Tensor | None,
    kv_quant_orig_scale: Tensor | None,
    attention_output_orig_quant_scale: Tensor | None,
    kv_cache_quant_mode: Any,
    max_context_length: int,
    mask_type: Any,
    kv_cache_block_offsets: Tensor,
    host_kv_cache_block_offsets: Tensor,
    host_kv_cache_pool_pointers: Tensor,
    host_kv_cache_pool_mapping: Tensor,
    host_context_lengths: Tensor,
    use_cache: bool,
    spec_decoding_max_generation_length: int,
    host_runtime_perf_knobs: Tensor,
    host_context_progress: Tensor,
    num_kv_heads_origin: int,
) -> tuple[Tensor, None]:
    """qkv [T, (H + 2 G) * D], all q | all k | all v -> [T, H * D]."""
    heads, kv_heads, size = num_heads, num_kv_heads, hidden_size_per_head
    _check_inputs(locals())
    rows = data_of(qkv)
    assert rows.shape[1] == (heads + 2 * kv_heads) * size, f"qkv {list(rows.shape)} for {heads}, {kv_heads} heads"
    quantises = kv_cache_quant_mode.has_fp8_kv_cache()
    assert quantises == (kv_orig_quant_scale is not None) == (kv_quant_orig_scale is not None)
    cache = _Cache(layer_idx, kv_cache_block_offsets, host_kv_cache_pool_pointers, host_kv_cache_pool_mapping)
    cache.check(kv_heads, size, DataType.FP8 if quantises else qkv.dtype)
    window = int(data_of(host_max_attention_window_sizes)[layer_idx])
    causal = mask_type.name == "causal"
    outputs, start = [], 0
    for request, total in enumerate(data_of(sequence_length).tolist()):
        generates = bool(data_of(host_request_types)[request])
        count = 1 if generates else int(data_of(host_context_lengths)[request])
        positions = torch.arange(total - count, total)
        parts = rows[start : start + count].split([heads * size, kv_heads * size, kv_heads * size], 1)
        q, k, v = (part.view(count, -1, size) for part in parts)
        start += count
        if position_embedding_type.is_rope():
            # The context kernel reads the table, the generation kernel the frequencies.
            cos, sin = _rotary(positions, rotary_inv_freq, None if generates else rotary_cos_sin, size)
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        if quantises:
            k, v = (fp8(part * data_of(kv_orig_quant_scale)) for part in (k, v))
        cache.write(request, positions, k, v)
        k, v = cache.read(request, total)
        if quantises:
            k, v = (part * data_of(kv_quant_orig_scale) for part in (k, v))
        outputs.append(_attend(q, k, v, positions, window, causal or generates, q_scaling))
    assert start == len(rows), f"the requests have {start} tokens, qkv {len(rows)}"
    out = torch.cat(outputs)
    if attention_output_orig_quant_scale is not None:
        return tensor(fp8(out * data_of(attention_output_orig_quant_scale)), DataType.FP8), None
    return tensor(out, qkv.dtype), None


def _check_inputs(given: dict[str, Any]) -> None:
    """What the plugin's own code asks for."""
    config = state().plugin_config
    assert given["use_cache"] and config.paged_kv_cache and config.remove_input_padding
    assert given["qkv"].dtype == dtype_of(config.gpt_attention_plugin), "qkv is not of the plugin's dtype"
    assert isinstance(given["max_context_length"], int)
    for name in (
        "sequence_length",
        "context_lengths",
        "host_context_lengths",
        "cache_indirection",
        "host_request_types",
    ):
        assert isinstance(given[name], Tensor), f"{name} is missing"
    if config.use_fp8_context_fmha:
        assert given["attention_output_orig_quant_scale"] is not None, "FP8 context FMHA wants its output's scale"
    else:
        assert given["attention_output_orig_quant_scale"] is None, "FP8 context FMHA is off"
    kind = given["position_embedding_type"].name
    assert kind in ("rope_gpt_neox", "learned_absolute"), f"positions {kind} are not covered"
    assert given["rotary_embedding_dim"] == (given["hidden_size_per_head"] if kind == "rope_gpt_neox" else 0)
    assert (given["rotary_cos_sin"] is not None) == (kind == "rope_gpt_neox") == (given["rotary_inv_freq"] is not None)


class _Cache:
    """One layer's part of its pool: [blocks of K and V, G, P, D]."""

    def __init__(self, layer: int, offsets: Tensor, pointers: Tensor, mapping: Tensor) -> None:
        pool, layer_in_pool = data_of(mapping)[layer].tolist()
        address = int(data_of(pointers)[pool, 0])
        self.blocks = state().pools[address][layer_in_pool]
        self.offsets = data_of(offsets)[pool]  # [B, 2, blocks of a request]

    def check(self, kv_heads: int, size: int, dtype: DataType) -> None:
        """The plugin trusts its own numbers: with others than the runtime's it would write over its neighbours."""
        made = (self.blocks.shape[1], self.blocks.shape[3])
        assert made == (kv_heads, size), f"the cache has {made} KV heads and head size, the plugin {(kv_heads, size)}"
        assert dtype in (DataType.FP8, DataType.FLOAT, DataType.HALF, DataType.BF16)

    def write(self, request: int, positions: Data, *parts: Data) -> None:
        tokens = self.blocks.shape[2]
        for kind, part in enumerate(parts):
            at = self.offsets[request, kind][positions // tokens]
            self.blocks[at, :, positions % tokens] = part

    def read(self, request: int, count: int) -> tuple[Data, Data]:
        """[count, G, D] each."""
        k, v = (self.blocks[self.offsets[request, kind]].transpose(1, 2).flatten(0, 1)[:count] for kind in (0, 1))
        return k, v


def _rotary(positions: Data, inv_freq: Any, cos_sin: Any, size: int) -> tuple[Data, Data]:
    if cos_sin is not None:
        table = data_of(cos_sin).view(-1, size // 2, 2)[positions]
        return table[..., 0], table[..., 1]
    angles = positions[:, None].float() * data_of(inv_freq).view(-1)
    return angles.cos(), angles.sin()


def _rotate(x: Data, cos: Data, sin: Data) -> Data:
    """GPT-NeoX order: x [T, heads, D]."""
    a, b = x.chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def _attend(q: Data, k: Data, v: Data, positions: Data, window: int, causal: bool, q_scaling: float) -> Data:
    """The window counts the current token."""
    queries = q.transpose(0, 1).reshape(k.shape[1], -1, q.shape[2])  # [G, H / G * T, D]
    scores = queries @ k.permute(1, 2, 0) / (math.sqrt(q.shape[2]) * q_scaling)
    distance = positions[:, None] - torch.arange(len(k))
    seen = distance < window
    if causal:
        seen &= distance >= 0
    scores = scores.view(q.shape[1], len(q), len(k)).masked_fill(~seen, -math.inf)
    out = scores.softmax(-1).view(*queries.shape[:2], len(k)) @ v.transpose(0, 1)
    return out.view(q.shape[1], len(q), -1).transpose(0, 1).flatten(1)
