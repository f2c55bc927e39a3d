"""The time of one forward: the steps of the schedule, run on the clocks of the ranks."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from typing import Literal

from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.cost import STEP_PLAN_BYTES, collectives
from trtllm_pt.model.schedule import Finish, Run, Schedule, Start, schedule_of
from trtllm_pt.planner.clocks import KernelTime, Overlap, RankClocks
from trtllm_pt.planner.engines import Engine
from trtllm_pt.planner.kernels import Kernel, Kernels, Work
from trtllm_pt.planner.machine import Machine


@dataclass(frozen=True, slots=True)
class Forward:
    """The seconds of a forward, and those of them in which the kernels wait for an all-reduce at a boundary."""

    seconds: float
    all_reduce: float

    @property
    def waiting(self) -> float:
        """The share of the forward in which the ranks wait."""
        return self.all_reduce / self.seconds


def kernel_seconds(kernel: Kernel, machine: Machine, engine: Engine, dtype: str) -> float:
    """Return the seconds of a kernel by the roofline model (Williams, Waterman, Patterson 2009).

    They are launch overhead + max(FLOP / reached rate, bytes / reached bandwidth). Few sequences do not fill a device
    in decode attention: each pair of a sequence and a KV head reads at `stream_efficiency` of the bandwidth, until all
    pairs together reach `memory_efficiency`.
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


class Model:
    """A config on a number of ranks, with everything that is the same for all forwards."""

    def __init__(self, config: ModelConfig, ranks: int, dtype: str, machine: Machine, engine: Engine) -> None:
        self.config, self.ranks, self.dtype = config, ranks, dtype
        self.machine, self.engine = machine, engine
        self.schedule: Schedule = schedule_of(config)
        self.kernels = Kernels(config, ranks, dtype)
        self._undisturbed = machine.undisturbed()
        plan = STEP_PLAN_BYTES if engine.announces_steps else 0
        messages = collectives(config, ranks, engine.wire_dtype or dtype, step_bytes=plan)
        # The bytes for one token. All boundaries of a config have the same size.
        self._sizes = {
            "boundary" if each.kind == "all_reduce" else each.place: each.bytes_per_token for each in messages
        }

    def with_engine(self, engine: Engine) -> Model:
        """Return the same model with other efficiencies of the same kind of engine."""
        other = copy(self)
        other.engine = engine
        return other

    def forward(self, work: Work) -> Forward:
        """Predict one forward. Raises UsageError if the machine has no times for this number of ranks or dtype."""
        overlap = Overlap(self.engine.overlapped_kernels, self.machine.launch_overhead)
        clocks = RankClocks(self.ranks, self._message("step plan", work.tokens), overlap)
        message = self._message("boundary", work.tokens)
        known: dict[object, KernelTime] = {}  # layers of the same kind take the same time
        block_starts = True
        for step in self.schedule:
            match step:
                case Run(layer=layer, place=place):
                    if block_starts:
                        clocks.work(self._sum(self.kernels.block_norm("dispatch_layernorm", layer, work)))
                    block_starts = False
                    kind = (place, self.config.layer_window(layer), self.config.is_moe(layer))
                    if kind not in known:
                        known[kind] = self._sum(self.kernels.sub_layer(layer, place, work))
                    clocks.work(known[kind])
                case Start(key=key, payload=payload):
                    clocks.work(self._sum(self.kernels.block_norm("combine_layernorm", key[0], work)))
                    clocks.work(self._sum(self._before_boundary(payload, work)))
                    clocks.start(key, message, self._slower_beside_kernels(message))
                case Finish(key=key):
                    clocks.finish(key)
                    block_starts = True
        clocks.work(self._sum(self.kernels.ends(work)))
        return Forward(clocks.gather(self._message("logits", work.sequences)) + self.engine.step_seconds, clocks.waited)

    def _before_boundary(self, payload: str, work: Work) -> list[Kernel]:
        """Return the kernels before a boundary: whole streams are summed and scaled, partial sums are not."""
        if self.ranks * self.kernels.tracks == 1:
            return []
        if payload != "partial":
            return [self.kernels.merge(work)]
        return [self.kernels.add(work)] if self.kernels.tracks > 1 else []

    def _slower_beside_kernels(self, seconds: float) -> float:
        """Return how many times longer an all-reduce of `seconds` takes beside kernels.

        Kernels leave it less bandwidth, but do not change its latency, which is the time of the smallest message.
        """
        latency = self._message("boundary", 0)
        return (latency + self.engine.overlapped_bytes * (seconds - latency)) / seconds if seconds else 1.0

    def _message(self, place: Literal["step plan", "boundary", "logits"], count: float) -> float:
        """Return the seconds of a message.

        The gather of the logits is priced as an all-reduce of everything gathered, which is at most twice its time.
        """
        if place not in self._sizes:
            return 0.0
        size = self._sizes[place] * count * (self.ranks if place == "logits" else 1)
        return self.machine.all_reduce_seconds(self.engine.collectives, self.ranks, size)

    def _sum(self, kernels: Iterable[Kernel]) -> KernelTime:
        return sum((self._kernel_time(kernel) for kernel in kernels), KernelTime())

    def _kernel_time(self, kernel: Kernel) -> KernelTime:
        together, alone = (
            kernel_seconds(kernel, machine, self.engine, self.dtype) for machine in (self.machine, self._undisturbed)
        )
        return KernelTime(together, alone)
