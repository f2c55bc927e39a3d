"""The validation as text tables and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from trtllm_pt.planner.validation.held_out import HeldOut
from trtllm_pt.planner.validation.validate import LATENCY_BAND, WIDTH_BAND, Cell, Result

Rows = list[tuple[str, ...]]
_METRICS = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "tokens_per_second": "throughput"}
_UNITS = {"ttft_ms": "ms", "tpot_ms": "ms", "tokens_per_second": "tokens/s"}
CELL_HEADER = ("in/out", "D", "printed", "predicted", "change", "predicted", "error", "band")
DENSE_HEADER = ("in/out", "printed", "predicted", "error")
SUMMARY_HEADER = ("table", "engine", "figure", "dense", "planner", "no change", "constant per D", "goal")
HELD_OUT_HEADER = ("system", "machine", "schedule", "batch", "figure", "printed", "predicted", "error")
TREND_HEADER = ("in", "change", "predicted")
NOTE = (
    f"change: of PT relative to dense, in percent. error: in percentage points. band: of the predicted change, for "
    f"tracks {WIDTH_BAND:.0%} narrower or wider, and syncs with {LATENCY_BAND:.0%} less or more latency."
)
SUMMARY_NOTE = (
    "dense: mean absolute error of the dense rows, on which the engines were fitted, in percent. planner, no change, "
    "constant per D: mean absolute error of PT's change, in percentage points. The constants are fitted on PT's rows."
)


def title(result: Result) -> str:
    """Return a table's title."""
    return f"Table {result.number}: {_METRICS[result.metric]}, {_UNITS[result.metric]}, {result.engine}"


def dense_rows(result: Result) -> Rows:
    """Return the dense rows of a table under DENSE_HEADER."""
    return [
        (
            f"{r.input}/{r.output}",
            f"{r.printed:.2f}",
            f"{r.predicted:.2f}",
            f"{100 * (r.predicted / r.printed - 1):+.1f}%",
        )
        for r in result.dense
    ]


def cell_rows(result: Result) -> Rows:
    """Return the PT cells of a table under CELL_HEADER."""
    return [_cell_row(cell) for cell in result.cells]


def _cell_row(cell: Cell) -> tuple[str, ...]:
    return (
        f"{cell.input}/{cell.output}",
        str(cell.depth),
        _figure(cell.printed, ".2f"),
        f"{cell.predicted:.2f}",
        _figure(cell.printed_change, "+.1f"),
        f"{cell.predicted_change:+.1f}",
        _figure(cell.error, "+.1f"),
        f"{cell.band[0]:+.1f} .. {cell.band[1]:+.1f}",
    )


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def summary_rows(results: list[Result]) -> Rows:
    """Return a row per table under SUMMARY_HEADER."""
    return [
        (
            str(each.number),
            each.engine,
            _METRICS[each.metric],
            f"{each.dense_error:.1f}",
            _figure(each.error, ".2f"),
            _figure(each.error_no_change, ".2f"),
            _figure(each.error_constant, ".2f"),
            _goal(each),
        )
        for each in results
    ]


def _goal(result: Result) -> str:
    if result.goal is None or result.error is None:
        return "-"
    return f"below {result.goal:g}: {'met' if result.error < result.goal else 'not met'}"


def trend_rows(result: Result, depth: int) -> Rows:
    """Show how the gain changes with the context, with one row per prompt length: the one with the shortest output."""
    seen: dict[int, Cell] = {}
    for cell in result.cells:
        if cell.depth == depth and (cell.input not in seen or cell.output < seen[cell.input].output):
            seen[cell.input] = cell
    return [
        (str(cell.input), _figure(cell.printed_change, "+.1f"), f"{cell.predicted_change:+.1f}")
        for cell in seen.values()
    ]


def held_out_rows(rows: list[HeldOut]) -> Rows:
    """Return the systems that the fit did not use, under HELD_OUT_HEADER."""
    return [(each.system, each.machine, each.schedule, str(each.batch), each.figure, *_compared(each)) for each in rows]


def _compared(row: HeldOut) -> tuple[str, str, str]:
    if row.is_share:
        points = 100 * (row.predicted - row.printed)
        return f"{100 * row.printed:.1f}%", f"{100 * row.predicted:.1f}%", f"{points:+.1f} points"
    return f"{row.printed:.2f}", f"{row.predicted:.2f}", f"{100 * (row.predicted / row.printed - 1):+.1f}%"


def verdicts(results: list[Result]) -> Iterator[str]:
    """Yield a line for each table with a goal: whether the goal is met, and how it compares with the constant."""
    for each in results:
        if each.goal is None or each.error is None or each.error_constant is None:
            continue
        against = each.error_constant - each.error
        beaten = (
            f"better than the constant by {against:.2f}"
            if against > 0
            else f"worse than the constant by {-against:.2f}"
        )
        yield f"{each.engine} {_METRICS[each.metric]}: {each.error:.2f} points, goal {_goal(each)}; {beaten}"


def to_json(results: list[Result], held_out: list[HeldOut]) -> dict[str, Any]:
    """Return the whole validation as JSON."""
    return {"tables": [result.to_json() for result in results], "held_out": [asdict(each) for each in held_out]}


def page(results: list[Result], held_out: list[HeldOut]) -> Iterator[tuple[str, tuple[str, ...], Rows]]:
    """Yield every table of the validation as a title, a header and rows."""
    for each in results:
        yield title(each) + ": dense", DENSE_HEADER, dense_rows(each)
        yield title(each) + ": PT", CELL_HEADER, cell_rows(each)
    for each in results:
        if each.metric == "tpot_ms":
            yield f"PT's change by context, D = 8, {each.engine} TPOT", TREND_HEADER, trend_rows(each, 8)
    yield "Held out: other 70B systems, on which nothing was fitted", HELD_OUT_HEADER, held_out_rows(held_out)
    yield "Mean absolute errors", SUMMARY_HEADER, summary_rows(results)
