"""The configs in benchmarks/models are what the documentation says."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtllm_pt.bench.contenders import schedules_of
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.cost import parameters
from trtllm_pt.model.schedule import schedule_of, sync_points

MODELS = Path(__file__).parents[2] / "benchmarks" / "models"


@pytest.mark.parametrize(("name", "spd"), [("spd-half-4m", "spd-3"), ("spd-half-120m", "spd-15")])
def test_spd_of_half_the_layers_beside_tensor_parallelism(name: str, spd: str) -> None:
    both = schedules_of(ModelConfig.from_file(MODELS / f"{name}.json"), 2, [spd])
    tp, half = both["tp"], both[spd]
    assert list(both) == ["tp", spd]
    assert 4 * sync_points(schedule_of(half)) == 3 * sync_points(schedule_of(tp))
    assert abs(parameters(half) / parameters(tp) - 1) < 0.01
