"""Plots, PNG or SVG by the file's ending. Needs matplotlib (`plot` extra)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

BLUE, ORANGE, GREY = "#4878a8", "#d9843b", "#888888"


def pyplot() -> Any:
    """matplotlib without a screen; planner.plot.check_target has looked for it."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    return plt


def plot_comparison(report: dict[str, Any], path: Path) -> None:
    """A row of two axes per case: TTFT and TPOT over the baseline's, with the spread from p10 to p90."""
    plt = pyplot()
    cases = _cases(report["rows"])
    names = [row["name"] for row in cases[0][1]]
    size = (10, (0.35 * len(names) + 1.2) * len(cases))
    figure, axes = plt.subplots(len(cases), 2, figsize=size, layout="constrained", squeeze=False)
    for pair, (title, rows) in zip(axes, cases, strict=True):
        for axis, what in zip(pair, ("ttft", "tpot"), strict=True):
            _bars(axis, rows, what)
            axis.set_xlabel(f"{what.upper()} over {report['baseline']}'s")
        pair[0].set_title(title, fontsize=9, loc="left")
    figure.suptitle(f"{report['world_size']} ranks, {report['machine']['name']}; below 1 is faster", fontsize=10)
    figure.savefig(path)
    plt.close(figure)


def _cases(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        title = f"batch {row['batch_size']}, {row['input_length']} in, {row['output_length']} out"
        found.setdefault(title, []).append(row)
    return list(found.items())


def _bars(axis: Any, rows: Sequence[dict[str, Any]], what: str) -> None:
    shown = [row for row in rows[::-1] if row[f"{what}_ratio"] is not None]
    middle = [row[f"{what}_ratio"] for row in shown]
    reach = [
        [ratio - row[f"{what}_ratio_p10"] for ratio, row in zip(middle, shown, strict=True)],
        [row[f"{what}_ratio_p90"] - ratio for ratio, row in zip(middle, shown, strict=True)],
    ]
    labels = [f"{row['name']} ({row['syncs_per_token']} syncs)" for row in shown]
    axis.barh(labels, middle, xerr=reach, color=BLUE, ecolor=GREY, capsize=2)
    axis.axvline(1.0, color=GREY, linewidth=0.8)
