"""The GPU of this process, through torch. All work of an engine goes to one stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def visible() -> int:
    """Return the number of GPUs that this process can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


class Gpu:
    """One GPU, and a stream of its own. `stream` is the stream's handle."""

    def __init__(self, number: int) -> None:
        torch.cuda.set_device(number)
        self._device = torch.device("cuda", number)
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self.stream: int = self._stream.cuda_stream
        self.name = torch.cuda.get_device_name(number)
        self.architecture = "sm{}{}".format(*torch.cuda.get_device_capability(number))

    def free_bytes(self) -> int:
        free: int = torch.cuda.mem_get_info(self._device)[0]
        return free

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return memory on the GPU. Raises torch.OutOfMemoryError if there is not enough."""
        with torch.cuda.stream(self._stream):
            return torch.zeros(tuple(shape), dtype=dtype, device=self._device)

    def on_host(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return memory on the host that the GPU can copy from and to while the host does other work."""
        return torch.zeros(tuple(shape), dtype=dtype, pin_memory=True)

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy to or from the GPU after the work that was started before."""
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def wait(self) -> None:
        """Wait until everything that was started is done."""
        self._stream.synchronize()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record the work that a function starts, without doing it, as a CUDA graph. Returns what starts the graph.

        Raises RuntimeError if the work cannot be recorded.
        """
        graph = torch.cuda.CUDAGraph()
        # Other threads of this process, such as NCCL's, may call CUDA meanwhile.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()

        def replay() -> None:
            with torch.cuda.stream(self._stream):
                graph.replay()

        return replay
