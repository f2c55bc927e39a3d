"""Check trtllm-build's options: refuse values that this network does not support, and pass on the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trtllm_pt.backends.manifest import BuildOptions
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import unknown_key
from trtllm_pt.model.quantization import PER_CHANNEL, WEIGHT_ONLY

MAX_BATCH_SIZE, MAX_NUM_TOKENS = 2048, 8192  # trtllm-build's defaults
# The strategies of the all-reduce plugin. NCCL always means NCCL; AUTO chooses by message size and machine.
STRATEGIES = ("NCCL", "AUTO", "ONESHOT", "TWOSHOT")
OWN_ALL_REDUCES = (2, 4, 6, 8, 16)  # the numbers of ranks for which ONESHOT and TWOSHOT have kernels
# The head sizes for which TensorRT-LLM has attention kernels for generated tokens and fused ones for prompts. Kernels
# that are not fused cannot read the KV cache, so a prompt in chunks would give wrong results.
HEAD_SIZES = (32, 48, 64, 80, 96, 104, 128, 160, 192, 256)
DTYPES = ("bfloat16", "float16")
_ON, _OFF = ("enable", True), ("disable", False, None)
# Plugins that work in the checkpoint's dtype, and the other values that each accepts.
_IN_MODEL_DTYPE = {"gpt_attention_plugin": (), "moe_plugin": (), "nccl_plugin": (), "gemm_plugin": ("fp8", *_OFF)}

_NO_LORA = "adapters are sized for a model that is divided over the ranks, not one of tracks"
_NO_SPECULATION = "draft tokens need heads or inputs that this network does not have"
_FUSES_ALL_REDUCE = "it fuses all-reduces with the layers of TensorRT-LLM's own models"
_OWN_CLASS = "`trtllm-pt build` brings its own; plain `trtllm-build` takes it"
# Option -> the values that this network supports, and why it does not support others.
_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "max_beam_width": ((1,), "beam search is untested on this network"),
    "max_encoder_input_len": ((), "there is no encoder"),
    "max_prompt_embedding_table_size": ((0,), "the network reads no prompt embeddings"),
    "kv_cache_type": (("paged",), "in-flight batching needs a paged KV cache"),
    "paged_kv_cache": (("enable", True), "in-flight batching needs a paged KV cache"),
    "remove_input_padding": (("enable", True), "the network packs its tokens"),
    "strip_plan": (_OFF, "engines without weights need trtllm-refit, which does not know this model"),
    "fast_build": (_OFF, "weights outside the engine are untested on this network"),
    "lora_plugin": (_OFF, _NO_LORA),
    "dora_plugin": (_OFF, _NO_LORA),
    **dict.fromkeys(("lora_dir", "lora_ckpt_source", "lora_target_modules", "max_lora_rank"), ((), _NO_LORA)),
    "speculative_decoding_mode": ((), _NO_SPECULATION),
    "max_draft_len": ((0,), _NO_SPECULATION),
    "fp8_rowwise_gemm_plugin": (_OFF, "it needs FP8 scales per token and row"),
    "bert_attention_plugin": (("auto", *_OFF), "the network has no attention of an encoder"),
    "mamba_conv1d_plugin": (("auto", *_OFF), "the network has no convolutions"),
    "enable_debug_output": (_OFF, "the network marks no tensors for it"),
    "gemm_allreduce_plugin": (_OFF, _FUSES_ALL_REDUCE),
    "reduce_fusion": (_OFF, _FUSES_ALL_REDUCE),
    "user_buffer": (_OFF, _FUSES_ALL_REDUCE),
    "norm_quant_fusion": (_OFF, "it applies only to NVFP4 in TensorRT-LLM's own models"),
    "fuse_fp4_quant": (_OFF, "it applies only to NVFP4"),
    **dict.fromkeys(("gemm_swiglu_plugin", "low_latency_gemm_swiglu_plugin"), (_OFF, "it is untested on this network")),
    "pp_reduce_scatter": (_OFF, "a rank holds whole tracks, so there is no pipeline"),
    "streamingllm": (_OFF, "TensorRT-LLM no longer supports it"),
    "model_config": ((), "build a checkpoint: `trtllm-pt init` makes one with random weights"),
    "build_config": ((), "give its values by name"),
    "model_cls_file": ((), _OWN_CLASS),
    "model_cls_name": ((), _OWN_CLASS),
}
# The other options are fields of TensorRT-LLM's BuildConfig, fields of its PluginConfig, or used by our own build.
_BUILD = (
    "opt_num_tokens",
    "profiling_verbosity",
    "input_timing_cache",
    "output_timing_cache",
    "weight_sparsity",
    "weight_streaming",
    "visualize_network",
    "dry_run",
    "monitor_memory",
    "gather_context_logits",
    "gather_generation_logits",
)
_PLUGINS = (
    "gpt_attention_plugin",
    "gemm_plugin",
    "moe_plugin",
    "nccl_plugin",
    "low_latency_gemm_plugin",
    "context_fmha",
    "bert_context_fmha_fp32_acc",
    "tokens_per_block",
    "use_paged_context_fmha",
    "use_fp8_context_fmha",
    "multiple_profiles",
    "paged_state",
    "use_fused_mlp",
)
_OURS = ("all_reduce_strategy", "gpus_per_node", "workers", "log_level", "logits_dtype", "gather_all_token_logits")
KNOWN = {*_ONLY, *_BUILD, *_PLUGINS, *_OURS}


def check(options: BuildOptions, manifest: CheckpointManifest) -> None:
    """Raise UsageError for option values that this network or this checkpoint does not support."""
    options.resolved(manifest.model, MAX_BATCH_SIZE, MAX_NUM_TOKENS)
    for name, value in options.extra.items():
        if name not in KNOWN:
            raise unknown_key(name, KNOWN, "the options of trtllm-build")
        honoured, why = _ONLY.get(name, ((value,), ""))
        if name in _IN_MODEL_DTYPE:
            honoured, why = ("auto", manifest.dtype, *_IN_MODEL_DTYPE[name]), f"the network has it, in {manifest.dtype}"
        if value not in honoured:
            raise UsageError(f"--{name} ({value}) is not supported: {why}")
    for name, why in _without_effect(options.extra, manifest):
        raise UsageError(f"--{name} ({options.extra[name]}) would have no effect: {why}")
    if manifest.quant_algo in WEIGHT_ONLY and manifest.quant_algo not in PER_CHANNEL:
        raise UsageError(
            f"quant_algo ({manifest.quant_algo!r}) must be {' or '.join(PER_CHANNEL)} for the TensorRT-LLM engine, "
            "whose network has one scale per output; convert with one of these, or build with --engine embedded"
        )
    if manifest.embedding_quant_algo:
        raise UsageError(
            f"embedding_quant_algo ({manifest.embedding_quant_algo!r}) must be null for the TensorRT-LLM engine, whose "
            "embedding and output head have the model's dtype; convert without --embedding, or build with --engine "
            "embedded"
        )
    if manifest.kv_cache_quant_algo not in (None, "FP8"):
        raise UsageError(
            f"kv_cache_quant_algo ({manifest.kv_cache_quant_algo!r}) must be null or FP8 for the TensorRT-LLM engine, "
            "whose INT8 cache has one scale per layer; convert with --kv-cache FP8, or build with --engine embedded"
        )
    _check_kernels(manifest)
    _check_strategy(strategy_of(options), manifest.ranks, gpus_per_node(options, manifest))
    _check_files_and_numbers(options)


def _without_effect(given: Mapping[str, Any], manifest: CheckpointManifest) -> Iterator[tuple[str, str]]:
    """Yield the options that TensorRT-LLM would ignore for this checkpoint or beside the others, with the reason."""
    matrices, cache = (algo == "FP8" for algo in (manifest.quant_algo, manifest.kv_cache_quant_algo))
    for name in ("gemm_plugin", "low_latency_gemm_plugin"):
        if given.get(name) == "fp8" and not matrices:
            yield name, "it multiplies matrices in FP8, and the checkpoint has none"
    if given.get("use_fp8_context_fmha") in _ON and not (matrices and cache):
        yield "use_fp8_context_fmha", "it needs matrices in FP8 and an FP8 KV cache"
    if given.get("use_paged_context_fmha") in _ON and cache and not matrices:
        yield "use_paged_context_fmha", "with an FP8 KV cache it needs matrices in FP8"
    paged = given.get("use_paged_context_fmha", True) not in _OFF
    if given.get("use_fp8_context_fmha", True) in _OFF and matrices and cache and paged:
        yield "use_fp8_context_fmha", "an FP8 KV cache needs it, unless --use_paged_context_fmha is disabled as well"
    if given.get("weight_streaming"):
        plugins = [name for name in ("gemm_plugin", "low_latency_gemm_plugin") if given.get(name) not in _OFF]
        if plugins or manifest.quant_algo in WEIGHT_ONLY:
            products = f"--{plugins[0]}" if plugins else f"quantization ({manifest.quant_algo})"
            yield "weight_streaming", f"it cannot stream the weights of plugins, which {products} uses"
    if given.get("multiple_profiles") in _ON and "opt_num_tokens" in given:
        yield "opt_num_tokens", "--multiple_profiles has several profiles"


def _check_files_and_numbers(options: BuildOptions) -> None:
    """Raise UsageError for a file that is missing, or a number that TensorRT-LLM could not use."""
    cache, tokens = options.extra.get("input_timing_cache"), str(options.extra.get("tokens_per_block", 32))
    if cache is not None and not Path(cache).exists():
        raise UsageError(f"--input_timing_cache ({cache}) does not exist")
    if not tokens.isdecimal() or int(tokens) < 2 or int(tokens).bit_count() != 1:
        raise UsageError(f"--tokens_per_block ({tokens}) must be a power of two, at least 2")
    if workers_of(options) < 1:
        raise UsageError(f"--workers ({workers_of(options)}) must be at least 1")


def _check_kernels(manifest: CheckpointManifest) -> None:
    """Raise UsageError for a checkpoint for which TensorRT-LLM has no kernels on any GPU."""
    if (size := manifest.model.head_size) not in HEAD_SIZES:
        sizes = ", ".join(map(str, HEAD_SIZES))
        raise UsageError(f"head_size ({size}) must be one of {sizes}: TensorRT-LLM's attention has no other kernels")
    if manifest.dtype not in DTYPES:
        raise UsageError(f"dtype ({manifest.dtype}) must be {' or '.join(DTYPES)}: its fused attention takes no other")


def _check_strategy(strategy: str, ranks: int, most: int) -> None:
    """Raise UsageError for a strategy that these ranks cannot use. most: GPUs of each machine."""
    if strategy not in STRATEGIES:
        raise UsageError(f"--all_reduce_strategy ({strategy}) must be one of {', '.join(STRATEGIES)}")
    if strategy in ("ONESHOT", "TWOSHOT") and ranks not in (1, *OWN_ALL_REDUCES):
        fits = ", ".join(map(str, OWN_ALL_REDUCES))
        raise UsageError(f"--all_reduce_strategy ({strategy}) has kernels for {fits} ranks, not {ranks}")
    if strategy in ("ONESHOT", "TWOSHOT") and ranks > most:
        raise UsageError(
            f"--all_reduce_strategy ({strategy}) works within one machine, and {ranks} ranks need several machines of "
            f"{most} GPUs (gpus_per_node): use NCCL or AUTO"
        )


def strategy_of(options: BuildOptions) -> str:
    """Return the all-reduce strategy, by default NCCL."""
    return str(options.extra.get("all_reduce_strategy") or "NCCL").upper()


def gpus_per_node(options: BuildOptions, manifest: CheckpointManifest) -> int:
    """Return the GPUs of each machine, by default those that the checkpoint names. Raises UsageError below 1."""
    found = int(options.extra.get("gpus_per_node", manifest.gpus_per_node))
    if found < 1:
        raise UsageError(f"--gpus_per_node ({found}) must be at least 1")
    return found


def workers_of(options: BuildOptions) -> int:
    """Return the number of worker processes, by default 1."""
    return int(options.extra.get("workers") or 1)


def build_fields(options: BuildOptions, manifest: CheckpointManifest) -> dict[str, Any]:
    """Return the fields of TensorRT-LLM's BuildConfig that the options set. The others keep their defaults."""
    given = options.extra
    fields = asdict(options.resolved(manifest.model, MAX_BATCH_SIZE, MAX_NUM_TOKENS))
    fields |= {name: given[name] for name in _BUILD if name in given}
    if given.get("gather_all_token_logits"):
        fields |= {"gather_context_logits": True, "gather_generation_logits": True}
    return fields


def plugin_fields(options: BuildOptions) -> Mapping[str, Any]:
    """Return the fields of TensorRT-LLM's PluginConfig that the options set. The others keep their defaults."""
    return {name: value for name, value in options.extra.items() if name in _PLUGINS}
