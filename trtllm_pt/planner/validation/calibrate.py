"""Fit an engine's five numbers on dense tensor parallel rows: `python -m trtllm_pt.planner.validation.calibrate`.

The fit does not read the PT rows. The result is `calibration.json`, which is part of the package.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trtllm_pt.planner.engines import CALIBRATION, PLAIN, Engine
from trtllm_pt.planner.validation.published import PUBLISHED, Metric, Published, Row, load_published

# The numbers that each kind of row determines, in the order in which they are fitted.
FITTED: dict[Metric, tuple[str, ...]] = {
    "tpot_ms": ("step_seconds", "stream_efficiency"),
    "ttft_ms": ("request_seconds", "matrix_efficiency"),
    "tokens_per_second": ("token_seconds",),
}
_START = {
    "memory_efficiency": 0.8,
    "step_seconds": 1e-3,
    "stream_efficiency": 0.3,
    "request_seconds": 1e-2,
    "matrix_efficiency": 0.5,
    "token_seconds": 1e-5,
}
_BOUNDS = {name: (0.02, 0.95) if name.endswith("efficiency") else (1e-7, 1.0) for name in _START}
_BOUNDS["memory_efficiency"] = (0.02, 2.0)  # can exceed 1 if the bandwidth was measured in a slow minute
_ROUNDS, _NUDGE, _ROUNDING = 60, 1e-3, 2e-3


def fit(
    engine: Engine, names: Sequence[str], predict: Callable[[Engine], Sequence[float]], wanted: Sequence[float]
) -> Engine:
    """Fit the named numbers of an engine, so that the mean of |log(predicted / wanted)| is as small as possible.

    `predict(engine)` returns the figures that `wanted` lists. Absolute errors keep a single odd row from bending the
    fit. The method is Gauss-Newton over the logarithms of the numbers, with iteratively reweighted least squares and
    halved steps. It is deterministic.
    """
    target = np.log(np.asarray(wanted))
    point = np.log(np.array([_START[name] for name in names]))
    low, high = np.log(np.array([_BOUNDS[name] for name in names])).T

    def errors(at: Any) -> Any:
        return np.log(np.asarray(predict(_with(engine, names, at)))) - target

    def loss(found: Any) -> float:
        return float(np.sqrt(found**2 + _ROUNDING**2).sum())

    now = errors(point)
    for _ in range(_ROUNDS):
        slopes = np.stack([(errors(point + _NUDGE * unit) - now) / _NUDGE for unit in np.eye(len(names))], axis=1)
        weights = (now**2 + _ROUNDING**2) ** -0.25  # the weighted squares sum to the absolute values
        step, *_ = np.linalg.lstsq(slopes * weights[:, None], -now * weights, rcond=1e-6)
        for halved in np.clip(step, -1.0, 1.0) * 0.5 ** np.arange(20)[:, None]:
            there = np.clip(point + halved, low, high)
            then = errors(there)
            if loss(then) < loss(now) * (1 - 1e-5):
                point, now = there, then
                break
        else:
            break
    return _with(engine, names, point)


def _with(engine: Engine, names: Sequence[str], logs: Any) -> Engine:
    changes: dict[str, Any] = {name: float(value) for name, value in zip(names, np.exp(logs), strict=True)}
    return replace(engine, **changes)


def calibrate(published: Published) -> dict[str, Engine]:
    """Fit every engine of the tables on its dense rows."""
    return {name: _calibrated(published, PLAIN[name]) for name in published.engines()}


def _calibrated(published: Published, engine: Engine) -> Engine:
    model = published.model(published.dense, engine)
    for metric, names in FITTED.items():
        rows = [
            row
            for table in published.tables
            if table.engine == engine.name and table.metric == metric
            for row in table.rows
        ]
        if not rows:
            continue

        def figures(at: Engine, rows: list[Row] = rows, metric: Metric = metric) -> list[float]:
            return [published.evaluate(model.with_engine(at), metric, row) for row in rows]

        fitted = fit(engine, names, figures, [row.dense for row in rows])
        rounded: dict[str, Any] = {name: float(f"{getattr(fitted, name):.4g}") for name in names}
        engine = replace(fitted, **rounded)
    return engine


def to_json(fitted: dict[str, Engine]) -> dict[str, Any]:
    """Return the content of a calibration file."""
    names = [name for group in FITTED.values() for name in group]
    return {
        "made_by": "python -m trtllm_pt.planner.validation.calibrate",
        "from": "the dense TP8 column of arXiv:2602.07306, tables 5 to 10, and machines/8xH100.json",
        "engines": {name: {field: getattr(engine, field) for field in names} for name, engine in fitted.items()},
    }


def main() -> None:
    """Calibrate from the command line."""
    parser = argparse.ArgumentParser(description="Fit the engines' numbers on dense rows.")
    parser.add_argument("--published", type=Path, default=PUBLISHED, help="tables to read")
    parser.add_argument("-o", "--output", type=Path, default=CALIBRATION, help="file to write")
    arguments = parser.parse_args()
    text = json.dumps(to_json(calibrate(load_published(arguments.published))), indent=2)
    arguments.output.write_text(text + "\n")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
