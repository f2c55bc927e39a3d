"""The time of one forward: the schedule's steps, run on two clocks, the kernels' and the collectives'."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from typing import Literal

from trtllm_pt.config import ModelConfig
from trtllm_pt.cost import collectives
from trtllm_pt.planner.collective import all_reduce_seconds
from trtllm_pt.planner.engines import Engine
from trtllm_pt.planner.kernels import Kernel, Kernels, Work
from trtllm_pt.planner.machine import Machine
from trtllm_pt.planner.roofline import kernel_seconds
from trtllm_pt.schedule import Finish, Run, Schedule, Start, schedule_of


@dataclass(frozen=True, slots=True)
class Forward:
    """Seconds. `all_reduce`: of them, those in which the kernels wait for a boundary."""

    seconds: float
    all_reduce: float

    @property
    def waiting(self) -> float:
        """The share of it that ranks wait."""
        return self.all_reduce / self.seconds


class Model:
    """A config on a number of ranks, with what does not change from forward to forward."""

    def __init__(self, config: ModelConfig, ranks: int, dtype: str, machine: Machine, engine: Engine) -> None:
        self.config, self.ranks, self.dtype = config, ranks, dtype
        self.machine, self.engine = machine, engine
        self.schedule: Schedule = schedule_of(config)
        self.kernels = Kernels(config, ranks, dtype)
        messages = collectives(config, ranks, engine.wire_dtype or dtype)
        # Bytes for one token; a config's boundaries are all of one size.
        self._sizes = {
            "boundary" if each.kind == "all_reduce" else each.place: each.bytes_per_token for each in messages
        }

    def with_engine(self, engine: Engine) -> Model:
        """The same model under other numbers of the same kind of engine."""
        other = copy(self)
        other.engine = engine
        return other

    def forward(self, work: Work) -> Forward:
        clock, wire_free, waited = 0.0, 0.0, 0.0
        known: dict[object, float] = {}  # layers of one kind take the same time
        done: dict[tuple[int, str], float] = {}
        block_starts = True
        for step in self.schedule:
            match step:
                case Run(layer=layer, place=place):
                    if block_starts:
                        clock += self._sum(self.kernels.block_norm("dispatch_layernorm", layer, work))
                    block_starts = False
                    kind = (place, self.config.layer_window(layer), self.config.is_moe(layer))
                    if kind not in known:
                        known[kind] = self._sum(self.kernels.sub_layer(layer, place, work))
                    clock += known[kind]
                case Start(key=key, payload=payload):
                    clock += self._sum(self.kernels.block_norm("combine_layernorm", key[0], work))
                    if payload not in known:
                        known[payload] = self._before_boundary(payload, work)
                        known["message"] = self._message("boundary", work.tokens)
                    clock += known[payload]
                    wire_free = max(clock, wire_free) + known["message"]
                    done[key] = wire_free
                case Finish(key=key):
                    waited += max(0.0, done[key] - clock)
                    clock = max(clock, done[key])
                    block_starts = True
        clock += self._sum(self.kernels.ends(work)) + self._message("logits", work.sequences)
        return Forward(clock + self.engine.step_seconds, waited)

    def _before_boundary(self, payload: str, work: Work) -> float:
        """A whole stream is added up and scaled first; partial sums leave as the product made them."""
        if self.ranks * self.kernels.tracks == 1:
            return 0.0
        if payload != "partial":
            return self._seconds(self.kernels.merge(work))
        return self._seconds(self.kernels.add(work)) if self.kernels.tracks > 1 else 0.0

    def _message(self, place: Literal["boundary", "logits"], count: float) -> float:
        """The gather of the logits takes what an all-reduce of what all ranks gather takes: at most twice too much."""
        if self.ranks == 1:
            return 0.0
        size = self._sizes[place] * count * (self.ranks if place == "logits" else 1)
        return all_reduce_seconds(self.machine.all_reduce, self.engine.collectives, self.ranks, size)

    def _sum(self, kernels: Iterable[Kernel]) -> float:
        return sum(self._seconds(kernel) for kernel in kernels)

    def _seconds(self, kernel: Kernel) -> float:
        return kernel_seconds(kernel, self.machine, self.engine, self.dtype)
