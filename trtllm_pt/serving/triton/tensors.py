"""The tensors of the five Triton models, with the names and shapes that clients of TensorRT-LLM use.

The entries of sampling numbers come from the table in requests/fields.py.

An entry is `name TYPE[dims]` without the batch axis, followed by flags. `r`: the model receives a scalar (Triton
reshapes it to []). `?`: the tensor is optional. `~`: requests of different lengths can share a batch (ragged).
`$logits`, `$table` and `$features` stand for types that depend on the engine.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache

from trtllm_pt.requests.fields import NUMBERS

# The names in NVIDIA's model repositories for TensorRT-LLM, which its clients use. They are the same for every engine.
ENGINE, BLS = "tensorrt_llm", "tensorrt_llm_bls"
MODELS = ("preprocessing", ENGINE, "postprocessing", "ensemble", BLS)
TYPES = {"$logits": "FP32", "$table": "FP16", "$features": "FP16"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of a model. `dims` excludes the batch axis; -1 is a variable size."""

    name: str
    type: str  # Triton's type without `TYPE_`, such as INT32
    dims: tuple[int, ...]
    scalar: bool = False
    optional: bool = False
    ragged: bool = False


def inputs(model: str, omitted: Collection[str] = ()) -> tuple[Tensor, ...]:
    """Return the input tensors of one of MODELS. omitted: inputs that tensorrt_llm does not have.

    The ensemble does not have them either. `tensorrt_llm_bls` keeps its own, and refuses values that need them.
    """
    known = _parse(_INPUTS[model])
    if model == ENGINE:
        return tuple(tensor for tensor in known if tensor.name not in omitted)
    if model == "ensemble":
        return tuple(tensor for tensor in known if PASSED_ON.get(tensor.name) not in omitted)
    return known


def outputs(model: str, *, in_python: bool = False) -> tuple[Tensor, ...]:
    """Return the output tensors of one of MODELS.

    in_python: whether our Python model runs the engine, which has outputs that TensorRT-LLM's models do not have.
    """
    own = _parse(_OWN_OUTPUTS) if model == ENGINE and in_python else ()
    return (*_parse(_OUTPUTS[model]), *own)


@cache
def _parse(table: str) -> tuple[Tensor, ...]:
    entries = [entry for line in table.splitlines() for entry in line.split(";") if entry.strip()]
    return tuple(map(_tensor, entries))


def _tensor(entry: str) -> Tensor:
    found = re.fullmatch(r"(\w+) (\$?\w+)\[([-\d,]*)\](r?)(\??)(~?)", entry.strip())
    assert found, entry
    name, kind, dims, scalar, optional, ragged = found.groups()
    sizes = tuple(map(int, dims.split(",")))
    return Tensor(name, TYPES.get(kind, kind), sizes, bool(scalar), bool(optional), bool(ragged))


_COUNTS = """
    kv_cache_alloc_new_blocks INT32[1]; kv_cache_reused_blocks INT32[1]; kv_cache_alloc_total_blocks INT32[1]
    arrival_time_ns INT64[1]; first_scheduled_time_ns INT64[1]; first_token_time_ns INT64[1]
    last_token_time_ns INT64[1]; acceptance_rate FP32[1]; total_accepted_draft_tokens INT32[1]
    total_draft_tokens INT32[1]; num_input_tokens INT32[1]; num_output_tokens INT32[1]
"""
_RESULTS = """
    cum_log_probs FP32[-1]; output_log_probs FP32[-1,-1]; context_logits $logits[-1,-1]
    generation_logits $logits[-1,-1,-1]; batch_index INT32[1]; sequence_index INT32[1]
"""
# The likeliest tokens at the position of each output token; then the log-probs of the prompt's tokens from the second
# on, and the likeliest tokens at their positions. All are log-probs of raw logits. Last, the number of the prompt's
# tokens that were found in the KV cache.
_OWN_OUTPUTS = """
    output_top_ids INT32[-1,-1,-1]; output_top_log_probs FP32[-1,-1,-1]; context_log_probs FP32[-1]
    context_top_ids INT32[-1,-1]; context_top_log_probs FP32[-1,-1]; num_cached_tokens INT32[1]
"""
_SAMPLING = """
    bad_words STRING[-1]?; stop_words STRING[-1]?; exclude_input_in_output BOOL[1]?; end_id INT32[1]?
    pad_id INT32[1]?; length_penalty FP32[1]?
"""


def _numbers(names: Mapping[str, str], flag: str = "") -> str:
    """Return the entries of sampling numbers. names: tensors by field; flag: `r` where the model sees a scalar."""
    return "; ".join(
        f"{names[one.name]} {one.tensor_type}[1]{flag}{'' if one.required else '?'}"
        for one in NUMBERS
        if one.name in names
    )


_TEXT_NUMBERS = _numbers({one.name: one.text_input for one in NUMBERS if one.text_input})
_ENGINE_NUMBERS = _numbers({one.name: one.tensor for one in NUMBERS if one.tensor}, "r")

