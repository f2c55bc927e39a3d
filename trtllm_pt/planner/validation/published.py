"""The serving tables of arXiv:2602.07306 as published: the dense column and the PT columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trtllm_pt.model.config import ModelConfig, read_json
from trtllm_pt.model.presets import preset
from trtllm_pt.planner.engines import Engine
from trtllm_pt.planner.forward import Model
from trtllm_pt.planner.machine import Machine, load_machine
from trtllm_pt.planner.serving import Workload, decode, prefill, serve

PUBLISHED = Path(__file__).parent / "published.json"
Metric = Literal["ttft_ms", "tpot_ms", "tokens_per_second"]


@dataclass(frozen=True, slots=True)
class Row:
    """A workload with its dense figure, and its PT figures by D. `pt` is empty if the file has no PT columns."""

    input: int
    output: int
    dense: float
    pt: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Table:
    """A published table: one engine and one metric."""

    number: int
    engine: str
    metric: Metric
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Published:
    """All published tables, and the model and the machine that they are about."""

    machine: Machine
    ranks: int
    dtype: str
    dense: ModelConfig
    pt: ModelConfig
    max_batch_size: int
    tables: tuple[Table, ...]

    def engines(self) -> list[str]:
        """Return the names of the engines in the tables."""
        return list(dict.fromkeys(table.engine for table in self.tables))

    def model(self, config: ModelConfig, engine: Engine, machine: Machine | None = None) -> Model:
        """Return the planner's model of a config on the tables' ranks."""
        return Model(config, self.ranks, self.dtype, machine or self.machine, engine)

    def evaluate(self, model: Model, metric: Metric, row: Row) -> float:
        """Predict a cell in the table's unit. TTFT and TPOT are for batch 1, throughput is for a full batch."""
        if metric == "ttft_ms":
            return 1e3 * (model.engine.request_seconds + prefill(model, row.input).seconds)
        if metric == "tpot_ms":
            return 1e3 * decode(model, Workload(row.input, row.output), 1).seconds
        full = Workload(row.input, row.output, self.max_batch_size, max_batch_size=self.max_batch_size)
        return serve(model, full, self.max_batch_size).tokens_per_second


def load_published(path: Path = PUBLISHED) -> Published:
    """Load the published tables."""
    data = read_json(path)
    tables = tuple(
        Table(
            number=table["table"],
            engine=table["engine"],
            metric=table["metric"],
            rows=tuple(
                Row(r["input"], r["output"], r["tp"], {int(d): v for d, v in r.get("pt", {}).items()})
                for r in table["rows"]
            ),
        )
        for table in data["tables"]
    )
    return Published(
        machine=load_machine(data["machine"]),
        ranks=data["ranks"],
        dtype=data["dtype"],
        dense=preset(data["dense"]),
        pt=preset(data["pt"]),
        max_batch_size=data["max_batch_size"],
        tables=tables,
    )
