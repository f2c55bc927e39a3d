"""Plots, PNG or SVG by the file's ending. Needs matplotlib (`plot` extra)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_BLUE, _GREY = "#4878a8", "#888888"


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
    axis.barh(labels, middle, xerr=reach, color=_BLUE, ecolor=_GREY, capsize=2)
    axis.axvline(1.0, color=_GREY, linewidth=0.8)


def plot_sweep(report: dict[str, Any], path: Path) -> None:
    """TPOT over the baseline's against the links' delay: measured with its spread, and the planner's curve."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    links = sorted(report["links"], key=lambda link: link["delay_us"])
    delays = [link["delay_us"] for link in links]
    names = [row["name"] for row in links[0]["rows"] if row["name"] != report["baseline"]]
    for number, name in enumerate(names):
        rows = [row for link in links for row in link["rows"] if row["name"] == name]
        middle = [row["tpot_ratio"] for row in rows]
        reach = [
            [row["tpot_ratio"] - row["tpot_ratio_p10"] for row in rows],
            [row["tpot_ratio_p90"] - row["tpot_ratio"] for row in rows],
        ]
        label = f"{name} ({rows[0]['syncs_per_token']} syncs)"
        axis.errorbar(delays, middle, reach, fmt="o", color=f"C{number}", capsize=2, label=label)
        predicted = [link["predicted_tpot_ratio"][name] for link in links]
        axis.plot(delays, predicted, "--", color=f"C{number}", label=f"{name}, predicted")
    axis.axhline(1.0, color=_GREY, linewidth=0.8)
    if min(delays) > 0:
        axis.set_xscale("log")
    else:
        axis.set_xscale("symlog", linthresh=10)  # a delay of 0 has its place too
    axis.set_xticks(delays, [f"{delay:g}" for delay in delays])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set_xlabel("one-way delay of a link, microseconds")
    axis.set_ylabel(f"TPOT over {report['baseline']}'s; below 1 is faster")
    case = f"batch {report['batch_size']}, {report['input_length']} in, {report['output_length']} out"
    axis.set_title(f"{report['world_size']} ranks, {report['machine']['name']}, {case}", fontsize=9)
    axis.legend(fontsize=8)
    figure.savefig(path)
    plt.close(figure)
