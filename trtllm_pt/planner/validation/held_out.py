"""Published systems on which nothing was fitted: other models, other engines and other schedules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_pt.model.config import ModelConfig, read_json
from trtllm_pt.model.layout import over_tracks
from trtllm_pt.planner.engines import load_engine
from trtllm_pt.planner.forward import Forward, Model
from trtllm_pt.planner.kernels import Work
from trtllm_pt.planner.machine import load_machine

HELD_OUT = Path(__file__).parent / "held_out.json"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A published figure and its prediction. Shares (of waiting, or of time saved compared with tp) are of 1."""

    system: str
    machine: str
    schedule: str
    batch: int
    figure: str
    printed: float
    predicted: float

    @property
    def is_share(self) -> bool:
        """True if the figure is a share of 1."""
        return "share" in self.figure or "saved" in self.figure


@dataclass(frozen=True, slots=True)
class _Request:
    """A static batch from its prompts to its last tokens: all prompts in one forward, then a step per token."""

    tokens: int
    prefill: Forward
    step: Forward

    @property
    def steps_seconds(self) -> float:
        return (self.tokens - 1) * self.step.seconds

    @property
    def seconds(self) -> float:
        return self.prefill.seconds + self.steps_seconds

    @property
    def waiting(self) -> float:
        return (self.prefill.all_reduce + (self.tokens - 1) * self.step.all_reduce) / self.seconds


def held_out(path: Path = HELD_OUT) -> list[HeldOut]:
    """Predict every figure of the file."""
    return [found for system in read_json(path)["systems"] for found in _rows(system)]


def _rows(system: Mapping[str, Any]) -> Iterator[HeldOut]:
    for row in system["rows"]:
        machine = row.get("machine", system["machine"])
        schedule, batch = row["schedule"], row["batch"]
        own = _request(system, machine, _config(system, schedule, row.get("dropped", 0)), batch)
        dense = _request(system, machine, _config(system, "tp", 0), batch)
        label = f"{schedule} {row['dropped']}" if "dropped" in row else schedule
        yield HeldOut(
            system["name"], machine, label, batch, row["figure"], row["printed"], _figure(row["figure"], own, dense)
        )


def _figure(name: str, own: _Request, dense: _Request) -> float:
    match name:
        case "tokens/s":
            return own.tokens / own.seconds
        case "times tp":
            return dense.seconds / own.seconds
        case "share of waiting":
            return own.waiting
        case "time saved":
            return 1 - own.seconds / dense.seconds
        case "prefill, time saved":
            return 1 - own.prefill.seconds / dense.prefill.seconds
        case "decode, time saved":
            return 1 - own.steps_seconds / dense.steps_seconds
    raise ValueError(f"unknown figure {name!r}")


def _config(system: Mapping[str, Any], schedule: str, dropped: int) -> ModelConfig:
    dense = ModelConfig(**system["model"])
    if schedule != "spd":
        return dense.replace(schedule=schedule)
    last = range(dense.num_layers - dropped, dense.num_layers)
    return over_tracks(dense, system["ranks"], schedule="spd", dropped_layers=tuple(last))


def _request(system: Mapping[str, Any], machine: str, config: ModelConfig, batch: int) -> _Request:
    model = Model(config, system["ranks"], system["dtype"], load_machine(machine), load_engine(system["engine"]))
    halfway = system["input"] + (system["output"] - 1) / 2
    return _Request(
        system["output"], model.forward(Work(batch, system["input"])), model.forward(Work(batch, 1, halfway))
    )
