"""A plan: a model under every schedule on one machine, and which of them to take."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import TRACKED, ModelConfig
from trtllm_pt.planner.engines import Engine
from trtllm_pt.planner.machine import Machine
from trtllm_pt.planner.predict import Prediction, predict
from trtllm_pt.planner.serving import Workload
from trtllm_pt.planner.variants import variants

NEAR = 0.02  # of the best: no reason to go further from the dense model


@dataclass(frozen=True, slots=True)
class Plan:
    machine: str
    engine: str
    ranks: int
    dtype: str
    workload: Workload
    predictions: tuple[Prediction, ...]  # the model as given is the first
    recommended: Prediction | None  # None: none fits

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "engine": self.engine,
            "ranks": self.ranks,
            "dtype": self.dtype,
            "workload": asdict(self.workload),
            "predictions": [each.to_json() for each in self.predictions],
            "recommended": self.recommended.name if self.recommended else None,
        }


def plan(
    config: ModelConfig,
    machine: Machine,
    engine: Engine,
    workload: Workload,
    ranks: int | None = None,
    dtype: str = "bfloat16",
) -> Plan:
    """Predicts every variant of `config` (variants.py) on `ranks` devices, all of the machine's by default.

    Raises UsageError where the config itself does not go; other variants that do not are left out.
    """
    ranks = ranks or machine.devices
    tracks = config.tracks if config.schedule in TRACKED else max(2, ranks)
    predictions = [predict(config, ranks, machine, engine, workload, dtype)]
    for variant in list(variants(config, tracks))[1:]:
        try:
            predictions.append(predict(variant, ranks, machine, engine, workload, dtype))
        except UsageError:
            continue
    recommended = recommend(predictions, workload)
    return Plan(machine.name, engine.name, ranks, dtype, workload, tuple(predictions), recommended)


def by_throughput(workload: Workload) -> bool:
    """As much as possible is wanted, not each request as soon as possible."""
    return workload.request_rate is None and workload.concurrency > 1


def merit(prediction: Prediction, workload: Workload) -> float:
    """Tokens per second, or one over a request's time; more is better."""
    if by_throughput(workload):
        return prediction.served.tokens_per_second
    return 1 / prediction.request_seconds(workload.output)


def recommend(predictions: list[Prediction], workload: Workload) -> Prediction | None:
    """The best; of those within 2 % of it the PT model with the smallest D, else the best itself.

    A smaller D stays nearer to the dense model. `ladder` is predicted with perfect overlap, which flatters it.
    """
    fitting = [each for each in predictions if each.fits]
    if not fitting:
        return None
    best = max(fitting, key=lambda each: merit(each, workload))
    near = [each for each in fitting if merit(each, workload) >= (1 - NEAR) * merit(best, workload)]
    tracks = [each for each in near if each.config.schedule == "pt"]
    return min(tracks, key=lambda each: each.config.block_depth or 0) if tracks else best
