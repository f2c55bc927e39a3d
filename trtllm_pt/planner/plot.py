"""Plots, PNG or SVG by the file's ending. Needs matplotlib (`plot` extra)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtllm_pt.errors import UsageError
from trtllm_pt.planner.plan import Plan
from trtllm_pt.planner.validation.report import title
from trtllm_pt.planner.validation.validate import DEPTHS, Result

ENDINGS = (".png", ".svg")


def check_target(path: Path) -> None:
    """Before any work. Raises UsageError for an ending, a folder or a library that is not there."""
    if path.suffix not in ENDINGS:
        raise UsageError(f"--plot ({path}) must end in {' or '.join(ENDINGS)}")
    if not path.parent.is_dir():
        raise UsageError(f"--plot ({path}): there is no folder {path.parent}")
    _pyplot()


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise UsageError("--plot needs matplotlib: pip install -e '.[plot]'") from None
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    return plt


def plot_plan(plan: Plan, path: Path) -> None:
    """TTFT and TPOT of every schedule, the part that ranks wait in all-reduces hatched."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.4 * len(plan.predictions) + 1.6), layout="constrained")
    names = [each.name for each in plan.predictions][::-1]
    served = [each.served for each in plan.predictions][::-1]
    figures = (
        ("TTFT, ms", [each.ttft or 0 for each in served], [each.prompt.all_reduce for each in served]),
        ("TPOT, ms", [each.tpot for each in served], [each.step.all_reduce for each in served]),
    )
    for axis, (label, times, waits) in zip(axes, figures, strict=True):
        rest = [1e3 * max(0.0, time - wait) for time, wait in zip(times, waits, strict=True)]
        axis.barh(names, rest, color="#4878a8", label="everything else")
        axis.barh(names, [1e3 * wait for wait in waits], left=rest, color="#d9843b", hatch="//", label="all-reduce")
        axis.set_xlabel(label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    load = plan.workload
    figure.suptitle(f"{plan.engine} on {plan.ranks} of {plan.machine}, {load.input} in, {load.output} out")
    figure.savefig(path)
    plt.close(figure)


def plot_validation(results: list[Result], path: Path) -> None:
    """PT's change against dense: printed as dots, predicted as dashes with their band."""
    plt = _pyplot()
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    for axis, result in zip(axes.flat, results, strict=True):
        for number, (depth, colour) in enumerate(zip(DEPTHS, ("#4878a8", "#6aa35a", "#d9843b"), strict=True)):
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
        axis.set_ylabel("change against dense, %")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path)
    plt.close(figure)
