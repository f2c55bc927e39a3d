"""Which inputs the GPTAttention plugin has, and what of it is known here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tests.backends.tensorrt_llm.checkout.execute.values import ExecutionError
from tests.backends.tensorrt_llm.checkout.tensorrt.enums import DataType
from tests.backends.tensorrt_llm.checkout.tensorrt.graph import ILayer
from tests.backends.tensorrt_llm.checkout.tensorrt.plugins import Plugin

# TensorRT-LLM's PositionEmbeddingType, AttentionMaskType, RotaryScalingType and a bit of its QuantMode.
LEARNED_ABSOLUTE, ROPE_GPTJ, ROPE_GPT_NEOX = 0, 1, 2
CAUSAL = 1
DYNAMIC_SCALING = 2
FP8_KV_CACHE = 128

_MUST_BE_SET = ("use_cache", "paged_kv_cache", "remove_input_padding")
_MUST_BE_OFF = (
    "attn_logit_softcapping_scale",
    "dense_context_fmha",
    "do_cross_attention",
    "fuse_fp4_quant",
    "has_full_attention_mask",
    "is_mla_enabled",
    "is_spec_decoding_enabled",
    "pos_shift_enabled",
    "skip_attn",
    "unfuse_qkv_gemm",
    "use_logn_scaling",
)
_TABLE_TOLERANCE = 1e-6  # cosines that numpy and torch make of the same float32 angle


def named_inputs(layer: ILayer, values: Sequence[Tensor]) -> dict[str, Tensor]:
    """The inputs by name, in the order in which the C++ side counts them. Raises ExecutionError."""
    plugin = layer.plugin
    _check(plugin)
    entries = list(_entries(plugin))
    if len(entries) != len(values):
        raise ExecutionError(f"{layer.name} has {len(values)} inputs, its fields ask for {len(entries)}")
    for (name, dtype), tensor in zip(entries, layer.inputs, strict=True):
        if tensor.dtype != dtype:
            raise ExecutionError(f"{layer.name}: {name} is {tensor.dtype.name}, wanted {dtype.name}")
    inputs = {name: value for (name, _), value in zip(entries, values, strict=True)}
    if "rotary_inv_freq" in inputs:
        _check_rotary(layer, inputs)
    return inputs


def _check(plugin: Plugin) -> None:
    for name in _MUST_BE_SET:
        if not plugin.scalar(name):
            raise ExecutionError(f"GPTAttention without {name} is not known")
    for name in _MUST_BE_OFF:
        if plugin.scalar(name, 0):
            raise ExecutionError(f"GPTAttention with {name} is not known")
    known = {
        "mask_type": (CAUSAL,),
        "position_embedding_type": (LEARNED_ABSOLUTE, ROPE_GPTJ, ROPE_GPT_NEOX),
        "kv_cache_quant_mode": tuple(mode for mode in range(1024) if not mode & 64),  # 64: an int8 cache
        "cp_size": (1,),
        "vision_start": (-1,),
    }
    for name, values in known.items():
        if plugin.scalar(name) not in values:
            raise ExecutionError(f"GPTAttention with {name} {plugin.scalar(name)} is not known")


def _entries(plugin: Plugin) -> Iterator[tuple[str, DataType]]:
    is_rope = plugin.scalar("position_embedding_type") in (ROPE_GPTJ, ROPE_GPT_NEOX)
    own = next(member for member in DataType if int(member) == plugin.scalar("type_id"))
    for name, dtype, is_used in (
        ("qkv", own, True),
        ("sequence_length", DataType.INT32, True),
        ("host_past_key_value_lengths", DataType.INT32, True),
        ("host_max_attention_window_sizes", DataType.INT32, True),
        ("host_sink_token_length", DataType.INT32, True),
        ("context_lengths", DataType.INT32, True),
        ("cache_indirection", DataType.INT32, True),
        ("host_request_types", DataType.INT32, True),
        ("kv_cache_block_offsets", DataType.INT32, True),
        ("host_kv_cache_block_offsets", DataType.INT32, True),
        ("host_kv_cache_pool_pointers", DataType.INT64, True),
        ("host_kv_cache_pool_mapping", DataType.INT32, True),
        ("kv_orig_quant_scale", DataType.FLOAT, plugin.scalar("kv_cache_quant_mode") & FP8_KV_CACHE),
        ("kv_quant_orig_scale", DataType.FLOAT, plugin.scalar("kv_cache_quant_mode") & FP8_KV_CACHE),
        ("attention_output_orig_quant_scale", DataType.FLOAT, plugin.scalar("use_fp8_context_fmha")),
        ("rotary_inv_freq", DataType.FLOAT, is_rope),
        ("rotary_cos_sin", DataType.FLOAT, is_rope),
        ("host_context_lengths", DataType.INT32, True),
        ("qkv_bias", own, plugin.scalar("qkv_bias_enabled")),
        ("host_runtime_perf_knobs", DataType.INT64, True),
        ("host_context_progress", DataType.INT64, True),
    ):
        if is_used:
            yield name, dtype


def _check_rotary(layer: ILayer, inputs: dict[str, Tensor]) -> None:
    """The context kernels read the table, the generation kernels the frequencies: they must say the same."""
    if layer.plugin.scalar("rotary_embedding_scale_type") == DYNAMIC_SCALING:
        raise ExecutionError(f"{layer.name}: dynamic scaling of RoPE is not known")
    frequencies = inputs["rotary_inv_freq"].float().reshape(-1)
    if 2 * len(frequencies) != layer.plugin.scalar("rotary_embedding_dim"):
        raise ExecutionError(f"{layer.name}: {len(frequencies)} frequencies for a rotary_embedding_dim of twice that")
    table = inputs["rotary_cos_sin"].float().reshape(-1, len(frequencies), 2)
    angles = torch.arange(len(table))[:, None].float() * frequencies
    if (table - torch.stack((angles.cos(), angles.sin()), -1)).abs().max() > _TABLE_TOLERANCE:
        raise ExecutionError(f"{layer.name}: rotary_cos_sin is not that of rotary_inv_freq")
