"""Machine files: the presets are whole, a mistake is one line with the field, the value and what would be right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trtllm_pt.errors import UsageError
from trtllm_pt.planner import MACHINES, load_engine, load_machine, machine_from_json
from trtllm_pt.planner.collective import AllReduce, all_reduce_seconds

GOOD = load_machine("8xH100").to_json()


@pytest.mark.parametrize("name", MACHINES)
def test_presets_name_their_sources(name: str) -> None:
    machine = load_machine(name)
    assert machine.name == name
    assert machine.devices == 8
    assert set(machine.sources) == {"memory_bytes", "memory_bandwidth", "matrix_rate", "launch_overhead"}
    assert all(each.source for each in machine.all_reduce)
    assert {each.ranks for each in machine.all_reduce} == {2, 4, 8}


def test_round_trip() -> None:
    assert machine_from_json(json.loads(json.dumps(GOOD)), "again") == load_machine("8xH100")


def test_memory_that_devices_share() -> None:
    machine = machine_from_json(GOOD | {"memory_bandwidth": 2e10, "memory_bandwidth_alone": 3e10}, "mine")
    assert machine.undisturbed().memory_bandwidth == 3e10 and machine.memory_bandwidth == 2e10
    assert machine_from_json(machine.to_json(), "again") == machine
    assert "memory_bandwidth_alone" not in load_machine("8xH100").to_json()
    with pytest.raises(UsageError, match=r"mine: memory_bandwidth_alone \(-1\) must be a number above 0"):
        machine_from_json(GOOD | {"memory_bandwidth_alone": -1}, "mine")


ROW = {"algorithm": "nccl", "ranks": 8, "points": [[1024, 1e-5], [2048, 2e-5]]}
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"memory_bandwidth": -1}, "mine: memory_bandwidth (-1) must be a number above 0: bytes per second"),
    ({"memory_bytes": "80 GB"}, "mine: memory_bytes ('80 GB') must be a number above 0: bytes of a device's memory"),
    ({"devices": 0}, "mine: devices (0) must be a whole number of at least 1"),
    ({"launch_overhead": None}, "mine: launch_overhead (None) must be a number of at least 0: seconds per kernel"),
    ({"matrix_rate": 9.9e14}, "mine: matrix_rate (990000000000000.0) must be an object such as"),
    (
        {"matrix_rate": {"bfloat16": True}},
        "mine: matrix_rate.bfloat16 (True) must be a number above 0: FLOP per second",
    ),
    ({"memory_bandwith": 1}, "unknown key 'memory_bandwith' in mine; did you mean 'memory_bandwidth'?"),
    ({"all_reduce": [ROW | {"ranks": 1}]}, "mine: all_reduce[0].ranks (1) must be a whole number of at least 2"),
    (
        {"all_reduce": [ROW | {"points": [[1, 2, 3]]}]},
        "mine: all_reduce[0].points ([[1, 2, 3]]) must be a list of [bytes,",
    ),
    ({"all_reduce": [ROW | {"points": [[2048, 1], [1024, 1]]}]}, "1024 bytes after 2048"),
    (
        {"all_reduce": [ROW | {"points": [[2048, 0]]}]},
        "mine: all_reduce[0].points seconds (0) must be a number above 0",
    ),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=[str(i) for i in range(len(MISTAKES))])
def test_mistakes(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        machine_from_json(GOOD | change, "mine")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_unknown(tmp_path: Path) -> None:
    less = {key: value for key, value in GOOD.items() if key != "devices"}
    with pytest.raises(UsageError, match="mine lacks 'devices'"):
        machine_from_json(less, "mine")
    with pytest.raises(UsageError, match="unknown machine '8xh100'; did you mean '8xH100'"):
        load_machine("8xh100")
    with pytest.raises(UsageError, match="unknown engine 'vlm'; did you mean 'vllm'"):
        load_engine("vlm")
    with pytest.raises(UsageError, match="has no rate for float8"):
        load_machine("8xH100").rate("float8")


def test_all_reduce_between_and_beyond_points() -> None:
    slow = AllReduce("nccl", 4, ((100, 10.0), (200, 20.0), (400, 30.0)))
    assert [slow.seconds(size) for size in (1, 100, 150, 300, 400, 600)] == [10, 10, 15, 25, 30, 40]
    assert slow.with_latency(1.3).seconds(300) == pytest.approx(28)


def test_algorithms_are_used_within_their_sizes() -> None:
    fast = AllReduce("custom", 4, ((10, 1.0), (100, 2.0)))
    slow = AllReduce("nccl", 4, ((10, 5.0), (1000, 50.0)))
    both = (fast, slow)

    def time(size: float, *algorithms: str, ranks: int = 4) -> float:
        return all_reduce_seconds(both, algorithms, ranks, size)

    assert time(50, "custom", "nccl") < 2 < 5 < time(50, "nccl")
    assert time(200, "custom", "nccl") == slow.seconds(200)  # custom was not measured there
    assert time(2000, "custom", "nccl") == slow.seconds(2000)
    assert time(50, "mpi") == fast.seconds(50)  # none of the engine's own: what there is
    assert time(50, "nccl", ranks=1) == 0
    with pytest.raises(UsageError, match=r"no times for 8 ranks, only for \[4\]"):
        time(50, "nccl", ranks=8)