_INPUTS = {
    "preprocessing": """
        QUERY STRING[1]; DECODER_QUERY STRING[1]?; IMAGE_BYTES UINT8[-1,-1,-1,-1]?; IMAGE_URL STRING[-1]?
        IMAGE_SIZES INT64[-1,2]?; VIDEO_BYTES UINT8[-1,-1,-1,-1]?; REQUEST_OUTPUT_LEN INT32[1]
        BAD_WORDS_DICT STRING[-1]?; STOP_WORDS_DICT STRING[-1]?; EMBEDDING_BIAS_WORDS STRING[-1]?
        EMBEDDING_BIAS_WEIGHTS FP32[-1]?; END_ID INT32[1]?; PAD_ID INT32[1]?; PROMPT_TABLE_EXTRA_ID UINT64[1]?
    """,
    ENGINE: f"""
        input_ids INT32[-1]?~; encoder_input_features $features[-1,-1]?~; encoder_output_lengths INT32[1]r?
        input_lengths INT32[1]r; num_return_sequences INT32[1]r?; draft_input_ids INT32[-1]?~
        decoder_input_ids INT32[-1]?~; decoder_input_lengths INT32[1]r?
        draft_logits $logits[-1,-1]?~; draft_acceptance_threshold FP32[1]r?; end_id INT32[1]r?; pad_id INT32[1]r?
        stop_words_list INT32[2,-1]?~; bad_words_list INT32[2,-1]?~; embedding_bias FP32[-1]?~
        {_ENGINE_NUMBERS}
        beam_width INT32[1]r?; runtime_top_p_min FP32[1]r?; runtime_top_p_decay FP32[1]r?
        runtime_top_p_reset_ids INT32[1]r?; len_penalty FP32[1]r?; early_stopping BOOL[1]r?
        beam_search_diversity_rate FP32[1]r?; return_log_probs BOOL[1]r?; return_context_logits BOOL[1]r?
        return_generation_logits BOOL[1]r?; return_perf_metrics BOOL[1]r?; return_num_input_tokens BOOL[1]r?
        return_num_output_tokens BOOL[1]r?; exclude_input_in_output BOOL[1]r?; stop BOOL[1]r?; streaming BOOL[1]r?
        prompt_embedding_table $table[-1,-1]?~; prompt_table_extra_ids UINT64[-1]?~; prompt_vocab_size INT32[1]r?
        cross_attention_mask BOOL[-1,-1]?~; mrope_rotary_cos_sin FP32[-1]?; mrope_position_deltas INT64[1]?
        lora_task_id UINT64[1]r?; lora_weights FP16[-1,-1]?~; lora_config INT32[-1,3]?~
        context_phase_params UINT8[-1]?~; skip_cross_attn_blocks BOOL[1]?~
        retention_token_range_starts INT32[-1]?~; retention_token_range_ends INT32[-1]?~
        retention_token_range_priorities INT32[-1]?~; retention_token_range_durations_ms INT32[-1]?~
        retention_decode_priority INT32[1]?~; retention_decode_duration_ms INT32[1]?~
        guided_decoding_guide_type STRING[1]?~; guided_decoding_guide STRING[1]?~
        lookahead_window_size INT32[1]?~; lookahead_ngram_size INT32[1]?~; lookahead_verification_set_size INT32[1]?~
    """,
    "postprocessing": "TOKENS_BATCH INT32[-1,-1]; SEQUENCE_LENGTH INT32[-1]",
    "ensemble": f"""
        text_input STRING[1]; decoder_text_input STRING[1]?; num_return_sequences INT32[1]?
        {_TEXT_NUMBERS}
        {_SAMPLING}
        return_log_probs BOOL[1]?; return_context_logits BOOL[1]?; return_generation_logits BOOL[1]?
        return_perf_metrics BOOL[1]?; return_num_input_tokens BOOL[1]?; return_num_output_tokens BOOL[1]?
        beam_width INT32[1]?; stream BOOL[1]?; prompt_embedding_table FP16[-1,-1]?
        prompt_table_extra_id UINT64[1]?; prompt_vocab_size INT32[1]?; embedding_bias_words STRING[-1]?
        embedding_bias_weights FP32[-1]?; lora_task_id UINT64[1]?; lora_weights FP16[-1,-1]?~
        lora_config INT32[-1,3]?~; guided_decoding_guide_type STRING[1]?~; guided_decoding_guide STRING[1]?~
    """,
    BLS: f"""
        text_input STRING[1]; decoder_text_input STRING[1]?; image_input FP16[-1,3,-1,-1]?
        image_bytes_input UINT8[-1,-1,-1,-1]?; image_url_input STRING[1]?; image_sizes_input INT64[-1,2]?
        video_bytes_input UINT8[-1,-1,-1,-1]?
        {_TEXT_NUMBERS}
        {_SAMPLING}
        return_log_probs BOOL[1]r?; return_context_logits BOOL[1]r?; return_generation_logits BOOL[1]r?
        num_return_sequences INT32[1]r?; beam_width INT32[1]?; stream BOOL[1]?
        prompt_embedding_table $table[-1,-1]?; prompt_vocab_size INT32[1]?; prompt_table_extra_id UINT64[1]?
        embedding_bias_words STRING[-1]?; embedding_bias_weights FP32[-1]?; num_draft_tokens INT32[1]?
        use_draft_logits BOOL[1]r?; lora_task_id UINT64[1]r?; lora_weights FP16[-1,-1]?~; lora_config INT32[-1,3]?~
        return_perf_metrics BOOL[1]r?; return_num_input_tokens BOOL[1]r?; return_num_output_tokens BOOL[1]r?
        guided_decoding_guide_type STRING[1]?; guided_decoding_guide STRING[1]?
    """,
}
_OUTPUTS = {
    "preprocessing": """
        INPUT_ID INT32[-1]; REQUEST_INPUT_LEN INT32[1]; DECODER_INPUT_ID INT32[-1]
        REQUEST_DECODER_INPUT_LEN INT32[1]; BAD_WORDS_IDS INT32[2,-1]; STOP_WORDS_IDS INT32[2,-1]
        EMBEDDING_BIAS FP32[-1]; REQUEST_OUTPUT_LEN INT32[-1]; OUT_END_ID INT32[1]; OUT_PAD_ID INT32[1]
        OUT_PROMPT_TABLE_EXTRA_IDS UINT64[-1]; PIXEL_VALUES FP16[-1,-1,-1,-1]; ASPECT_RATIO_IDS INT64[-1]
        ASPECT_RATIO_MASK INT64[-1,-1]; CROSS_ATTENTION_MASK INT64[-1,-1,-1]; IMAGE_SIZES INT64[-1,2]
        IS_VIDEO_INPUT BOOL[1]; ATTENTION_MASK INT64[-1]; IMAGE_GRID_THW INT64[3]; VISION_INPUT_ID INT32[-1]
    """,
    ENGINE: f"""
        output_ids INT32[-1,-1]; sequence_length INT32[-1]
        {_RESULTS}
        context_phase_params UINT8[-1]
        {_COUNTS}
    """,
    "postprocessing": "OUTPUT STRING[-1]",
    "ensemble": f"text_output STRING[-1]; {_RESULTS} {_COUNTS}",
    BLS: f"text_output STRING[-1]; {_RESULTS} {_COUNTS}",
}

