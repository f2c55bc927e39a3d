"""A machine: the rates at which each of its devices computes and reads, and the times of its all-reduces.

It can have several nodes with a network between them, such as `2x8xH100-ib400`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import read_json, unknown_key
from trtllm_pt.planner.collective import AllReduce, all_reduce_seconds
from trtllm_pt.planner.network import NETWORKS, Network, network_preset

_ALONE = "memory_bandwidth_alone"
_SEVERAL = re.compile(r"(\d+)x(\d+x\w+)-(\w+)")  # 2x8xH100-ib400: nodes, the machine of each, the network
_FOLDER = Path(__file__).parent / "machines"
MACHINES = tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


@dataclass(frozen=True, slots=True)
class Machine:
    """Nodes with `devices` of one kind in each, one per rank. Rates are peaks, of which an `Engine` reaches a share."""

    name: str
    devices: int
    memory_bytes: float
    memory_bandwidth: float  # bytes per second
    matrix_rate: Mapping[str, float]  # FLOP per second by dtype
    launch_overhead: float  # seconds of a kernel that does almost nothing, among many such kernels
    all_reduce: tuple[AllReduce, ...]
    sources: Mapping[str, str]
    memory_bandwidth_alone: float | None = None  # of a device while the others wait, if they share a memory
    nodes: int = 1
    network: Network | None = None  # between the nodes, if there are several

    @property
    def all_devices(self) -> int:
        """The devices of all nodes."""
        return self.nodes * self.devices

    def node(self) -> Machine:
        """Return one node of the machine."""
        return replace(self, name=f"one node of {self.name}", nodes=1, network=None)

    def all_reduce_seconds(self, algorithms: Collection[str], ranks: int, size: float) -> float:
        """Return the seconds of an all-reduce of `size` bytes by an engine with these algorithms.

        Ranks fill one node after the other. Each node adds its ranks' messages, and then the nodes add their sums.
        Raises UsageError if the ranks do not fill nodes, or if the machine has no times for them.
        """
        if ranks <= self.devices or self.network is None:
            return all_reduce_seconds(self.all_reduce, algorithms, ranks, size)
        nodes, rest = divmod(ranks, self.devices)
        if rest:
            raise UsageError(f"ranks ({ranks}) must fill the nodes of {self.name}, which have {self.devices} devices")
        within = all_reduce_seconds(self.all_reduce, algorithms, self.devices, size)
        return within + self.network.seconds(nodes, size)

    def undisturbed(self) -> Machine:
        """Return the machine with the bandwidth that each device has while the others wait."""
        return replace(self, memory_bandwidth=self.memory_bandwidth_alone or self.memory_bandwidth)

    def rate(self, dtype: str) -> float:
        """Return the matrix rate in FLOP per second. Raises UsageError if the machine has none for this dtype."""
        if dtype not in self.matrix_rate:
            raise UsageError(f"matrix_rate: {self.name} has no rate for {dtype}; it has {', '.join(self.matrix_rate)}")
        return self.matrix_rate[dtype]

    def with_latency(self, factor: float) -> Machine:
        """Return the machine with `factor` times the latency of every all-reduce."""
        return replace(
            self,
            all_reduce=tuple(each.with_latency(factor) for each in self.all_reduce),
            network=None if self.network is None else self.network.with_latency(factor),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON that `machine_from_json` reads."""
        rows = [
            {"algorithm": each.algorithm, "ranks": each.ranks, "points": [list(p) for p in each.points]}
            | ({"source": each.source} if each.source else {})
            for each in self.all_reduce
        ]
        plain = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if self.network is None:
            del plain["nodes"]
        else:
            plain["network"] = self.network.to_json()
        return plain | {
            "matrix_rate": dict(self.matrix_rate),
            "all_reduce": rows,
            "sources": dict(self.sources),
        }


