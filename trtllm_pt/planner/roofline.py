"""The time of a kernel (Williams, Waterman, Patterson 2009): the slower of its arithmetic and its memory traffic."""

from __future__ import annotations

from trtllm_pt.planner.engines import Engine
from trtllm_pt.planner.kernels import Kernel
from trtllm_pt.planner.machine import Machine


def kernel_seconds(kernel: Kernel, machine: Machine, engine: Engine, dtype: str) -> float:
    """launch + max(FLOP / reached rate, bytes / reached bandwidth).

    Few sequences do not fill a device in decode attention: each pair of a sequence and a KV head reads at
    `stream_efficiency` of the bandwidth, until all together reach `memory_efficiency`.
    """
    rate, bandwidth = machine.rate(dtype), machine.memory_bandwidth * engine.memory_efficiency
    if kernel.kind == "attention":
        rate *= engine.attention_efficiency
        bandwidth = min(bandwidth, machine.memory_bandwidth * engine.stream_efficiency * kernel.streams)
    else:
        rate *= engine.matrix_efficiency
    if kernel.kind == "memory":
        return machine.launch_overhead + kernel.bytes / bandwidth
    return machine.launch_overhead + max(kernel.flops / rate, kernel.bytes / bandwidth)
