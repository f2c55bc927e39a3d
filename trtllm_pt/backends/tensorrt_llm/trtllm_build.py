"""The options of TensorRT-LLM 1.2.1's `trtllm-build` in addition to the common ones.

`trtllm-pt build` has them under the same names. `options.py` checks which of their values this network supports.
"""

from __future__ import annotations

from trtllm_pt.backends.backend import BuildOption

_PLUGINS = (
    "bert_attention_plugin gpt_attention_plugin gemm_plugin gemm_swiglu_plugin fp8_rowwise_gemm_plugin lora_plugin "
    "dora_plugin moe_plugin mamba_conv1d_plugin nccl_plugin low_latency_gemm_plugin low_latency_gemm_swiglu_plugin "
    "gemm_allreduce_plugin context_fmha bert_context_fmha_fp32_acc remove_input_padding tokens_per_block "
    "use_paged_context_fmha use_fp8_context_fmha fuse_fp4_quant multiple_profiles paged_state streamingllm "
    "norm_quant_fusion reduce_fusion user_buffer use_fused_mlp pp_reduce_scatter"
)
OPTIONS: tuple[BuildOption, ...] = (
    BuildOption("opt_num_tokens", int),
    BuildOption("max_beam_width", int),
    BuildOption("max_encoder_input_len", int),
    BuildOption("max_prompt_embedding_table_size", int, aliases=("max_multimodal_len",)),
    BuildOption("kv_cache_type", ("continuous", "paged", "disabled")),
    BuildOption("paged_kv_cache"),
    BuildOption("input_timing_cache"),
    BuildOption("output_timing_cache"),
    BuildOption("profiling_verbosity", ("layer_names_only", "detailed", "none")),
    BuildOption("strip_plan", bool),
    BuildOption("weight_sparsity", bool),
    BuildOption("weight_streaming", bool),
    BuildOption("fast_build", bool),
    BuildOption("workers", int, help="Processes that build ranks at the same time, unless mpirun started the build."),
    BuildOption("log_level", ("internal_error", "error", "warning", "info", "verbose", "debug", "trace")),
    BuildOption("enable_debug_output", bool),
    BuildOption("visualize_network"),
    BuildOption("dry_run", bool),
    BuildOption("monitor_memory", bool),
    BuildOption("logits_dtype", ("float16", "float32")),
    BuildOption("gather_context_logits", bool),
    BuildOption("gather_generation_logits", bool),
    BuildOption("gather_all_token_logits", bool),
    BuildOption("lora_dir"),
    BuildOption("lora_ckpt_source", ("hf", "nemo")),
    BuildOption("lora_target_modules"),
    BuildOption("max_lora_rank", int),
    BuildOption("speculative_decoding_mode"),
    BuildOption("max_draft_len", int),
    BuildOption("model_config"),
    BuildOption("build_config"),
    BuildOption("model_cls_file"),
    BuildOption("model_cls_name"),
    *(BuildOption(name) for name in _PLUGINS.split()),
    BuildOption(
        "all_reduce_strategy",
        ("NCCL", "AUTO", "ONESHOT", "TWOSHOT"),
        help="All-reduce implementation (default: NCCL).",
    ),
    BuildOption("gpus_per_node", int, help="GPUs of each machine in a job on several (default: the checkpoint's)."),
)
