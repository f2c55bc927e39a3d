"""The residual streams of all windows between two layers, as files.

A file is named by the layers that were run, one character each: "1" for a layer whose all-reduce after attention is
dropped. A file is there whole or not at all, so a command that was killed goes on with the files that it finds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trtllm_pt.files.atomic import new_file
from trtllm_pt.network.reference import Layer
from trtllm_pt.spd.blocks import Blocks, batches


class Streams:
    """The streams of `windows` [N, S + 1], float32 [N, S, W] after each prefix of layers, kept in `folder`."""

    def __init__(self, blocks: Blocks, windows: Tensor, folder: Path) -> None:
        self.blocks, self.windows, self.folder = blocks, windows, folder
        folder.mkdir(parents=True, exist_ok=True)

    def exists(self, prefix: str) -> bool:
        return prefix == "" or self._path(prefix).exists()

    def remove(self, prefix: str) -> None:
        self._path(prefix).unlink(missing_ok=True)

    def read(self, prefix: str, some: slice | list[int]) -> Tensor:
        """Return the streams of some windows; before the first layer, those of the embedding."""
        if prefix == "":
            return self.blocks.embed(self.windows[some, :-1])
        return torch.from_numpy(np.array(np.load(self._path(prefix), mmap_mode="r")[some]))

    @torch.no_grad()
    def advance(self, layer: Layer, prefix: str) -> None:
        """Write the streams after the last layer of `prefix`."""
        count, length = self.windows.shape[0], self.windows.shape[1] - 1
        shape = (count, length, self.blocks.config.hidden_size)
        with new_file(self._path(prefix)) as path:
            out = np.lib.format.open_memmap(path, "w+", np.float32, shape)  # type: ignore[no-untyped-call]
            for some in batches(count, length):
                x = self.read(prefix[:-1], some)
                out[some] = self.blocks.run(layer, x, prefix[-1] == "1").numpy()
            out.flush()

    @torch.no_grad()
    def nats(self, prefix: str) -> list[float]:
        """Return each window's mean nats per token after all layers."""
        count, length = self.windows.shape[0], self.windows.shape[1] - 1
        each = [self.blocks.nats(self.read(prefix, some), self.windows[some, 1:]) for some in batches(count, length)]
        nats: list[float] = torch.cat(each).tolist()
        return nats

    def _path(self, prefix: str) -> Path:
        return self.folder / f"streams-{prefix}.npy"