def load_machine(name: str) -> Machine:
    """Load a preset by its name, several nodes of a preset by a name such as `2x8xH100-ib400`, or a file by its path.

    Raises UsageError if there is no such machine, or if a field of the file is wrong.
    """
    if name in MACHINES:
        return machine_from_json(read_json(_FOLDER / f"{name}.json"), name)
    if (several := _SEVERAL.fullmatch(name)) and several[2] in MACHINES:
        return _nodes_of(several[2], int(several[1]), several[3], name)
    path = Path(name)
    if path.suffix != ".json" and not path.exists():
        near = difflib.get_close_matches(name, MACHINES, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"the presets are {', '.join(MACHINES)}"
        raise UsageError(f"unknown machine {name!r}; {hint}")
    return machine_from_json(read_json(path), str(path))


def _nodes_of(preset: str, nodes: int, network: str, name: str) -> Machine:
    if network not in NETWORKS:
        raise UsageError(f"unknown network {network!r} in {name!r}; the networks are {', '.join(NETWORKS)}")
    several = {"name": name, "nodes": nodes, "network": dict(network_preset(network))}
    return machine_from_json(read_json(_FOLDER / f"{preset}.json") | several, name)


def machine_from_json(data: dict[str, Any], where: str) -> Machine:
    """Read a machine. Raises UsageError that names the field of `where`, its value and what would be right."""
    _keys(data, (f.name for f in fields(Machine)), ("sources", _ALONE, "nodes", "network"), where)
    name = data["name"]
    if not isinstance(name, str) or not name:
        raise UsageError(f"{where}: name ({name!r}) must be a string")
    rates = data["matrix_rate"]
    if not isinstance(rates, dict) or not rates:
        raise UsageError(f'{where}: matrix_rate ({rates!r}) must be an object such as {{"bfloat16": 9.9e14}}')
    sources = data.get("sources", {})
    if not isinstance(sources, dict):
        raise UsageError(f"{where}: sources ({sources!r}) must be an object of strings")
    if ("nodes" in data) != ("network" in data):
        raise UsageError(f"{where}: nodes and network belong together: the network is the link between the nodes")
    return Machine(
        name=name,
        devices=_whole(data["devices"], f"{where}: devices"),
        memory_bytes=_number(data["memory_bytes"], f"{where}: memory_bytes", "bytes of a device's memory"),
        memory_bandwidth=_number(data["memory_bandwidth"], f"{where}: memory_bandwidth", "bytes per second"),
        matrix_rate={k: _number(v, f"{where}: matrix_rate.{k}", "FLOP per second") for k, v in rates.items()},
        launch_overhead=_number(data["launch_overhead"], f"{where}: launch_overhead", "seconds per kernel", least=0),
        all_reduce=all_reduces_from_json(data["all_reduce"], where),
        sources={str(k): str(v) for k, v in sources.items()},
        memory_bandwidth_alone=(
            None if data.get(_ALONE) is None else _number(data[_ALONE], f"{where}: {_ALONE}", "bytes per second")
        ),
        nodes=_whole(data.get("nodes", 2), f"{where}: nodes", least=2) if "network" in data else 1,
        network=_network(data["network"], f"{where}: network") if "network" in data else None,
    )


def _network(row: Any, where: str) -> Network:
    if not isinstance(row, dict):
        raise UsageError(f"{where} ({row!r}) must be an object with name and points")
    _keys(row, ("name", "points", "source"), ("source",), where)
    return Network(str(row["name"]), _points(row["points"], where), str(row.get("source", "")))


def all_reduces_from_json(rows: Any, where: str) -> tuple[AllReduce, ...]:
    """Read the measurements of all-reduces. Raises UsageError if one of them is wrong."""
    if not isinstance(rows, list):
        raise UsageError(f"{where}: all_reduce ({rows!r}) must be a list of measurements")
    return tuple(_all_reduce(row, f"{where}: all_reduce[{i}]") for i, row in enumerate(rows))


def _all_reduce(row: Any, where: str) -> AllReduce:
    if not isinstance(row, dict):
        raise UsageError(f"{where} ({row!r}) must be an object with algorithm, ranks and points")
    _keys(row, ("algorithm", "ranks", "points", "source"), ("source",), where)
    pairs = _points(row["points"], where)
    ranks = _whole(row["ranks"], f"{where}.ranks", least=2)
    return AllReduce(str(row["algorithm"]), ranks, pairs, str(row.get("source", "")))


def _points(points: Any, where: str) -> tuple[tuple[float, float], ...]:
    good = isinstance(points, list) and points and all(isinstance(p, list | tuple) and len(p) == 2 for p in points)
    if not good:
        raise UsageError(f"{where}.points ({points!r}) must be a list of [bytes, seconds] pairs")
    pairs = tuple(
        (_number(b, f"{where}.points bytes", "bytes"), _number(s, f"{where}.points seconds", "seconds"))
        for b, s in points
    )
    for (left, _), (right, _) in pairwise(pairs):
        if right <= left:
            raise UsageError(f"{where}.points: {right:g} bytes after {left:g}; sizes must increase")
    return pairs


def _keys(data: dict[str, Any], known: Iterable[str], optional: tuple[str, ...], where: str) -> None:
    names = tuple(known)
    for key in data:
        if key not in names:
            raise unknown_key(key, names, where)
    missing = [name for name in names if name not in data and name not in optional]
    if missing:
        raise UsageError(f"{where} lacks {', '.join(map(repr, missing))}")


def _number(value: Any, what: str, unit: str, least: float | None = None) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or (value < least if least is not None else value <= 0):
        bound = "above 0" if least is None else f"of at least {least:g}"
        raise UsageError(f"{what} ({value!r}) must be a number {bound}: {unit}")
    return float(value)


def _whole(value: Any, what: str, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{what} ({value!r}) must be a whole number of at least {least}")
    return value
