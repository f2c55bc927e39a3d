"""In place of trtllm_pt.backends.tensorrt.gpu: the CPU, whose work waits in a queue as a GPU's does.

What is started is done in order, and only when somebody waits for it. So a result that is read too early is not there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NAME = "Stand-in GPU"
Work = Callable[[], None]
_STREAMS: dict[int, Gpu] = {}  # by handle


def visible() -> int:
    return int(os.environ.get("STAND_IN_GPUS", "8"))


def start(stream: int, work: Work) -> bool:
    """Put work into a stream, or into the graph that is captured from it. Returns whether that is possible."""
    gpu = _STREAMS[stream]
    if gpu.captured is not None and os.environ.get("STAND_IN_NO_GRAPHS") == "of TensorRT":
        return False
    (gpu.queue if gpu.captured is None else gpu.captured).append(work)
    return True


class Gpu:
    name = NAME
    architecture = os.environ.get("STAND_IN_ARCHITECTURE", "sm89")

    def __init__(self, number: int) -> None:
        assert number < visible()
        self.stream = 1000 + len(_STREAMS)
        self.queue: list[Work] = []
        self.captured: list[Work] | None = None
        self.captures = 0
        _STREAMS[self.stream] = self

    def free_bytes(self) -> int:
        return int(os.environ.get("STAND_IN_MEMORY", str(1 << 30)))

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory that begins at a multiple of 256 bytes."""
        size = torch.Size(shape).numel() * dtype.itemsize
        if size > self.free_bytes():
            raise torch.OutOfMemoryError
        whole = torch.zeros(size + 256, dtype=torch.uint8)
        first = -whole.data_ptr() % 256
        return whole[first : first + size].view(dtype).view(shape)

    def on_host(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.zeros(tuple(shape), dtype=dtype)

    def copy(self, target: Tensor, source: Tensor) -> None:
        assert self.captured is None
        self.queue.append(lambda: target.copy_(source))  # type: ignore[arg-type, return-value]

    def wait(self) -> None:
        assert self.captured is None
        queue, self.queue = self.queue, []
        for work in queue:
            work()

    def capture(self, work: Work) -> Work:
        if os.environ.get("STAND_IN_NO_GRAPHS") == "of CUDA":
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines")
        assert self.captured is None and not self.queue, "torch waits for the GPU before it captures"
        self.captured = graph = []
        try:
            work()
        finally:
            self.captured = None
        self.captures += 1
        return lambda: self.queue.extend(graph)
