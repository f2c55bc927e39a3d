"""Translate configs and requests into those of TensorRT-LLM's executor, and find sampling fields it does not support.

The argument `bindings` is always the module tensorrt_llm.bindings.executor.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from typing import Any

from trtllm_pt.backends.manifest import EngineManifest
from trtllm_pt.requests.fields import NUMBERS
from trtllm_pt.requests.messages import FinishReason, SamplingParams
from trtllm_pt.requests.sequence import Sequence, possible_start

TOP_K_MAX = 1024  # the sampling kernels reduce a larger top_k to this
NUMBER_MAX = 1e30  # the executor uses float32, and a number that overflows ends every request in flight
_UNSUPPORTED = (
    *("guide_type", "logit_bias", "top_log_probs", "processed_log_probs", "prompt_log_probs"),
    *("context_logits", "generation_logits", "priority", "cache_salt"),
)
_EPSILON = 1e-6  # the executor adds this to a temperature


def executor_config(bindings: Any, manifest: EngineManifest, kv_tokens: int | None) -> Any:
    """Return the executor's config, with KV cache reuse and chunked prompts if the engine was built for them.

    kv_tokens: tokens that fit into the KV cache; None lets the executor choose.
    """
    return bindings.ExecutorConfig(
        kv_cache_config=bindings.KvCacheConfig(
            enable_block_reuse=manifest.reuses_pages,
            max_tokens=kv_tokens,
            max_attention_window=manifest.windows and list(manifest.windows),
        ),
        enable_chunked_context=manifest.chunks_prompts,
        normalize_log_probs=False,  # log-probs over the whole vocabulary, not over the tokens that top_k keeps
        iter_stats_max_iterations=1,
        fail_fast_on_attention_window_too_large=True,  # otherwise it would silently reduce max_seq_len
    )


def executor_request(bindings: Any, sequence: Sequence) -> Any:
    """Return the executor's request for a sequence."""
    prompt, p = sequence.request.token_ids, sequence.sampling
    max_tokens = sequence.limit - len(prompt)
    # The executor looks for stop words in prompt and output, where they may only be in the output. So a stop word that
    # could begin in the prompt is not passed to it; Sequence finds it.
    stop_words = [[token] for token in p.stop_token_ids]  # it has only one end token
    stop_words += [list(word) for word in p.stop_words if not possible_start(word, prompt)]
    return bindings.Request(
        input_token_ids=list(prompt),
        max_tokens=max_tokens,
        streaming=True,
        sampling_config=sampling_config(bindings, p, len(prompt), max_tokens),
        output_config=bindings.OutputConfig(return_log_probs=p.log_probs),
        end_id=sequence.end_id,
        stop_words=stop_words or None,
        bad_words=[list(word) for word in p.bad_words] or None,
    )


def sampling_config(bindings: Any, p: SamplingParams, prompt: int, max_tokens: int) -> Any:
    """Return the executor's sampling config that gives the same distribution as the embedded engine.

    The executor divides logits by the temperature before it subtracts the presence and frequency penalties, and the
    embedded engine afterwards, so these penalties are divided by the temperature here. With prompt_ignore_length set to
    the prompt's length, the tokens of the prompt count only for the repetition penalty.
    """
    greedy = p.temperature == 0
    scale = 1.0 if greedy or p.temperature == 1 else 1 / (p.temperature + _EPSILON)
    values = {field.name: getattr(p, field.name) for field in NUMBERS if field.name != "max_tokens"}
    values["min_tokens"] = min(p.min_tokens, max_tokens)
    for name in ("presence_penalty", "frequency_penalty"):
        values[name] *= scale
    if greedy:
        values |= {"temperature": None, "top_k": 1, "top_p": 1.0, "min_p": None}
    else:
        values["temperature"] = max(p.temperature, _EPSILON)
    return bindings.SamplingConfig(**values, prompt_ignore_length=prompt)


def finish_reasons(bindings: Any) -> dict[Any, FinishReason]:
    """Return our finish reason for each of the executor's."""
    names: tuple[FinishReason, ...] = ("end_id", "stop_words", "length", "timed_out", "cancelled")
    return {getattr(bindings.FinishReason, name.upper()): name for name in names}


def problems(p: SamplingParams) -> Iterator[str]:
    """Yield one sentence for each sampling field that the executor does not support as the embedded engine does."""
    if p.top_k > TOP_K_MAX:
        yield f"top_k ({p.top_k}) must be at most {TOP_K_MAX}"
    for field in NUMBERS:
        value = getattr(p, field.name)
        if field.tensor_type == "FP32" and abs(value) > NUMBER_MAX:
            yield f"{field.name} ({value!r}) must be within {NUMBER_MAX:g}"
    if p.min_tokens == 1:  # 1 is the executor's default, which it treats as not set
        yield "min_tokens (1) must be 0 or at least 2"
    if p.min_p and p.top_p < 1 and p.temperature:  # the executor takes the shares of top_p after min_p
        yield f"min_p ({p.min_p!r}) must be 0.0 with top_p below 1"
    for name in ("stop_token_ids", "stop_words"):
        if p.min_tokens and getattr(p, name):  # the executor's min_tokens delays only the end token
            yield f"min_tokens ({p.min_tokens}) must be 0 with {name}"
    for name in _UNSUPPORTED:
        if value := getattr(p, name):
            yield f"{name} ({reprlib.repr(value)}) is not supported"
    if p.log_probs:
        # The executor computes log-probs after it has applied these fields.
        plain = SamplingParams()
        for name in ("repetition_penalty", "presence_penalty", "frequency_penalty", "min_p", "min_tokens", "bad_words"):
            if getattr(p, name) != getattr(plain, name):
                yield f"{name} ({getattr(p, name)!r}) must be {getattr(plain, name)!r} with log_probs"
        if p.temperature not in (0, 1):
            yield f"temperature ({p.temperature!r}) must be 0 or 1 with log_probs"
