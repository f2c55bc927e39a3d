"""Plots of comparisons and of sweeps over links."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trtllm_pt.plotting import BLUE, GREY, pyplot, save


def plot_comparison(report: dict[str, Any], path: Path) -> None:
    """Plot TTFT and TPOT of every case relative to the baseline, with the spread from p10 to p90."""
    cases = _cases(report["rows"])
    names = [row["name"] for row in cases[0][1]]
    size = (10, (0.35 * len(names) + 1.2) * len(cases))
    figure, axes = pyplot().subplots(len(cases), 2, figsize=size, layout="constrained", squeeze=False)
    for pair, (title, rows) in zip(axes, cases, strict=True):
        for axis, what in zip(pair, ("ttft", "tpot"), strict=True):
            _bars(axis, rows, what)
            axis.set_xlabel(f"{what.upper()} relative to {report['baseline']}")
        pair[0].set_title(title, fontsize=9, loc="left")
    figure.suptitle(f"{report['world_size']} ranks, {report['machine']['name']}; below 1 is faster", fontsize=10)
    save(figure, path)


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


def plot_sweep(report: dict[str, Any], path: Path) -> None:
    """Plot TPOT relative to the baseline over the delay of the links, as measured and as the planner predicts it."""
    figure, axis = pyplot().subplots(figsize=(8, 5), layout="constrained")
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
    axis.axhline(1.0, color=GREY, linewidth=0.8)
    if min(delays) > 0:
        axis.set_xscale("log")
    else:
        axis.set_xscale("symlog", linthresh=10)  # a logarithmic axis cannot show a delay of 0
    axis.set_xticks(delays, [f"{delay:g}" for delay in delays])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set_xlabel("one-way delay of a link, microseconds")
    axis.set_ylabel(f"TPOT relative to {report['baseline']}; below 1 is faster")
    case = f"batch {report['batch_size']}, {report['input_length']} in, {report['output_length']} out"
    axis.set_title(f"{report['world_size']} ranks, {report['machine']['name']}, {case}", fontsize=9)
    axis.legend(fontsize=8)
    save(figure, path)
