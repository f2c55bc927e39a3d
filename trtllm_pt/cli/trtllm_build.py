"""The options of TensorRT-LLM 1.2.1's `trtllm-build`, as a table: `trtllm-pt build` takes them under the same names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from trtllm_pt.cli.options import Decorator

FLAG = bool  # an option without a value


@dataclass(frozen=True, slots=True)
class Option:
    """One of trtllm-build's options. `default`: both engines honour it, and this is the embedded one's, in words."""

    names: str  # separated by blanks, the first is the one that counts
    type: Any = str
    default: str | None = None
    help: str | None = None  # of those that the help shows

    @property
    def name(self) -> str:
        return self.names.split()[0]


def _choice(*values: str) -> click.Choice[str]:
    return click.Choice(values)


_SIZE = click.IntRange(min=1)
_PLUGINS = (
    "bert_attention_plugin gpt_attention_plugin gemm_plugin gemm_swiglu_plugin fp8_rowwise_gemm_plugin lora_plugin "
    "dora_plugin moe_plugin mamba_conv1d_plugin nccl_plugin low_latency_gemm_plugin low_latency_gemm_swiglu_plugin "
    "gemm_allreduce_plugin context_fmha bert_context_fmha_fp32_acc remove_input_padding tokens_per_block "
    "use_paged_context_fmha use_fp8_context_fmha fuse_fp4_quant multiple_profiles paged_state streamingllm "
    "norm_quant_fusion reduce_fusion user_buffer use_fused_mlp pp_reduce_scatter"
)
OPTIONS: tuple[Option, ...] = (
    Option("max_batch_size", _SIZE, "16", "Requests in flight."),
    Option("max_input_len", _SIZE, "max_seq_len - 1", "Tokens of a prompt."),
    Option("max_seq_len max_decoder_seq_len", _SIZE, "the model's positions", "Tokens of a prompt and its answer."),
    Option("max_num_tokens", _SIZE, "2048", "Tokens of a step, over all requests."),
    Option("opt_num_tokens", int),
    Option("max_beam_width", int),
    Option("max_encoder_input_len", int),
    Option("max_prompt_embedding_table_size max_multimodal_len", int),
    Option("kv_cache_type", _choice("continuous", "paged", "disabled")),
    Option("paged_kv_cache"),
    Option("input_timing_cache"),
    Option("output_timing_cache"),
    Option("profiling_verbosity", _choice("layer_names_only", "detailed", "none")),
    Option("strip_plan", FLAG),
    Option("weight_sparsity", FLAG),
    Option("weight_streaming", FLAG),
    Option("fast_build", FLAG),
    Option("workers", _SIZE, help="Processes that build ranks at once; mpirun's, where that started this.  [TensorRT]"),
    Option("log_level", _choice("internal_error", "error", "warning", "info", "verbose", "debug", "trace")),
    Option("enable_debug_output", FLAG),
    Option("visualize_network"),
    Option("dry_run", FLAG),
    Option("monitor_memory", FLAG),
    Option("logits_dtype", _choice("float16", "float32")),
    Option("gather_context_logits", FLAG),
    Option("gather_generation_logits", FLAG),
    Option("gather_all_token_logits", FLAG),
    Option("lora_dir"),
    Option("lora_ckpt_source", _choice("hf", "nemo")),
    Option("lora_target_modules"),
    Option("max_lora_rank", int),
    Option("speculative_decoding_mode"),
    Option("max_draft_len", int),
    Option("model_config"),
    Option("build_config"),
    Option("model_cls_file"),
    Option("model_cls_name"),
    *(Option(name) for name in _PLUGINS.split()),
)


def trtllm_build_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Declare all of them; most of those that only TensorRT-LLM honours stand in the last lines of the help."""
    for option in reversed(OPTIONS):
        command = _declare(option)(command)
    return command


def _declare(option: Option) -> Decorator:
    flags = [f"--{name}" for name in option.names.split()]
    if option.type is FLAG:
        return click.option(*flags, option.name, is_flag=True, default=None, hidden=True)
    help = f"{option.help}  [default: {option.default}]" if option.default else option.help
    return click.option(*flags, option.name, type=option.type, help=help, hidden=help is None)


def given(parsed: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What stood on the command line, by name: what both engines honour, and what only TensorRT-LLM does."""
    values = {name: value for name, value in parsed.items() if value is not None}
    common = {option.name for option in OPTIONS if option.default}
    return (
        {name: value for name, value in values.items() if name in common},
        {name: value for name, value in values.items() if name not in common},
    )


TENSORRT_LLM_ONLY = " ".join(f"--{option.name}" for option in OPTIONS if not option.help)
