"""What must hold on any machine: monotonicities, and numbers that others count."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_pt.errors import UsageError
from trtllm_pt.model.cost import bytes_per_rank, kv_bytes_per_token, parameters
from trtllm_pt.model.presets import PRESETS, preset
from trtllm_pt.model.schedule import schedule_of, sync_points
from trtllm_pt.planner import Machine, Workload, load_engine, load_machine, plan, predict
from trtllm_pt.planner.collective import AllReduce
from trtllm_pt.planner.forward import Model
from trtllm_pt.planner.kernels import Work
from trtllm_pt.planner.variants import variants

H100 = load_machine("8xH100")
TRT = load_engine("tensorrt_llm")
SMALL = Workload(1024, 128)
NAMES = st.sampled_from(["dense-6b", "pt-6b-d2", "pt-6b-d8", "pt-moe-tiny", "dense-150m"])
WORKS = st.builds(Work, st.integers(1, 64), st.integers(1, 3000), st.integers(0, 5000))
FACTORS = st.floats(1, 10)


def seconds(name: str, machine: Machine, work: Work) -> float:
    return Model(preset(name), 8, "bfloat16", machine, TRT).forward(work).seconds


@settings(max_examples=30, deadline=None)
@given(NAMES, WORKS, FACTORS)
def test_a_faster_machine_is_never_slower(name: str, work: Work, factor: float) -> None:
    before = seconds(name, H100, work) * (1 + 1e-12)
    assert seconds(name, replace(H100, memory_bandwidth=H100.memory_bandwidth * factor), work) <= before
    rates = {dtype: rate * factor for dtype, rate in H100.matrix_rate.items()}
    assert seconds(name, replace(H100, matrix_rate=rates), work) <= before
    assert seconds(name, H100.with_latency(1 / factor), work) <= before
    quick = tuple(
        replace(each, points=tuple((size, time / factor) for size, time in each.points)) for each in H100.all_reduce
    )
    assert seconds(name, replace(H100, all_reduce=quick), work) <= before


def growing(curve: AllReduce) -> AllReduce:
    """The curve with each time at least that of every smaller message."""
    times = accumulate((time for _, time in curve.points), max)
    return replace(curve, points=tuple((size, time) for (size, _), time in zip(curve.points, times, strict=True)))


@settings(max_examples=30, deadline=None)
@given(NAMES, WORKS, st.integers(1, 500))
def test_more_work_takes_longer(name: str, work: Work, more: int) -> None:
    # A measured all-reduce of more bytes is now and then a little faster; here it never is.
    machine = replace(H100, all_reduce=tuple(map(growing, H100.all_reduce)))
    before = seconds(name, machine, work)
    assert seconds(name, machine, replace(work, past=work.past + more)) >= before
    assert seconds(name, machine, replace(work, new=work.new + more)) > before


@settings(max_examples=30, deadline=None)
@given(WORKS)
def test_the_share_of_all_reduces_falls_with_d(work: Work) -> None:
    models = [Model(preset("pt-6b").replace(block_depth=depth), 8, "bfloat16", H100, TRT) for depth in (1, 2, 4, 8)]
    shares = [model.forward(work).waiting for model in models]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 1.5 * shares[2]


def test_pt_does_not_repeat_the_norms() -> None:
    """In prefill dense TP norms the full width on every rank, a track its own: PT gains more than its collectives."""
    dense, narrow = (
        Model(preset(name), 8, "bfloat16", H100, TRT).forward(Work(1, 8192)) for name in ("dense-30b", "pt-30b-d8")
    )
    assert dense.seconds - narrow.seconds > dense.all_reduce - narrow.all_reduce


def test_ladder_hides_what_it_overlaps() -> None:
    tp = preset("dense-30b")
    models = {name: Model(tp.replace(schedule=name), 8, "bfloat16", H100, TRT) for name in ("tp", "ladder", "parallel")}
    for work in (Work(1, 1, 1000), Work(1, 4096)):
        found = {name: model.forward(work) for name, model in models.items()}
        assert found["ladder"].all_reduce < 0.1 * found["tp"].all_reduce
        hidden = found["tp"].seconds - found["tp"].all_reduce
        assert 1.01 * hidden < found["ladder"].seconds < found["tp"].seconds  # overlap has its price
        assert found["parallel"].all_reduce == pytest.approx(found["tp"].all_reduce / 2)
    slow = H100.with_latency(1000)  # too long to hide
    assert Model(tp.replace(schedule="ladder"), 8, "bfloat16", slow, TRT).forward(Work(1, 1)).all_reduce > 0.1


@pytest.mark.parametrize("name", ["dense-30b", "pt-13b", "pt-moe-tiny"])
@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_memory_is_what_cost_counts(name: str, ranks: int) -> None:
    config = preset(name)
    found = predict(config, ranks, H100, TRT, SMALL)
    assert found.weight_bytes == bytes_per_rank(config, ranks, "bfloat16")
    room = TRT.cache_fraction * (H100.memory_bytes - found.weight_bytes)
    assert found.kv_tokens == int(room / kv_bytes_per_token(config, ranks, "bfloat16"))
    assert found.sync_points == (sync_points(schedule_of(config)) if ranks > 1 else 0)
    assert ranks > 1 or found.served.step.all_reduce == 0


@pytest.mark.parametrize("name", PRESETS)
def test_variants_have_as_many_parameters(name: str) -> None:
    config = preset(name)
    found = list(variants(config, config.tracks if config.tracks > 1 else 8))
    assert found[0] == config
    assert len(set(map(str, found))) == len(found)
    kinds = {each.schedule for each in found}
    assert {"tp", "parallel", "ladder", "pt"} <= kinds
    tolerance = 0.002 if parameters(config) > 1e9 else 0.05
    for each in found:
        assert parameters(each) == pytest.approx(parameters(config), rel=tolerance)


@pytest.mark.parametrize("size", ["6b", "13b", "30b"])
def test_variants_of_the_paper_s_sizes_are_the_presets(size: str) -> None:
    found = list(variants(preset(f"dense-{size}"), 8))
    assert preset(f"pt-{size}").hidden_size in {each.hidden_size for each in found if each.schedule == "pt"}
    back = [each for each in variants(preset(f"pt-{size}"), 8) if each.schedule == "tp"]
    assert [each.hidden_size for each in back] == [preset(f"dense-{size}").hidden_size]


def test_a_twin_of_a_model_that_is_mostly_embedding() -> None:
    config = preset("pt-tiny").replace(vocab_size=8192)
    dense = next(each for each in variants(config, 8) if each.schedule == "tp")
    assert parameters(dense) == pytest.approx(parameters(config), rel=0.05)
    assert dense.intermediate_size >= dense.hidden_size // 4


def test_one_request_at_a_time_by_hand() -> None:
    found = predict(preset("dense-30b"), 8, H100, TRT, SMALL).served
    assert found.ttft == TRT.request_seconds + found.prompt.seconds
    assert found.tpot == found.step.seconds
    assert found.tokens_per_second == pytest.approx(128 / (found.prompt.seconds + 127 * found.tpot))


def test_load() -> None:
    """Rates from slow to overrun: batch and wait grow, the throughput follows the rate up to the most there is."""
    config = preset("pt-30b")
    found = [predict(config, 8, H100, TRT, Workload(1024, 128, request_rate=rate)).served for rate in (0.1, 2, 10, 999)]
    assert [each.in_flight for each in found] == sorted(each.in_flight for each in found)
    assert [round(each.tokens_per_second / 128, 3) for each in found[:3]] == [0.1, 2, 10]
    waits = [each.ttft for each in found[:3] if each.ttft is not None]
    assert waits == sorted(waits)
    assert len(waits) == 3
    assert found[3].ttft is None
    full = predict(config, 8, H100, TRT, Workload(1024, 128, concurrency=256)).served
    assert found[3].tokens_per_second == pytest.approx(full.tokens_per_second)
    queued = predict(config, 8, H100, TRT, Workload(1024, 128, concurrency=512)).served
    assert queued.tokens_per_second == full.tokens_per_second
    assert queued.ttft is not None
    assert full.ttft is not None
    assert queued.ttft > full.ttft


def test_recommendation_is_the_smallest_d_near_the_best() -> None:
    made = plan(preset("pt-30b"), H100, TRT, SMALL)
    assert made.recommended is not None
    times = {each.name: each.request_seconds(SMALL.output) for each in made.predictions}
    near = [name for name, time in times.items() if min(times.values()) >= 0.98 * time and name.startswith("pt")]
    assert made.recommended.name == min(near)
    tiny = replace(H100, memory_bytes=1e9)
    assert plan(preset("pt-30b"), tiny, TRT, SMALL).recommended is None


def test_mistakes() -> None:
    with pytest.raises(UsageError, match=r"ranks \(16\) must not exceed the devices of 8xH100 \(8\)"):
        predict(preset("pt-6b"), 16, H100, TRT, SMALL)
    with pytest.raises(UsageError, match=r"ranks \(3\) must divide tracks \(8\)"):
        plan(preset("pt-6b"), H100, TRT, SMALL, ranks=3)
    with pytest.raises(UsageError, match=r"request_rate \(0\) must be above 0"):
        Workload(1, 1, request_rate=0)
