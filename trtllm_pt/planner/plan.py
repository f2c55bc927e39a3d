"""Predict a model under every schedule on one machine, and recommend one of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import TRACKED, ModelConfig
from trtllm_pt.model.cost import bytes_per_rank, kv_bytes_per_token, parameters
from trtllm_pt.model.schedule import sync_points
from trtllm_pt.planner.engines import Engine
from trtllm_pt.planner.forward import Model
from trtllm_pt.planner.machine import Machine
from trtllm_pt.planner.serving import Served, Workload, serve
from trtllm_pt.planner.variants import variants

NEAR = 0.02  # a model within 2 % of the best is preferred if it is closer to the dense model


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one model does on one machine. `name` is the schedule in short form."""

    name: str
    config: ModelConfig
    parameters: int
    sync_points: int
    weight_bytes: int  # of one rank
    kv_tokens: int  # that the KV cache of one rank holds
    served: Served

    @property
    def fits(self) -> bool:
        """True if the weights leave memory for a KV cache."""
        return self.kv_tokens > 0

    def request_seconds(self, output: int) -> float:
        """Return the seconds from a request's arrival to its last token, or infinity if the server is overloaded."""
        return float("inf") if self.served.ttft is None else self.served.ttft + (output - 1) * self.served.tpot

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "schedule": self.config.schedule,
            "block_depth": self.config.block_depth,
            "sync_every": self.config.sync_every,
            "hidden_size": self.config.hidden_size,
            "intermediate_size": self.config.intermediate_size,
            "tracks": self.config.tracks,
            "parameters": self.parameters,
            "sync_points": self.sync_points,
            "bytes_per_rank": self.weight_bytes,
            "kv_tokens": self.kv_tokens,
            "fits": self.fits,
            "ttft_s": self.served.ttft,
            "tpot_s": self.served.tpot,
            "tokens_per_s": self.served.tokens_per_second,
            "in_flight": self.served.in_flight,
            "prefill_all_reduce_share": self.served.prompt.waiting,
            "decode_all_reduce_share": self.served.step.waiting,
        }


def predict(
    config: ModelConfig, ranks: int, machine: Machine, engine: Engine, workload: Workload, dtype: str = "bfloat16"
) -> Prediction:
    """Predict one model on `ranks` devices.

    Raises UsageError if the ranks cannot divide the model, if the machine has fewer devices, or if it has no
    measurements for this number of ranks or dtype.
    """
    if ranks > machine.all_devices:
        raise UsageError(f"ranks ({ranks}) must not exceed the devices of {machine.name} ({machine.all_devices})")
    weights = bytes_per_rank(config, ranks, dtype)
    room = (machine.memory_bytes - weights) * engine.cache_fraction
    kv_tokens = max(0, int(room / kv_bytes_per_token(config, ranks, dtype)))
    model = Model(config, ranks, dtype, machine, engine)
    return Prediction(
        name=short_name(config),
        config=config,
        parameters=parameters(config),
        sync_points=sync_points(model.schedule) if ranks > 1 else 0,
        weight_bytes=weights,
        kv_tokens=kv_tokens,
        served=serve(model, workload, kv_tokens / (workload.input + workload.output)),
    )


def short_name(config: ModelConfig) -> str:
    """Return the schedule in short form: `tp`, `pt D=4`, `desync 2`, `dtp 2`, or `spd 48` for 48 dropped layers."""
    match config.schedule:
        case "pt":
            return f"pt D={config.block_depth}"
        case "desync":
            return f"desync {config.sync_every}"
        case "dtp":
            return f"dtp {config.delay}"
        case "spd":
            return f"spd {len(config.dropped_layers)}"
    return config.schedule


@dataclass(frozen=True, slots=True)
class Plan:
    """The predictions for a model and its variants."""

    machine: str
    engine: str
    ranks: int
    dtype: str
    workload: Workload
    predictions: tuple[Prediction, ...]  # the first one is the model itself
    recommended: Prediction | None  # None if no variant fits the memory
    nodes: int = 1
    # On several nodes: the same models on one of them, by name. Those that cannot run there are missing.
    one_node: Mapping[str, Prediction] = field(default_factory=dict)

    def gain(self, prediction: Prediction) -> float | None:
        """Return how many times better a model is on all nodes than on one, or None if it does not fit on one."""
        alone = self.one_node.get(prediction.name)
        if alone is None or not alone.fits:
            return None
        return merit(prediction, self.workload) / merit(alone, self.workload)

    def best_on_one_node(self) -> Prediction | None:
        """Return what is recommended on one node."""
        return recommend(list(self.one_node.values()), self.workload)

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "engine": self.engine,
            "ranks": self.ranks,
            "dtype": self.dtype,
            "workload": asdict(self.workload),
            "predictions": [each.to_json() for each in self.predictions],
            "recommended": self.recommended.name if self.recommended else None,
            **({"nodes": self.nodes, "one_node": self._one_node_json()} if self.nodes > 1 else {}),
        }

    def _one_node_json(self) -> dict[str, Any]:
        gains = {each.name: self.gain(each) for each in self.predictions}
        return {name: {**each.to_json(), "gain_of_all_nodes": gains[name]} for name, each in self.one_node.items()}


def plan(
    config: ModelConfig,
    machine: Machine,
    engine: Engine,
    workload: Workload,
    ranks: int | None = None,
    dtype: str = "bfloat16",
) -> Plan:
    """Predict `config` and all its variants (variants.py) on `ranks` devices, by default all of the machine.

    Raises UsageError if `config` itself cannot be predicted. Variants that cannot are left out.
    """
    ranks = ranks or machine.all_devices
    tracks = config.tracks if config.schedule in TRACKED else max(2, ranks)
    predictions = [predict(config, ranks, machine, engine, workload, dtype)]
    for variant in list(variants(config, tracks))[1:]:
        try:
            predictions.append(predict(variant, ranks, machine, engine, workload, dtype))
        except UsageError:
            continue
    recommended = recommend(predictions, workload)
    nodes = math.ceil(ranks / machine.devices)
    alone = _on_one_node(predictions, machine, engine, workload, dtype) if nodes > 1 else {}
    return Plan(machine.name, engine.name, ranks, dtype, workload, tuple(predictions), recommended, nodes, alone)


def _on_one_node(
    predictions: Iterable[Prediction], machine: Machine, engine: Engine, workload: Workload, dtype: str
) -> dict[str, Prediction]:
    found = {}
    for each in predictions:
        with contextlib.suppress(UsageError):
            found[each.name] = predict(each.config, machine.devices, machine.node(), engine, workload, dtype)
    return found


def by_throughput(workload: Workload) -> bool:
    """True if the workload asks for throughput, false if it asks for the speed of each request."""
    return workload.request_rate is None and workload.concurrency > 1


def merit(prediction: Prediction, workload: Workload) -> float:
    """Return tokens per second, or requests per second of a single request. More is better."""
    if by_throughput(workload):
        return prediction.served.tokens_per_second
    return 1 / prediction.request_seconds(workload.output)


def recommend(predictions: list[Prediction], workload: Workload) -> Prediction | None:
    """Return the PT model with the smallest D among those within 2 % of the best, or the best if there is none.

    A smaller D is closer to the dense model.
    """
    fitting = [each for each in predictions if each.fits]
    if not fitting:
        return None
    best = max(fitting, key=lambda each: merit(each, workload))
    near = [each for each in fitting if merit(each, workload) >= (1 - NEAR) * merit(best, workload)]
    tracks = [each for each in near if each.config.schedule == "pt"]
    return min(tracks, key=lambda each: each.config.block_depth or 0) if tracks else best
