"""The time of one forward: the schedule's steps, run on the ranks' clocks."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from typing import Literal

from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.cost import STEP_PLAN_BYTES, collectives
from trtllm_pt.model.schedule import Finish, Run, Schedule, Start, schedule_of
from trtllm_pt.planner.collective import all_reduce_seconds
from trtllm_pt.planner.engines import Engine
from trtllm_pt.planner.kernels import Kernel, Kernels, Work
from trtllm_pt.planner.machine import Machine
from trtllm_pt.planner.ranks import Busy, Ranks
from trtllm_pt.planner.roofline import kernel_seconds


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
        self._undisturbed = machine.undisturbed()
        plan = STEP_PLAN_BYTES if engine.announces_steps else 0
        messages = collectives(config, ranks, engine.wire_dtype or dtype, step_bytes=plan)
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
        ranks = Ranks(self.ranks, self._message("step plan", work.tokens))
        known: dict[object, Busy] = {}  # layers of one kind take the same time
        block_starts = True
        for step in self.schedule:
            match step:
                case Run(layer=layer, place=place):
                    if block_starts:
                        ranks.work(self._sum(self.kernels.block_norm("dispatch_layernorm", layer, work)))
                    block_starts = False
                    kind = (place, self.config.layer_window(layer), self.config.is_moe(layer))
                    if kind not in known:
                        known[kind] = self._sum(self.kernels.sub_layer(layer, place, work))
                    ranks.work(known[kind])
                case Start(key=key, payload=payload):
                    ranks.work(self._sum(self.kernels.block_norm("combine_layernorm", key[0], work)))
                    ranks.work(self._sum(self._before_boundary(payload, work)))
                    ranks.start(key, self._message("boundary", work.tokens))
                case Finish(key=key):
                    ranks.finish(key)
                    block_starts = True
        ranks.work(self._sum(self.kernels.ends(work)))
        return Forward(ranks.gather(self._message("logits", work.sequences)) + self.engine.step_seconds, ranks.waited)

    def _before_boundary(self, payload: str, work: Work) -> list[Kernel]:
        """A whole stream is added up and scaled first; partial sums leave as the product made them."""
        if self.ranks * self.kernels.tracks == 1:
            return []
        if payload != "partial":
            return [self.kernels.merge(work)]
        return [self.kernels.add(work)] if self.kernels.tracks > 1 else []

    def _message(self, place: Literal["step plan", "boundary", "logits"], count: float) -> float:
        """The gather of the logits takes what an all-reduce of what all ranks gather takes: at most twice too much."""
        if place not in self._sizes:
            return 0.0
        size = self._sizes[place] * count * (self.ranks if place == "logits" else 1)
        return all_reduce_seconds(self.machine.all_reduce, self.engine.collectives, self.ranks, size)

    def _sum(self, kernels: Iterable[Kernel]) -> Busy:
        return sum((self._busy(kernel) for kernel in kernels), Busy())

    def _busy(self, kernel: Kernel) -> Busy:
        together, alone = (
            kernel_seconds(kernel, machine, self.engine, self.dtype) for machine in (self.machine, self._undisturbed)
        )
        return Busy(together, alone)
