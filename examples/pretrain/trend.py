"""Plot what Parallel Track costs by block depth D: the results of studies beside those of the paper.

    python examples/pretrain/trend.py examples/pretrain/study/1m.json examples/pretrain/study/4m.json \
        --plot docs/plots/trend.svg

The left panel has the bits per byte of the studies' PT models, as a difference to the dense model of the same study;
lines connect models of one study with the same number of tracks, and bars are the range over the seeds. The right panel
has the paper's accuracy (arXiv:2602.07306, tables 2 to 4), the mean over its 11 tasks, as a difference to its dense
models.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from study import RESULTS, Run, runs
from table import Row, rows

from trtllm_pt.errors import UsageError
from trtllm_pt.plotting import pyplot, save

# Mean accuracy over the 11 tasks in percent: dense, and PT with D = 2, 4, 8.
PAPER = {"6B": (53.5, 53.7, 53.5, 51.4), "13B": (55.1, 55.4, 55.6, 55.9), "30B": (59.2, 60.3, 59.6, 58.9)}
PAPER_DEPTHS = (2, 4, 8)


def lines(study: Path, results: Path) -> dict[int, dict[int, list[float]]]:
    """Return by number of tracks and D the differences to the dense model in percent, one for each seed of both.

    A row counts if it changes nothing but tracks and D. Raises UsageError if the dense model has no result.
    """
    table = {row.name: row for row in rows(study, results)}
    dense = table.get("dense")
    if dense is None:
        raise UsageError(f"{study}: its row 'dense' has no result yet")
    found: dict[int, dict[int, list[float]]] = {}
    for run in runs(study):
        if run.row in table and run.row == f"pt-{run.config.tracks}-tracks-D{run.config.block_depth}":
            found.setdefault(run.config.tracks, {})[_depth(run)] = _differences(table[run.row], dense)
    return found


def _depth(run: Run) -> int:
    assert run.config.block_depth is not None
    return run.config.block_depth


def _differences(row: Row, dense: Row) -> list[float]:
    return [100 * (row.bits[seed] / dense.bits[seed] - 1) for seed in row.bits.keys() & dense.bits.keys()]


def draw(studies: dict[str, dict[int, dict[int, list[float]]]], path: Path) -> None:
    figure, (ours, paper) = pyplot().subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for size, tracks, line in [(size, *each) for size, found in studies.items() for each in sorted(found.items())]:
        depths = sorted(line)
        means = [sum(line[depth]) / len(line[depth]) for depth in depths]
        reach = [
            [mean - min(line[depth]) for mean, depth in zip(means, depths, strict=True)],
            [max(line[depth]) - mean for mean, depth in zip(means, depths, strict=True)],
        ]
        ours.errorbar(depths, means, yerr=reach, marker="o", capsize=3, label=f"{size}, {tracks} tracks")
    ours.axhline(0, color="grey", linewidth=0.8)
    ours.set_ylabel("bits per byte, % above dense")
    ours.set_title("trained here, by parameters", fontsize=10)
    for size, (dense, *scores) in PAPER.items():
        paper.plot(PAPER_DEPTHS, [score - dense for score in scores], marker="o", label=size)
    paper.axhline(0, color="grey", linewidth=0.8)
    paper.set_ylabel("accuracy, points above dense")
    paper.set_title("arXiv:2602.07306, 8 tracks", fontsize=10)
    for axis in (ours, paper):
        _by_depth(axis)
    save(figure, path)


def _by_depth(axis: Any) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axis.set_xlabel("block depth D")
    axis.legend(fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="+")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, required=True, help="an SVG or PNG file")
    args = parser.parse_args()
    try:
        draw({study.stem.upper(): lines(study, args.results) for study in args.study}, args.plot)
    except UsageError as error:
        sys.exit(f"trend.py: {error}")


if __name__ == "__main__":
    main()
