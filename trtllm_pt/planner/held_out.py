"""A published system on which nothing was fitted: another model, engine and schedules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trtllm_pt.config import ModelConfig, read_json
from trtllm_pt.planner.engines import load_engine
from trtllm_pt.planner.forward import Model
from trtllm_pt.planner.kernels import Work
from trtllm_pt.planner.machine import load_machine

HELD_OUT = Path(__file__).parent / "held_out.json"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """`figure`: tokens per second of one sequence, or how many times as fast as tp."""

    schedule: str
    batch: int
    figure: str
    printed: float
    predicted: float


def held_out(path: Path = HELD_OUT) -> list[HeldOut]:
    data = read_json(path)
    config = ModelConfig(**data["model"])
    machine, engine = load_machine(data["machine"]), load_engine(data["engine"])
    new: int
    more: int
    new, more = data["input"], data["output"] - 1

    def seconds(schedule: str, batch: int) -> float:
        """A static batch: its prompts together, then its steps."""
        model = Model(config.replace(schedule=schedule), data["ranks"], data["dtype"], machine, engine)
        steps = model.forward(Work(batch, 1, new + more / 2))
        return model.forward(Work(batch, new)).seconds + more * steps.seconds

    rates = [
        HeldOut(schedule, 1, "tokens/s", printed, data["output"] / seconds(schedule, 1))
        for schedule, printed in data["tokens_per_second"].items()
    ]
    speedups = [
        HeldOut(schedule, batch, "times tp", row["printed"], seconds("tp", batch) / seconds(schedule, batch))
        for row in data["speedups"]
        for schedule, batch in [(row["schedule"], row["batch"])]
    ]
    return rates + speedups
