"""What a recorded network and its engine directory have to be, from the config, the schedule and the layout alone."""

from __future__ import annotations

from tests.backends.tensorrt_llm.cases import Case
from tests.backends.tensorrt_llm.checkout.building import LIMITS
from tests.backends.tensorrt_llm.checkout.execute.runtime_view import RuntimeView
from tests.backends.tensorrt_llm.checkout.facts import AttentionCall, SubLayer
from trtllm_pt.model.layout import rank_layout
from trtllm_pt.model.schedule import Finish, Run, Schedule, Start

DTYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
# What the executor feeds, for packed tokens and a paged cache.
INPUTS = {
    *("input_ids", "position_ids", "last_token_ids", "sequence_length", "cache_indirection"),
    *("context_lengths", "host_context_lengths", "host_past_key_value_lengths", "host_request_types"),
    *("kv_cache_block_offsets", "host_kv_cache_block_offsets", "host_kv_cache_pool_pointers"),
    *("host_kv_cache_pool_mapping", "host_max_attention_window_sizes", "host_sink_token_length"),
    *("host_runtime_perf_knobs", "host_context_progress"),
}


def expected_flow(schedule: Schedule) -> tuple[list[frozenset[SubLayer]], dict[SubLayer, frozenset[int]]]:
    """What every all-reduce shares for the first time, and the all-reduces that every sub-layer's input depends on."""
    shares: list[frozenset[SubLayer]] = []
    reads: dict[SubLayer, frozenset[int]] = {}
    number_of = {step.key: number for number, step in enumerate(s for s in schedule if isinstance(s, Start))}
    unshared: list[SubLayer] = []
    shared: frozenset[int] = frozenset()  # all-reduces in the shared stream
    for step in schedule:
        match step:
            case Run(layer, place, kind):
                own = frozenset().union(*(reads[sub_layer] for sub_layer in unshared)) if kind == "local" else shared
                reads[layer, place] = shared | own
                unshared.append((layer, place))
            case Start():
                shares.append(frozenset(unshared))
                unshared = []
            case Finish(key):
                number = number_of[key]
                before = frozenset().union(*(reads[sub_layer] for sub_layer in shares[number]))
                shared |= before | {number}
    return shares, reads


def expected_attention(case: Case, ranks: int, rank: int) -> list[AttentionCall]:
    """One call per layer, over the heads of all the rank's tracks."""
    config, layout = case.config, rank_layout(case.config, ranks, rank)
    tracks = len(layout.tracks)
    return [
        AttentionCall(
            layer=layer,
            heads=tracks * len(layout.heads),
            kv_heads=tracks * len(layout.kv_heads),
            head_size=config.head_size,
            position="rope_gpt_neox" if config.has_rope(layer) and not config.qk_norm_after_rope else "none",
            window_input="host_max_attention_window_sizes",
            has_fp8_cache=case.kv_cache_quant_algo == "FP8",
        )
        for layer in range(config.num_layers)
    ]


def expected_view(case: Case, ranks: int) -> RuntimeView:
    config, layout = case.config, rank_layout(case.config, ranks)
    tracks = len(layout.tracks)
    return RuntimeView(
        ranks=ranks,
        experts=config.num_experts if config.has_moe else 0,
        layers=config.num_layers,
        heads=tracks * len(layout.heads),
        kv_heads=tracks * len(layout.kv_heads),
        head_size=config.head_size,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        dtype=case.dtype,
        quantization=(case.quant_algo, case.kv_cache_quant_algo),
        windows=tuple(config.layer_window(layer) or LIMITS["max_seq_len"] for layer in range(config.num_layers)),
        max_seq_len=LIMITS["max_seq_len"],
        tokens_per_page=32,
    )
