"""Models, machines and workloads that nobody thought of: figures that make sense, or one line that says why not."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.planner import MACHINES, Machine, Plan, Prediction, Workload, load_engine, load_machine, plan, predict
from trtllm_pt.planner.collective import AllReduce
from trtllm_pt.planner.variants import variants

ENGINES = st.sampled_from(["tensorrt_llm", "vllm", "gpt_fast", "embedded"])
PRESETS = st.sampled_from(MACHINES).map(load_machine)
FACTORS = st.floats(1, 20)


@st.composite
def made_up_machines(draw: st.DrawFn) -> Machine:
    """From a slow network of processors to what may come after B200, measured on 2 to 16 ranks."""
    latency, bandwidth = draw(st.floats(1e-6, 5e-3)), draw(st.floats(1e8, 2e12))
    curves = [
        AllReduce(
            "nccl", ranks, tuple((size, latency * math.log2(ranks) + size / bandwidth) for size in (256, 1 << 26))
        )
        for ranks in (2, 3, 4, 8, 16)
    ]
    memory = draw(st.floats(2e10, 2e13))
    return Machine(
        name="made up",
        devices=16,
        memory_bytes=draw(st.floats(4e9, 1e12)),
        memory_bandwidth=memory,
        matrix_rate={"bfloat16": draw(st.floats(1e11, 1e16)), "float32": 1e11},
        launch_overhead=draw(st.floats(0, 1e-5)),
        all_reduce=tuple(curves),
        sources={},
        memory_bandwidth_alone=draw(st.sampled_from([None, 1.5 * memory])),
    )


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Dense models, from a few million parameters to hundreds of billions, some with experts or windows."""
    heads = draw(st.sampled_from([8, 12, 16, 32, 40, 64, 128]))
    fields: dict[str, Any] = {
        "num_layers": draw(st.integers(1, 130)),
        "hidden_size": 64 * draw(st.integers(1, 256)),
        "num_heads": heads,
        "num_kv_heads": draw(st.sampled_from([each for each in (1, 4, 8, heads) if heads % each == 0])),
        "head_size": draw(st.sampled_from([64, 128])),
        "intermediate_size": 64 * draw(st.integers(1, 800)),
        "vocab_size": draw(st.integers(256, 262144)),
        "max_position_embeddings": 1 << 20,
        "tie_embeddings": draw(st.booleans()),
        "qk_norm": draw(st.booleans()),
    }
    if draw(st.booleans()):
        fields |= {"attention_pattern": ("sliding", "global"), "window": draw(st.integers(1, 8192))}
    if draw(st.booleans()):
        experts = draw(st.sampled_from([4, 64]))
        chosen = draw(st.integers(1, experts))
        fields |= {"ffn_pattern": ("dense", "moe"), "num_experts": experts, "experts_per_token": chosen}
        fields["moe_intermediate_size"] = 64 * draw(st.integers(1, 64))
    return ModelConfig(**fields)


WORKLOADS = st.builds(
    Workload,
    st.integers(1, 300_000),
    st.integers(1, 20_000),
    st.integers(1, 2000),
    st.none() | st.floats(1e-3, 1e4),
    st.integers(1, 2048),
)


def check(found: Prediction) -> None:
    served = found.served
    for figure in (served.tpot, served.tokens_per_second, served.prompt.seconds, served.step.seconds):
        assert math.isfinite(figure) and figure > 0
    assert served.ttft is None or (math.isfinite(served.ttft) and served.ttft >= served.prompt.seconds)
    assert 0 <= served.step.waiting < 1 and 0 <= served.prompt.waiting < 1
    assert found.kv_tokens >= 0 and found.weight_bytes > 0


def planned(config: ModelConfig, machine: Machine, engine: str, load: Workload, ranks: int) -> Plan | None:
    try:
        return plan(config, machine, load_engine(engine), load, ranks)
    except UsageError as mistake:
        assert "\n" not in str(mistake)
        return None


