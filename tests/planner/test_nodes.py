"""Machines of several nodes: two kinds of links, what a second node brings, and mistakes in their files."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.planner.test_command import run
from trtllm_pt.errors import UsageError
from trtllm_pt.model.presets import preset
from trtllm_pt.planner import Workload, load_engine, load_machine, machine_from_json, plan, predict
from trtllm_pt.planner.network import NETWORKS, Network

ENGINE = load_engine("tensorrt_llm")
LOAD = Workload(1024, 128)
LINK = Network("link", ((100, 10.0), (200, 11.0)))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("nodes", [2, 4])
def test_presets_have_both_links_and_their_sources(nodes: int, network: str) -> None:
    machine = load_machine(f"{nodes}x8xH100-{network}")
    assert (machine.nodes, machine.devices, machine.all_devices) == (nodes, 8, 8 * nodes)
    assert machine.network is not None and machine.network.source
    assert machine_from_json(json.loads(json.dumps(machine.to_json())), "again") == machine
    assert machine.node().all_reduce == load_machine("8xH100").all_reduce and machine.node().all_devices == 8


@pytest.mark.parametrize(
    ("size", "microseconds"),
    [(8, 27.80), (1024, 30.31), (8192, 38.24), (65536, 63.41), (16777216, 203.0), (67108864, 467.9)],
)
def test_infiniband_gives_the_published_all_reduces_of_two_nodes(size: int, microseconds: float) -> None:
    machine = load_machine("2x8xH100-ib400")
    assert machine.all_reduce_seconds(("custom", "nccl"), 16, size) * 1e6 == pytest.approx(microseconds, rel=1e-3)


def test_nodes_add_their_sums_by_the_faster_of_two_algorithms() -> None:
    assert [LINK.seconds(nodes, 200) for nodes in (1, 2, 4, 8)] == [0, 11, 22, 33]
    # With large messages it is the bytes that count: 2 (n - 1) / n of them instead of log2 n.
    large = 100 + 100 * 1000
    assert LINK.seconds(8, large) == 2 * 3 * 10 + 2 * 7 / 8 * 1000


def test_ranks_of_one_node_do_not_use_the_network() -> None:
    machine = load_machine("4x8xH100-eth25")
    custom = ("custom", "nccl")
    for ranks in (2, 4, 8):
        assert machine.all_reduce_seconds(custom, ranks, 4096) == machine.node().all_reduce_seconds(custom, ranks, 4096)
    within, link = machine.all_reduce_seconds(custom, 8, 4096), machine.network
    assert link is not None
    assert machine.all_reduce_seconds(custom, 32, 4096) == within + link.seconds(4, 4096)
    with pytest.raises(UsageError, match=r"ranks \(12\) must fill the nodes of 4x8xH100-eth25, which have 8 devices"):
        machine.all_reduce_seconds(custom, 12, 4096)


@pytest.mark.parametrize("network", NETWORKS)
def test_fewer_syncs_gain_more_from_a_second_node(network: str) -> None:
    made = plan(preset("dense-30b"), load_machine(f"2x8xH100-{network}"), ENGINE, LOAD)
    gains = [made.gain(each) for each in made.predictions if each.name in ("tp", "pt D=1", "pt D=2", "pt D=8")]
    assert None not in gains and gains == sorted(gains, key=lambda gain: gain or 0)
    assert made.nodes == 2 and made.best_on_one_node() is not None
    alone = predict(preset("dense-30b"), 8, load_machine("8xH100"), ENGINE, LOAD)
    assert made.one_node["tp"].served == alone.served


def test_a_slower_network_is_never_faster() -> None:
    machines = [load_machine(f"2x8xH100-{name}") for name in ("ib400", "eth100", "eth25")]
    plans = [plan(preset("dense-30b"), machine, ENGINE, LOAD) for machine in machines]
    times = [[each.served.tpot for each in made.predictions] for made in plans]
    for fast, slow in pairwise(times):
        assert all(a < b for a, b in zip(fast, slow, strict=True))


def test_the_table_says_what_a_second_node_brings() -> None:
    found = run("dense-30b", "--machine", "2x8xH100-eth100")
    assert "to one node: the speed of a request, divided by that of the same model on one node." in found
    [tp] = [line for line in found.splitlines() if line.startswith("tp ")]
    assert tp.endswith(" 0.33")
    assert "One node's best is pt D=4; 2 nodes reach 1.06 times that: worth it." in found
    assert "to one node" not in run("dense-30b", "--machine", "2x8xH100-eth100", "--ranks", "8")
    described = json.loads(run("dense-30b", "--machine", "2x8xH100-eth100", "--json"))
    assert described["nodes"] == 2 and described["one_node"]["tp"]["gain_of_all_nodes"] == pytest.approx(0.33, abs=5e-3)


def test_a_plot_of_several_nodes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run("dense-30b", "--machine", "2x8xH100-ib400", "--plot", str(tmp_path / "plan.svg"))
    assert "on one node" in (tmp_path / "plan.svg").read_text()


GOOD = load_machine("2x8xH100-ib400").to_json()
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"nodes": 1}, "mine: nodes (1) must be a whole number of at least 2"),
    ({"network": "ib400"}, "mine: network ('ib400') must be an object with name and points"),
    ({"network": {"name": "x"}}, "mine: network lacks 'points'"),
    ({"network": {"name": "x", "points": [[8]]}}, "mine: network.points ([[8]]) must be a list of [bytes, seconds]"),
    ({"network": {"name": "x", "points": [[8, 0]]}}, "mine: network.points seconds (0) must be a number above 0"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=[str(i) for i in range(len(MISTAKES))])
def test_mistakes(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        machine_from_json(GOOD | change, "mine")
    assert str(caught.value).startswith(message)


def test_a_network_without_nodes_and_an_unknown_one() -> None:
    alone = {key: value for key, value in GOOD.items() if key != "nodes"}
    with pytest.raises(UsageError, match="mine: nodes and network belong together"):
        machine_from_json(alone, "mine")
    with pytest.raises(UsageError, match="unknown network 'ib800' in '2x8xH100-ib800'; the networks are eth100, eth25"):
        load_machine("2x8xH100-ib800")
    with pytest.raises(UsageError, match="unknown machine '2x8xH1000-ib400'"):
        load_machine("2x8xH1000-ib400")
