"""Measure a model with any sets of its all-reduces dropped, with one layer at a time in memory.

Sets that agree on the first layers share the streams after these layers.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from trtllm_pt.files.atomic import write_json
from trtllm_pt.spd.streams import Streams

_RESULTS = "results.json"
Nats = npt.NDArray[np.float64]


class Sweep:
    """Nats per token of every window under sets of dropped layers, kept in the folder of the streams."""

    def __init__(self, streams: Streams, progress: bool | None = None) -> None:
        self.streams, self.windows, self.layers = streams, len(streams.windows), streams.blocks.config.num_layers
        self._hide_bar = None if progress is None else not progress
        path = streams.folder / _RESULTS
        self._results: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}

    def measure(self, sets: Sequence[Collection[int]], what: str) -> list[Nats]:
        """Return for each set of dropped layers the nats per token of each window, float64 [N]."""
        wanted = ["".join("1" if layer in dropped else "0" for layer in range(self.layers)) for dropped in sets]
        pending = sorted({each for each in wanted if each not in self._results})
        if pending:
            self._run(pending, what)
        return [np.array(self._results[each]) for each in wanted]

    def _run(self, pending: list[str], what: str) -> None:
        streams = self.streams
        levels = [sorted({each[:depth] for each in pending}) for depth in range(self.layers + 1)]
        done = max(depth for depth, level in enumerate(levels) if all(map(streams.exists, level)))
        total = sum(map(len, levels[1:]))
        with tqdm(total=total, desc=what, unit="layer", disable=self._hide_bar) as bar:
            bar.update(sum(map(len, levels[1 : done + 1])))
            for depth in range(done + 1, self.layers + 1):
                layer = streams.blocks.load(depth - 1)
                for prefix in levels[depth]:
                    if not streams.exists(prefix):
                        streams.advance(layer, prefix)
                    bar.update()
                for prefix in levels[depth - 1]:
                    streams.remove(prefix)
        for each in pending:
            self._results[each] = streams.nats(each)
            write_json(streams.folder / _RESULTS, self._results)
        for each in pending:
            streams.remove(each)