@settings(max_examples=30, deadline=None)
@given(configs(), PRESETS | made_up_machines(), ENGINES, WORKLOADS, st.sampled_from([1, 2, 3, 4, 8, 16]))
def test_any_plan_makes_sense(config: ModelConfig, machine: Machine, engine: str, load: Workload, ranks: int) -> None:
    found = planned(config, machine, engine, load, ranks)
    if found is None:
        return
    for each in found.predictions:
        check(each)
        assert ranks > 1 or (each.sync_points == 0 and each.served.step.all_reduce == 0)
    names = [each.name for each in found.predictions]
    assert len(set(names)) == len(names)
    assert (found.recommended is None) == (not any(each.fits for each in found.predictions))


@settings(max_examples=30, deadline=None)
@given(
    configs(), PRESETS | made_up_machines(), st.sampled_from(["tensorrt_llm", "vllm", "gpt_fast"]), WORKLOADS, FACTORS
)
def test_trends(config: ModelConfig, machine: Machine, engine: str, load: Workload, factor: float) -> None:
    """More of anything is never slower, a farther network never faster, a larger D never slower."""
    machine = replace(machine, memory_bandwidth_alone=None)
    try:
        names = list(variants(config, 8))
    except UsageError:
        return

    def times(at: Machine, model: ModelConfig, work: Workload = load) -> tuple[float, float]:
        found = predict(model, 8, at, load_engine(engine), replace(work, request_rate=None, concurrency=1)).served
        return found.prompt.seconds, found.tpot

    def no_slower(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return all(a <= b * (1 + 1e-9) for a, b in zip(one, other, strict=True))

    for model in names:
        try:
            now = times(machine, model)
        except UsageError:
            continue
        assert no_slower(times(replace(machine, memory_bandwidth=machine.memory_bandwidth * factor), model), now)
        rates = {name: rate * factor for name, rate in machine.matrix_rate.items()}
        assert no_slower(times(replace(machine, matrix_rate=rates), model), now)
        assert no_slower(now, times(machine.with_latency(factor), model))
        assert no_slower(now, times(machine, model, replace(load, input=2 * load.input)))
        if model.schedule == "pt" and 2 * (model.block_depth or 1) <= model.num_layers:
            deeper = model.replace(block_depth=2 * (model.block_depth or 1))
            assert no_slower(times(machine, deeper), now)


@settings(max_examples=20, deadline=None)
@given(made_up_machines(), st.sampled_from([2, 4, 8, 16]), st.integers(1, 64))
def test_the_gain_of_pt_grows_with_the_latency(machine: Machine, ranks: int, batch: int) -> None:
    """Of dense and PT at equal parameters: the farther the network, the more a removed sync is worth."""
    dense = ModelConfig(
        num_layers=16, hidden_size=2048, num_heads=32, num_kv_heads=16, head_size=64, intermediate_size=5504,
        vocab_size=32000, max_position_embeddings=4096,
    )  # fmt: skip
    machine = replace(machine, memory_bandwidth_alone=None)
    narrow = next(each for each in variants(dense, 16) if each.schedule == "pt" and each.block_depth == 8)
    load = Workload(512, 64, concurrency=batch)
    ratios = []
    for factor in (1, 3, 10, 100):
        at = machine.with_latency(factor)
        one, other = (predict(each, ranks, at, load_engine("embedded"), load).served for each in (narrow, dense))
        ratios.append(one.step.seconds / other.step.seconds)
    assert all(later <= sooner * (1 + 1e-9) for sooner, later in pairwise(ratios))


@pytest.mark.parametrize("machine", MACHINES)
def test_published_machines_in_order(machine: str) -> None:
    """A 70B on each: slower than its memory alone, faster than 20 ms; A100 the slowest, B200 the fastest."""
    llama = ModelConfig(
        num_layers=80, hidden_size=8192, num_heads=64, num_kv_heads=8, head_size=128, intermediate_size=28672,
        vocab_size=128256, max_position_embeddings=131072,
    )  # fmt: skip
    at, engine = load_machine(machine), load_engine("tensorrt_llm")
    found = predict(llama, 8, at, engine, Workload(1024, 128))
    assert found.weight_bytes / at.memory_bandwidth < found.served.tpot < 2e-2
    slowest, fastest = (
        predict(llama, 8, load_machine(name), engine, Workload(1024, 128)) for name in ("8xA100", "8xB200")
    )
    assert fastest.served.tpot <= found.served.tpot <= slowest.served.tpot
