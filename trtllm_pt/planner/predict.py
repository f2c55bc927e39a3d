"""What one model does on one machine: times, throughput, memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.cost import bytes_per_rank, kv_bytes_per_token, parameters
from trtllm_pt.model.schedule import sync_points
from trtllm_pt.planner.engines import Engine
from trtllm_pt.planner.forward import Model
from trtllm_pt.planner.machine import Machine
from trtllm_pt.planner.serving import Served, Workload, serve


@dataclass(frozen=True, slots=True)
class Prediction:
    """`name`: the schedule in short. Bytes are those of one rank, tokens those of its KV cache."""

    name: str
    config: ModelConfig
    parameters: int
    sync_points: int
    weight_bytes: int
    kv_tokens: int
    served: Served

    @property
    def fits(self) -> bool:
        return self.kv_tokens > 0

    def request_seconds(self, output: int) -> float:
        """From a request's arrival to its last token; endless where the server is overrun."""
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
    """Raises UsageError where the model cannot be divided so, or the machine is too small or not measured for it."""
    if ranks > machine.devices:
        raise UsageError(f"ranks ({ranks}) must not exceed the devices of {machine.name} ({machine.devices})")
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
    """`pt D=4`, `desync 2`, `spd 48` (dropped), `tp`."""
    match config.schedule:
        case "pt":
            return f"pt D={config.block_depth}"
        case "desync":
            return f"desync {config.sync_every}"
        case "spd":
            return f"spd {len(config.dropped_layers)}"
    return config.schedule
