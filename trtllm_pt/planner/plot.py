"""Plots of a plan and of the planner's validation."""

from __future__ import annotations

from pathlib import Path

from trtllm_pt.planner.plan import Plan
from trtllm_pt.planner.validation.report import title
from trtllm_pt.planner.validation.validate import DEPTHS, Result
from trtllm_pt.plotting import BLUE, GREEN, ORANGE, pyplot, save


def plot_plan(plan: Plan, path: Path) -> None:
    """Plot TTFT and TPOT of every schedule. The time in which ranks wait in all-reduces is hatched.

    Of a plan for several nodes, lines show the times of the same models on one node.
    """
    figure, axes = pyplot().subplots(1, 2, figsize=(10, 0.4 * len(plan.predictions) + 1.6), layout="constrained")
    names = [each.name for each in plan.predictions][::-1]
    served = [each.served for each in plan.predictions][::-1]
    figures = (
        ("TTFT, ms", [each.ttft or 0 for each in served], [each.prompt.all_reduce for each in served]),
        ("TPOT, ms", [each.tpot for each in served], [each.step.all_reduce for each in served]),
    )
    for axis, (label, times, waits) in zip(axes, figures, strict=True):
        rest = [1e3 * max(0.0, time - wait) for time, wait in zip(times, waits, strict=True)]
        axis.barh(names, rest, color=BLUE, label="everything else")
        axis.barh(names, [1e3 * wait for wait in waits], left=rest, color=ORANGE, hatch="//", label="all-reduce")
        axis.set_xlabel(label)
        shown = [(1e3 * alone, name) for name in names if (alone := _one_node(plan, name, label)) is not None]
        if shown:
            axis.plot(*zip(*shown, strict=True), "|", color="black", markersize=14, label="on one node")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    load = plan.workload
    figure.suptitle(f"{plan.engine} on {plan.ranks} of {plan.machine}, {load.input} in, {load.output} out")
    save(figure, path)


def _one_node(plan: Plan, name: str, label: str) -> float | None:
    """Return the seconds of a model on one node, or None if it does not run there."""
    alone = plan.one_node.get(name)
    if alone is None or not alone.fits:
        return None
    return alone.served.ttft if label.startswith("TTFT") else alone.served.tpot


def plot_validation(results: list[Result], path: Path) -> None:
    """Plot PT's change relative to dense: published values as dots, predictions as dashes with their bands."""
    figure, axes = pyplot().subplots(2, 3, figsize=(13, 7), layout="constrained")
    for axis, result in zip(axes.flat, results, strict=True):
        for number, (depth, colour) in enumerate(zip(DEPTHS, (BLUE, GREEN, ORANGE), strict=True)):
            cells = [cell for cell in result.cells if cell.depth == depth]
            places = [row + 0.22 * (number - 1) for row in range(len(cells))]
            middle = [cell.predicted_change for cell in cells]
            reach = [
                [cell.predicted_change - cell.band[0] for cell in cells],
                [cell.band[1] - cell.predicted_change for cell in cells],
            ]
            axis.errorbar(places, middle, reach, fmt="_", color=colour, markersize=9, label=f"D={depth}, predicted")
            shown = [(at, cell.printed_change) for at, cell in zip(places, cells, strict=True) if cell.printed]
            axis.plot(*zip(*shown, strict=True), "o", color=colour, markersize=4, label=f"D={depth}, printed")
        axis.axhline(0, color="grey", linewidth=0.5)
        axis.set_xticks(range(len(result.dense)), [f"{r.input}/{r.output}" for r in result.dense], rotation=40)
        axis.set_title(title(result), fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("change relative to dense, %")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    save(figure, path)