# Inputs of the ensemble and of the BLS model that are passed on unchanged -> their names as inputs of tensorrt_llm.
PASSED_ON = {
    "exclude_input_in_output": "exclude_input_in_output",
    "length_penalty": "len_penalty",
    **{one.text_input: one.tensor for one in NUMBERS if one.text_input and one.tensor and not one.required},
    "return_log_probs": "return_log_probs",
    "return_context_logits": "return_context_logits",
    "return_generation_logits": "return_generation_logits",
    "return_perf_metrics": "return_perf_metrics",
    "return_num_input_tokens": "return_num_input_tokens",
    "return_num_output_tokens": "return_num_output_tokens",
    "num_return_sequences": "num_return_sequences",
    "beam_width": "beam_width",
    "stream": "streaming",
    "prompt_embedding_table": "prompt_embedding_table",
    "prompt_vocab_size": "prompt_vocab_size",
    "lora_task_id": "lora_task_id",
    "lora_weights": "lora_weights",
    "lora_config": "lora_config",
    "guided_decoding_guide_type": "guided_decoding_guide_type",
    "guided_decoding_guide": "guided_decoding_guide",
}
# Inputs of the ensemble and of the BLS model -> their names as inputs of preprocessing.
TO_PREPROCESSING = {
    "text_input": "QUERY",
    "decoder_text_input": "DECODER_QUERY",
    "max_tokens": "REQUEST_OUTPUT_LEN",
    "bad_words": "BAD_WORDS_DICT",
    "stop_words": "STOP_WORDS_DICT",
    "embedding_bias_words": "EMBEDDING_BIAS_WORDS",
    "embedding_bias_weights": "EMBEDDING_BIAS_WEIGHTS",
    "end_id": "END_ID",
    "pad_id": "PAD_ID",
    "prompt_table_extra_id": "PROMPT_TABLE_EXTRA_ID",
}
# Outputs of preprocessing -> their names as inputs of tensorrt_llm.
FROM_PREPROCESSING = {
    "REQUEST_INPUT_LEN": "input_lengths",
    "INPUT_ID": "input_ids",
    "REQUEST_DECODER_INPUT_LEN": "decoder_input_lengths",
    "DECODER_INPUT_ID": "decoder_input_ids",
    "REQUEST_OUTPUT_LEN": "request_output_len",
    "STOP_WORDS_IDS": "stop_words_list",
    "BAD_WORDS_IDS": "bad_words_list",
    "EMBEDDING_BIAS": "embedding_bias",
    "OUT_END_ID": "end_id",
    "OUT_PAD_ID": "pad_id",
    "OUT_PROMPT_TABLE_EXTRA_IDS": "prompt_table_extra_ids",
}
RESULTS = tuple(tensor.name for tensor in outputs("ensemble") if tensor.name != "text_output")
