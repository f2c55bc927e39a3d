"""Percentiles, ratios, records and reports against numpy and against hand-made numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.bench.conftest import Engines
from trtllm_pt.bench.all_reduce import Series, fit, sizes_in_range
from trtllm_pt.bench.all_reduce import report as all_reduce_report
from trtllm_pt.bench.compare import rows as compare_rows
from trtllm_pt.bench.contenders import Contender, same_size, schedules_of
from trtllm_pt.bench.facts import Facts
from trtllm_pt.bench.results import Results, as_csv_text, percentiles, ratios
from trtllm_pt.bench.static_batch import Batch, Case, Prompts, check_case, row
from trtllm_pt.bench.traffic import Lengths, Load, Record, as_requests, read_dataset
from trtllm_pt.bench.traffic_report import columns, report
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.model.cost import parameters
from trtllm_pt.model.presets import preset
from trtllm_pt.requests.messages import Request, SamplingParams, Stats, Tokens

STATS = Stats(
    steps=10,
    active_requests=0,
    waiting_requests=0,
    preemptions=0,
    kv_pages_total=1,
    kv_pages_used=0,
    prompt_tokens=0,
    output_tokens=0,
    sync_points_seen=1,
    hops_per_step=2.0,
    all_reduce_seconds=0.0,
    all_reduce_bytes=0,
    peak_memory_bytes=3 * 10**9,
)


def test_percentiles_are_numpy_s() -> None:
    samples = np.random.default_rng(1).exponential(1.0, 137).tolist()
    found = percentiles(samples, 1e3)
    for rank in (50, 90, 95, 99):
        assert found[f"p{rank}"] == pytest.approx(1e3 * np.quantile(samples, rank / 100))
    assert found["average"] == pytest.approx(1e3 * sum(samples) / 137)
    assert (found["minimum"], found["maximum"]) == (1e3 * min(samples), 1e3 * max(samples))


def test_ratios_pair_the_rounds() -> None:
    ours, baseline = [1.0, 4.0, 9.0], [2.0, 2.0, 3.0]  # 0.5, 2, 3: not the ratio of the medians, which is 2
    found = ratios(ours, baseline)
    assert found["median"] == 2.0
    assert (found["minimum"], found["maximum"]) == (0.5, 3.0)
    assert found["p10"] == pytest.approx(np.percentile([0.5, 2, 3], 10))


def test_a_latency_row(engines: Engines) -> None:
    runs = [Batch(latency=0.10, ttft=0.04, tpot=0.02, all_reduce=0.01)]
    runs.append(Batch(latency=0.30, ttft=0.06, tpot=0.04, all_reduce=0.03))
    found = row(Facts.of(engines.pt), Case(2, 16, 4), runs, STATS)
    assert (found["batch_size"], found["input_length"], found["output_length"]) == (2, 16, 4)
    assert found["latency(ms)"] == 200
    assert found["percentile95(ms)"] == pytest.approx(290)
    assert found["tokens_per_sec"] == pytest.approx(2 * 8 / 0.4)
    assert found["generation_time(ms)"] == pytest.approx(150)
    assert found["generation_tokens_per_second"] == pytest.approx(2 * 6 / 0.3)
    assert (found["ttft(ms)"], found["tpot(ms)"]) == (50, 30)
    assert found["all_reduce_share"] == pytest.approx(0.1)
    assert (found["n_tracks"], found["track_depth"], found["syncs_per_token"]) == (2, 2, 1)
    assert found["all_reduce_bytes_per_token"] == 32 * 4
    assert (found["num_heads"], found["world_size"], found["peak_mem(gb)"]) == (4, 2, 3.0)


def test_what_an_engine_has_no_room_for_is_refused(engines: Engines) -> None:
    manifest = Facts.of(engines.pt).manifest
    check_case(manifest, Case(4, 100, 28))
    for case, words in (
        (Case(5, 8, 8), r"batch_size \(5\) must not exceed the engine's max_batch_size \(4\)"),
        (Case(1, 100, 29), r"input_output_len \(100,29\) is 129 tokens.* max_seq_len is 128"),
    ):
        with pytest.raises(UsageError, match=words):
            check_case(manifest, case)


def record(number: int, start: float, *times: float) -> Record:
    sampling = SamplingParams(max_tokens=len(times))
    made = Record(Request(id=number, token_ids=(1, 2, 3), sampling=sampling), start)
    for at, time in enumerate(times, 1):
        made.take(Tokens(id=number, token_ids=(7,), finish_reason="length" if at == len(times) else None), time)
    return made


def test_a_report_of_two_requests(engines: Engines) -> None:
    records = [record(0, 1.0, 1.5, 1.7, 2.1), record(1, 2.0, 2.4, 3.0)]
    records.append(Record(Request(id=2, token_ids=(1,)), 2.5))  # still running
    facts = Facts.of(engines.pt)
    found = report(facts, Load(), records, STATS, STATS, streaming=True)
    performance, streaming = found["performance"], found["streaming_metrics"]
    assert performance["total_latency_ms"] == pytest.approx(2000)
    assert performance["request_throughput_req_s"] == pytest.approx(1.0)
    assert performance["system_output_throughput_tok_s"] == pytest.approx(2.5)
    assert performance["system_total_throughput_tok_s"] == pytest.approx(5.5)
    assert performance["output_throughput_per_gpu_tok_s"] == pytest.approx(1.25)
    assert performance["avg_request_latency_ms"] == pytest.approx(1050)
    assert streaming["avg_ttft_ms"] == pytest.approx(450)
    assert streaming["tpot_percentiles"]["maximum"] == pytest.approx(600)
    assert streaming["inter_token_latency_percentiles"]["p50"] == pytest.approx(400)
    assert found["request_info"]["num_requests"] == 2 and found["dataset"]["num_requests"] == 3
    assert found["request_info"]["avg_num_concurrent_requests"] == pytest.approx(2.1 / 2)
    line = columns(facts, records, streaming=True)
    assert line["avg_sequence_latency(ms)"] == pytest.approx(1050)
    assert line["p50_inter_token_latency(ms)"] == pytest.approx(400)
    json.dumps(found)


def test_a_report_of_nothing_is_zeros(engines: Engines) -> None:
    found = report(Facts.of(engines.pt), Load(), [], STATS, STATS, streaming=True)
    assert found["performance"]["request_throughput_req_s"] == 0.0
    json.dumps(found)


def test_arrivals() -> None:
    assert Load(request_rate=4).arrivals(3, 0) == [0.0, 0.25, 0.5]
    assert Load(concurrency=2).arrivals(2, 0) == [0.0, 0.0]
    random = Load(request_rate=4, exponential=True).arrivals(4000, 0)
    assert random[0] == 0.0 and np.diff(random).mean() == pytest.approx(0.25, rel=0.1)
    assert np.diff(random).std() == pytest.approx(0.25, rel=0.1)  # exponential: as wide as long


def test_drawn_lengths_and_prompts_never_repeat() -> None:
    samples = Lengths(20, 5, 10, 2).draw(500, Prompts(64), 0)
    assert np.mean([len(s.input_ids) for s in samples]) == pytest.approx(20, abs=1)
    assert np.std([len(s.input_ids) for s in samples]) == pytest.approx(5, abs=1)
    assert min(s.output_len for s in samples) >= 1
    assert len({s.input_ids for s in samples}) == 500
    assert len(set(Prompts(64).batch(Case(50, 30, 1)))) == 50


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"samples": []}', "has no samples"),
        ('{"samples": [3]}', r"samples\[0\] must be an object, not a int"),
        ('{"samples": [{"input_ids": [1], "output_len": 0}]}', r"samples\[0\]: output_len \(0\) must be"),
        ('{"samples": [{"output_len": 1}]}', r"samples\[0\]: input_ids \(None\) must be a list"),
        ("[]", "holds a JSON list"),
    ],
)
def test_a_bad_dataset_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_dataset(tmp_path / "data.json")


def test_a_sample_that_does_not_fit_is_named(tmp_path: Path, engines: Engines) -> None:
    (tmp_path / "data.json").write_text('{"samples": [{"input_ids": [1, 99], "output_len": 1}]}')
    with pytest.raises(UsageError, match=r"samples\[0\]: token_ids\[1\] \(99\) must be a token id"):
        as_requests(read_dataset(tmp_path / "data.json"), Facts.of(engines.pt).manifest)


def test_results_are_whole_or_not_there(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = []
    results = Results({tmp_path / "out.csv": lambda: as_csv_text(rows), None: lambda: ""}, rows)
    results.save(now=True)
    assert not list(tmp_path.iterdir()) and not results.paths
    rows.append({"a": 1, "b": "x,y"})
    results.save()
    assert results.paths == [tmp_path / "out.csv"]
    rows.append({"a": 2, "b": None})
    results.save()  # within the same second
    assert (tmp_path / "out.csv").read_text() == 'a,b\n1,"x,y"\n'
    results.save(now=True)
    assert (tmp_path / "out.csv").read_text() == 'a,b\n1,"x,y"\n2,\n'
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    (tmp_path / "out.csv").unlink()
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(RunError, match=r"writing .*out\.csv failed"):
        results.save(now=True)


@pytest.mark.parametrize(("latency", "bandwidth"), [(5e-6, 2e9), (0.0, 1e9), (1e-3, float("inf"))])
def test_a_fit_finds_what_made_the_points(latency: float, bandwidth: float) -> None:
    sizes = [4**n for n in range(5, 12)]
    found = fit([(size, latency + size / bandwidth) for size in sizes])
    assert found.latency == pytest.approx(latency, abs=1e-12)
    assert found.bandwidth == pytest.approx(bandwidth) or found.bandwidth > 1e15
    assert found.error == pytest.approx(0.0, abs=1e-9)


def test_a_fit_has_no_negative_term() -> None:
    falling = fit([(1000, 3e-3), (10000, 2e-3), (100000, 1e-3)])
    assert falling.bandwidth == float("inf") and 1e-3 < falling.latency < 3e-3
    steep = fit([(1000, 1e-6), (10000, 2e-5), (100000, 3e-4)])
    assert steep.latency == 0.0 and steep.bandwidth > 0


def test_sizes() -> None:
    assert sizes_in_range(256, 256000000, 10) == [256, 2560, 25600, 256000, 2560000, 25600000, 256000000]
    assert sizes_in_range(8, 9, 2) == [8]


def test_an_all_reduce_report_is_what_a_machine_file_has() -> None:
    series = [Series("mpi", "float32", size, [1e-6 * size, 3e-6 * size, 2e-6 * size]) for size in (100, 1000)]
    series.append(Series("mpi", "float32", 10000))  # not measured yet
    found = all_reduce_report(series, 2)
    (curve,) = found["all_reduce"]
    assert curve["points"] == [(100, pytest.approx(2e-4)), (1000, pytest.approx(2e-3))]
    assert [row["duration (ms)"] for row in found["rows"]] == [pytest.approx(0.2), pytest.approx(2.0)]
    assert found["rows"][0]["algbw (GB/s)"] == found["rows"][0]["busbw (GB/s)"] == pytest.approx(100 / 2e-4 / 1e9)
    (fitted,) = found["fits"]
    assert fitted["latency_s"] == pytest.approx(0.0, abs=1e-9)
    assert fitted["bandwidth_bytes_per_s"] == pytest.approx(5e5)


def test_contenders_are_of_one_size() -> None:
    config = preset("pt-tiny")
    found = schedules_of(config, 2, None)
    assert next(iter(found)) == "tp" and found["pt-d4"] == config
    assert set(found) == {"tp", "pt-d1", "pt-d2", "pt-d4", "parallel", "ladder", "spd-4", "dtp-1", "dtp-2"} | {
        f"desync-{every}" for every in (1, 2, 4)
    }
    for name, variant in found.items():
        assert abs(parameters(variant) / parameters(config) - 1) < 0.02, name
    assert list(schedules_of(config, 2, ["pt-d2", "ladder"])) == ["tp", "ladder", "pt-d2"]
    with pytest.raises(UsageError, match=r"--schedules \('pt-d3'\): .*pt-d2"):
        schedules_of(config, 2, ["pt-d3"])


def test_a_comparison_s_rows(engines: Engines) -> None:
    contenders = [Contender("tp", Facts.of(engines.tp)), Contender("pt", Facts.of(engines.pt))]
    assert not list(same_size(contenders))
    rounds = [[Batch(0.4, 0.2, 0.04, 0.1), Batch(0.2, 0.1, 0.01, 0.02)], [Batch(0.6, 0.2, 0.02, 0.3)] * 2]
    first, second = compare_rows(contenders, {Case(1, 8, 4): rounds})
    assert first["tpot_ratio"] == first["tpot_ratio_min"] == 1.0
    assert second["tpot_ratio"] == pytest.approx(np.median([0.25, 1.0]))
    assert (second["tpot_ratio_min"], second["ttft_ratio_max"]) == (0.25, 1.0)
    assert second["tpot(ms)"] == pytest.approx(15) and second["all_reduce_share"] == pytest.approx(0.3)
    assert (first["syncs_per_token"], second["syncs_per_token"], second["hops_per_step"]) == (4, 1, 2)
    one_token = compare_rows(contenders, {Case(1, 8, 1): [[Batch(0.4, 0.4, 0.0, None)] * 2]})[1]
    assert one_token["tpot_ratio"] is None and one_token["all_reduce_share"] is None
