"""The link between the nodes of a machine, and the time of an all-reduce over several of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_pt.model.config import read_json
from trtllm_pt.planner.collective import AllReduce

_FOLDER = Path(__file__).parent / "networks"
NETWORKS = tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


@dataclass(frozen=True, slots=True)
class Network:
    """A link between nodes. `points` are (bytes, seconds) of two nodes that exchange a message, ascending in bytes."""

    name: str
    points: tuple[tuple[float, float], ...]
    source: str = ""

    def exchange(self, size: float) -> float:
        """Return the seconds in which two nodes send each other `size` bytes."""
        return AllReduce(self.name, 2, self.points).seconds(size)

    def seconds(self, nodes: int, size: float) -> float:
        """Return the seconds in which `nodes` nodes add their sums of `size` bytes.

        It is the faster one of recursive doubling, log2 n exchanges of the whole message, and of a reduce-scatter with
        an all-gather, 2 log2 n exchanges of 2 (n - 1) / n messages in all (Thakur, Rabenseifner, Gropp 2005).
        """
        if nodes == 1:
            return 0.0
        rounds = math.ceil(math.log2(nodes))
        latency = self.exchange(0)
        bytes_time = self.exchange(size) - latency
        return min(rounds * (latency + bytes_time), 2 * rounds * latency + 2 * (nodes - 1) / nodes * bytes_time)

    def with_latency(self, factor: float) -> Network:
        """Return the same bandwidth with `factor` times the latency, which is the time of the smallest message."""
        return Network(self.name, AllReduce(self.name, 2, self.points).with_latency(factor).points, self.source)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "points": [list(point) for point in self.points], "source": self.source}


def network_preset(name: str) -> Mapping[str, Any]:
    """Return the JSON of one of NETWORKS."""
    return read_json(_FOLDER / f"{name}.json")
