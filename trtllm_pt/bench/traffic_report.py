"""The report of a traffic run, with the sections and keys of trtllm-bench and the columns of gptManagerBenchmark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trtllm_pt._version import __version__
from trtllm_pt.bench.facts import Facts, machine_facts
from trtllm_pt.bench.results import Row, percentiles
from trtllm_pt.bench.traffic import Load, Record
from trtllm_pt.requests.messages import Stats


def report(
    facts: Facts, load: Load, records: Sequence[Record], before: Stats, after: Stats, *, streaming: bool
) -> dict[str, Any]:
    """Return the report about all complete requests.

    `before` and `after` are the runtime's counters before and after the traffic. `streaming` adds the times of tokens.
    """
    good = [record for record in records if record.good]
    seconds = _seconds(good)
    sections = {
        "engine": _engine(facts),
        "machine": machine_facts(),
        "world_info": _world(facts, load, records),
        "request_info": _requests(good, records, seconds),
        "performance": _performance(good, seconds, facts.manifest.ranks),
    }
    if streaming:
        sections["streaming_metrics"] = _streaming(good)
    return sections | {"dataset": _dataset(records), "parallel_track": _parallel_track(facts, seconds, before, after)}


def columns(facts: Facts, records: Sequence[Record], *, streaming: bool) -> Row:
    """Return the row that gptManagerBenchmark writes. Times are in milliseconds."""
    good = [record for record in records if record.good]
    seconds = _seconds(good)
    tokens = sum(len(record.times) for record in good)
    row: dict[str, object] = facts.columns() | {
        "num_samples": len(good),
        "num_error_samples": sum(record.error is not None for record in records),
        "total_latency(ms)": 1e3 * seconds,
        "seq_throughput(seq/sec)": _rate(len(good), seconds),
        "token_throughput(token/sec)": _rate(tokens, seconds),
    }
    row |= _spread([record.latency for record in good], 1e3, "sequence_latency(ms)")
    if streaming:
        row |= _spread([record.ttft for record in good], 1e3, "time_to_first_token(ms)")
        row |= _spread([gap for record in good for gap in record.gaps], 1e3, "inter_token_latency(ms)")
        row |= _spread(_speeds(good), 1.0, "user_tokens_per_second")
    return row


def _engine(facts: Facts) -> dict[str, Any]:
    checkpoint, options = facts.manifest.checkpoint, facts.manifest.options
    return {
        "model": facts.folder.name,
        "model_path": None,
        "engine_dir": str(facts.folder),
        "revision": None,
        "version": __version__,
        "backend": facts.manifest.backend.report_name,
        "dtype": checkpoint.dtype,
        "kv_cache_dtype": checkpoint.kv_cache_quant_algo,
        "quantization": checkpoint.quant_algo,
        "max_input_length": options.max_input_len,
        "max_sequence_length": options.max_seq_len,
    }


def _world(facts: Facts, load: Load, records: Sequence[Record]) -> dict[str, Any]:
    ranks, options = facts.manifest.ranks, facts.manifest.options
    starts = [record.start for record in records] or [0.0]
    queued = max(starts) - min(starts)
    return {
        "tp_size": ranks,
        "pp_size": 1,
        "ep_size": 1,
        "world_size": ranks,
        "max_batch_size": options.max_batch_size,
        "max_num_tokens": options.max_num_tokens,
        "scheduling_policy": facts.manifest.backend.scheduling_policy,
        "kv_cache_percentage": None,
        "issue_rate": _rate(len(records), queued) if queued else None,
        "request_rate": load.request_rate,
        "concurrency": load.concurrency,
    }


def _requests(good: Sequence[Record], records: Sequence[Record], seconds: float) -> dict[str, Any]:
    return {
        "num_requests": len(good),
        "num_error_requests": sum(record.error is not None for record in records),
        "avg_num_concurrent_requests": _rate(sum(record.latency for record in good), seconds),
        "avg_input_length": percentiles([len(record.request.token_ids) for record in good])["average"],
        "avg_output_length": percentiles([len(record.times) for record in good])["average"],
    }


def _performance(good: Sequence[Record], seconds: float, ranks: int) -> dict[str, Any]:
    latencies = percentiles([record.latency for record in good], 1e3)
    given = sum(len(record.request.token_ids) for record in good)
    written = sum(len(record.times) for record in good)
    return {
        "total_latency_ms": 1e3 * seconds,
        "avg_request_latency_ms": latencies["average"],
        "request_throughput_req_s": _rate(len(good), seconds),
        "system_output_throughput_tok_s": _rate(written, seconds),
        "system_total_throughput_tok_s": _rate(given + written, seconds),
        "output_throughput_per_user_tok_s": percentiles([len(r.times) / r.latency for r in good])["average"],
        "output_throughput_per_gpu_tok_s": _rate(written, seconds) / ranks,
        "request_latency_percentiles_ms": latencies,
    }


def _streaming(good: Sequence[Record]) -> dict[str, Any]:
    tpot = percentiles([record.tpot for record in good if record.tpot is not None], 1e3)
    ttft, speeds = percentiles([record.ttft for record in good], 1e3), percentiles(_speeds(good))
    return {
        "token_output_speed_tok_s": speeds["average"],
        "avg_ttft_ms": ttft["average"],
        "avg_tpot_ms": tpot["average"],
        "tpot_percentiles": tpot,
        "ttft_percentiles": ttft,
        "gen_tps_percentiles": speeds,
        "inter_token_latency_percentiles": percentiles([gap for record in good for gap in record.gaps], 1e3),
    }


def _dataset(records: Sequence[Record]) -> dict[str, Any]:
    inputs = [len(record.request.token_ids) for record in records]
    outputs = [record.request.sampling.max_tokens for record in records]
    return {
        "isl_stats": percentiles(inputs),
        "osl_stats": percentiles(outputs),
        "seq_len_stats": percentiles([given + wanted for given, wanted in zip(inputs, outputs, strict=True)]),
        "num_requests": len(records),
    }


def _parallel_track(facts: Facts, seconds: float, before: Stats, after: Stats) -> dict[str, Any]:
    """Return the section that trtllm-bench does not have.

    Steps, preemptions, and the seconds and bytes of all-reduces count the traffic alone; peak memory counts from the
    engine's start.
    """
    waited = _difference(before.all_reduce_seconds, after.all_reduce_seconds)
    return {
        "schedule": facts.model.schedule,
        "n_tracks": facts.model.tracks,
        "track_depth": facts.track_depth,
        "syncs_per_forward": facts.syncs(after.sync_points_seen),
        "tensor_parallel_syncs_per_forward": facts.inspected["tensor_parallel_sync_points"],
        "hops_per_step": after.hops_per_step,
        "steps": after.steps - before.steps,
        "preemptions": after.preemptions - before.preemptions,
        "all_reduce_bytes": _difference(before.all_reduce_bytes, after.all_reduce_bytes),
        "all_reduce_bytes_per_token": facts.boundary_bytes,
        "all_reduce_seconds": waited,
        "all_reduce_share": None if waited is None else _rate(waited, seconds),
        "peak_memory_bytes": after.peak_memory_bytes,
    }


def _seconds(good: Sequence[Record]) -> float:
    """Return the seconds from the start of the first request to the end of the last one."""
    return max(r.start + r.latency for r in good) - min(r.start for r in good) if good else 0.0


def _speeds(good: Sequence[Record]) -> list[float]:
    """Return each request's tokens per second after its first token."""
    return [1 / record.tpot for record in good if record.tpot]


def _spread(samples: Sequence[float], scale: float, what: str) -> dict[str, float]:
    found = percentiles(samples, scale)
    order = {"avg": "average", "max": "maximum", "min": "minimum", "p99": "p99", "p90": "p90", "p50": "p50"}
    return {f"{short}_{what}": found[name] for short, name in order.items()}


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds else 0.0


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
