"""The engine's metrics on Triton's metrics port, under the names that TensorRT-LLM's backend uses.

The figures that autoscalers and routers read are there under vLLM's names, too: examples for KEDA, and routers that are
not told which server they read, look for those.

This code runs in the process of the model `tensorrt_llm`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from trtllm_pt.requests.messages import Stats
from trtllm_pt.serving.triton.models.base import triton

_TOKENS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000]  # upper limits of buckets
_SECONDS = [0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
_GAUGES = {  # name of the family: its label, its description, and the label's value for each of its metrics
    "nv_trt_llm_request_metrics": (
        "request_type",
        "Requests in the engine",
        ("active", "max", "scheduled", "context", "waiting"),
    ),
    "nv_trt_llm_runtime_memory_metrics": (
        "memory_type",
        "Peak bytes of the fullest rank, weights included",
        ("cpu", "gpu", "pinned"),
    ),
    "nv_trt_llm_kv_cache_block_metrics": (
        "kv_cache_block_type",
        "Pages of the KV cache",
        ("max", "free", "used", "tokens_per", "reused", "fraction"),
    ),
    "nv_trt_llm_inflight_batcher_metrics": (
        "inflight_batcher_specific_metric",
        "The running batch",
        ("total_context_tokens", "generation_requests", "micro_batch_id", "paused_requests"),
    ),
    "trtllm_pt_speculation_metrics": (
        "speculation_type",
        "Tokens of speculative decoding: drafted ones, and those of them that became output",
        ("drafted", "accepted"),
    ),
    "nv_trt_llm_general_metrics": ("general_type", "The engine's clock", ("timestamp", "iteration_counter")),
}
_FROM_VLLM = {  # the name of a gauge in vLLM: the family and the kind of the metric above with the same value
    "vllm:num_requests_waiting": ("nv_trt_llm_request_metrics", "waiting"),
    "vllm:num_requests_running": ("nv_trt_llm_request_metrics", "scheduled"),
    "vllm:kv_cache_usage_perc": ("nv_trt_llm_kv_cache_block_metrics", "fraction"),
}


class Metrics:
    """The metrics of one model. `max_batch_size` is the number of outputs that can run at the same time."""

    def __init__(self, model: str, version: str, max_batch_size: int) -> None:
        pb = triton()
        labels = {"model": model, "version": version}
        self._max_batch_size = max_batch_size
        self._gauges: dict[tuple[str, str], Any] = {}
        self._families: list[Any] = []  # kept because Triton removes a family without references
        for family, (label, description, kinds) in _GAUGES.items():
            made = pb.MetricFamily(name=family, description=description, kind=pb.MetricFamily.GAUGE)
            self._families.append(made)
            for kind in kinds:
                self._gauges[family, kind] = made.Metric(labels={label: kind, **labels})
        self._aliases: list[tuple[Any, str, str]] = []
        for name, (family, kind) in _FROM_VLLM.items():
            made = pb.MetricFamily(name=name, description=f"{kind} of {family}", kind=pb.MetricFamily.GAUGE)
            self._families.append(made)
            self._aliases.append((made.Metric(labels=labels), family, kind))
        self.input_tokens = self._histogram("nv_llm_input_token_len", "Tokens of a prompt", labels, _TOKENS)
        self.output_tokens = self._histogram("nv_llm_output_token_len", "Tokens of an output", labels, _TOKENS)
        self.seconds_to_first_token = self._histogram(
            "vllm:time_to_first_token_seconds", "Seconds from a request's arrival to its first token", labels, _SECONDS
        )

    def report(self, stats: Stats, begun: int, prompts: Sequence[int]) -> None:
        """Set the gauges.

        stats: the engine's counters. begun: the number of outputs in the engine that have at least one token, including
        preempted ones, which wait for pages again. prompts: the prompt lengths of all other outputs, in tokens and in
        the order of arrival.
        """
        total, used = stats.kv_pages_total, stats.kv_pages_used
        generating = min(begun, stats.active_requests)
        context = stats.active_requests - generating
        values: dict[str, dict[str, float]] = {
            "nv_trt_llm_request_metrics": {
                "active": stats.active_requests + stats.waiting_requests,
                "max": self._max_batch_size,
                "scheduled": stats.active_requests,
                "context": context,
                "waiting": stats.waiting_requests,
            },
            "nv_trt_llm_runtime_memory_metrics": {"cpu": stats.peak_memory_bytes or 0, "gpu": 0, "pinned": 0},
            "nv_trt_llm_kv_cache_block_metrics": {
                "max": total,
                "free": total - used,
                "used": used,
                "tokens_per": stats.kv_page_tokens or 0,
                "reused": (stats.reused_tokens or 0) // (stats.kv_page_tokens or 1),
                "fraction": used / total,
            },
            "nv_trt_llm_inflight_batcher_metrics": {
                "total_context_tokens": sum(prompts[:context]),
                "generation_requests": generating,
                "micro_batch_id": 0,  # the engine has only one batch
                "paused_requests": begun - generating,
            },
            "trtllm_pt_speculation_metrics": {
                "drafted": stats.drafted_tokens or 0,
                "accepted": stats.accepted_tokens or 0,
            },
            "nv_trt_llm_general_metrics": {"timestamp": time.time(), "iteration_counter": stats.steps},
        }
        for family, kinds in values.items():
            for kind, value in kinds.items():
                self._gauges[family, kind].set(value)
        for metric, family, kind in self._aliases:
            metric.set(values[family][kind])

    def _histogram(self, name: str, description: str, labels: dict[str, str], buckets: Sequence[float]) -> Any:
        pb = triton()
        family = pb.MetricFamily(name=name, description=description, kind=pb.MetricFamily.HISTOGRAM)
        self._families.append(family)
        return family.Metric(labels=labels, buckets=list(buckets))
