"""Compare the planner with every cell of the published tables, and its errors with those of naive predictors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from trtllm_pt.model.config import ModelConfig, read_json
from trtllm_pt.model.cost import parameters
from trtllm_pt.planner.engines import Engine, engines
from trtllm_pt.planner.forward import Model
from trtllm_pt.planner.machine import Machine
from trtllm_pt.planner.validation.published import Metric, Published, Row, Table, load_published
from trtllm_pt.planner.variants import resized

DEPTHS = (2, 4, 8)
# Mean absolute error of PT's change relative to dense, in percentage points. The other tables have no goal.
GOALS = {
    (engine, metric): goal
    for engine, goals in read_json(Path(__file__).parent / "goals.json").items()
    for metric, goal in goals.items()
}
WIDTH_BAND, LATENCY_BAND = 0.1, 0.3


@dataclass(frozen=True, slots=True)
class Cell:
    """A PT figure. Changes are in percent of the dense figure of the same source (published or predicted).

    `band` is the range of the predicted change under other assumptions.
    """

    input: int
    output: int
    depth: int
    predicted: float
    predicted_change: float
    band: tuple[float, float]
    printed: float | None
    printed_change: float | None

    @property
    def error(self) -> float | None:
        """The error of the predicted change in percentage points."""
        return None if self.printed_change is None else self.predicted_change - self.printed_change


@dataclass(frozen=True, slots=True)
class Dense:
    """A dense figure."""

    input: int
    output: int
    printed: float
    predicted: float


@dataclass(frozen=True, slots=True)
class Result:
    """One table with its errors.

    Errors are mean absolute percentage points of the change, or None without published PT figures. `dense_error` is in
    percent.
    """

    number: int
    engine: str
    metric: Metric
    dense: tuple[Dense, ...]
    cells: tuple[Cell, ...]
    dense_error: float
    error: float | None
    error_no_change: float | None
    error_constant: float | None
    goal: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the table with every cell and its error."""
        plain = asdict(self)
        for row, cell in zip(plain["cells"], self.cells, strict=True):
            row["error"] = cell.error
        return plain


def validate(published: Published | None = None, fitted: Mapping[str, Engine] | None = None) -> list[Result]:
    """Predict all tables. PT's published figures are used for the comparison only."""
    published = published or load_published()
    fitted = fitted or engines()
    return [_result(table, published, fitted[table.engine]) for table in published.tables]


@dataclass(frozen=True, slots=True)
class _Pair:
    """The dense model and the PT models by D, under the same assumptions."""

    dense: Model
    pt: Mapping[int, Model]


def _result(table: Table, published: Published, engine: Engine) -> Result:
    base, *bands = _assumptions(published, engine)
    dense = tuple(
        Dense(row.input, row.output, row.dense, published.evaluate(base.dense, table.metric, row)) for row in table.rows
    )
    cells = tuple(_cells(table, published, base, bands))
    known = [cell for cell in cells if cell.printed_change is not None]
    return Result(
        number=table.number,
        engine=table.engine,
        metric=table.metric,
        dense=dense,
        cells=cells,
        dense_error=fmean(abs(100 * (row.predicted / row.printed - 1)) for row in dense),
        error=fmean(abs(cell.error or 0) for cell in known) if known else None,
        error_no_change=fmean(abs(cell.printed_change or 0) for cell in known) if known else None,
        error_constant=_best_constant(known) if known else None,
        goal=GOALS.get((table.engine, table.metric)),
    )


def _assumptions(published: Published, engine: Engine) -> Iterator[_Pair]:
    """Yield the models as assumed, then with other track widths and latencies, as the paper does not give them."""

    def pair(pt: ModelConfig, machine: Machine) -> _Pair:
        depths = {depth: published.model(pt.replace(block_depth=depth), engine, machine) for depth in DEPTHS}
        return _Pair(published.model(published.dense, engine, machine), depths)

    yield pair(published.pt, published.machine)
    for sign in (-1, 1):
        width = round(published.pt.hidden_size * (1 + sign * WIDTH_BAND) / 64) * 64
        other = resized(published.pt, width, parameters(published.pt))
        assert other is not None
        yield pair(other, published.machine)
        yield pair(published.pt, published.machine.with_latency(1 + sign * LATENCY_BAND))


def _cells(table: Table, published: Published, base: _Pair, bands: list[_Pair]) -> Iterator[Cell]:
    for row in table.rows:
        for depth in DEPTHS:
            predicted = published.evaluate(base.pt[depth], table.metric, row)
            changes = [_change(published, pair, table.metric, row, depth) for pair in (base, *bands)]
            printed = row.pt.get(depth)
            yield Cell(
                input=row.input,
                output=row.output,
                depth=depth,
                predicted=predicted,
                predicted_change=changes[0],
                band=(min(changes), max(changes)),
                printed=printed,
                printed_change=None if printed is None else 100 * (printed / row.dense - 1),
            )


def _change(published: Published, pair: _Pair, metric: Metric, row: Row, depth: int) -> float:
    dense = published.evaluate(pair.dense, metric, row)
    return 100 * (published.evaluate(pair.pt[depth], metric, row) / dense - 1)


def _best_constant(cells: list[Cell]) -> float:
    """Return the error of the best constant change per D, which is the median of the published changes."""
    errors = []
    for depth in DEPTHS:
        changes = [cell.printed_change or 0.0 for cell in cells if cell.depth == depth]
        errors += [abs(change - median(changes)) for change in changes]
    return fmean(errors)
