"""Plot an analysis: each layer's sensitivity, and the perplexity as all-reduces are dropped from the last layer on."""

from __future__ import annotations

from pathlib import Path

from trtllm_pt.plotting import BLUE, GREEN, GREY, ORANGE, pyplot, save
from trtllm_pt.spd.analyse import EXTREME, INSENSITIVE, SENSITIVE, Analysis

_COLOURS = {INSENSITIVE: GREEN, SENSITIVE: BLUE, EXTREME: ORANGE}


def plot_analysis(found: Analysis, path: Path) -> None:
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(11, 4), layout="constrained")
    for kind, colour in _COLOURS.items():
        some = [each for each in found.layers if each.sensitivity == kind]
        left.bar([each.layer for each in some], [100 * each.rise for each in some], color=colour, label=kind)
    for threshold in found.thresholds:
        left.axhline(100 * threshold, color=GREY, linewidth=0.8, linestyle="--")
    left.set_yscale("symlog", linthresh=max(100 * found.thresholds[0], 1e-3))
    left.set_xlabel("layer")
    left.set_ylabel("rise of perplexity, %")
    left.legend(fontsize=8)
    right.plot([each.layer for each in found.layers], [each.perplexity for each in found.layers], "o-", color=BLUE)
    right.axhline(found.perplexity * (1 + found.budget), color=GREY, linewidth=0.8, linestyle="--", label="budget")
    right.set_xlabel("first layer of those whose all-reduce is dropped")
    right.set_ylabel("perplexity")
    right.legend(fontsize=8)
    title = f"{found.model} on {found.ranks} ranks: {len(found.dropped_layers)} of {len(found.layers)} layers dropped"
    figure.suptitle(f"{title} within {found.budget:.2%}", fontsize=10)
    save(figure, path)
