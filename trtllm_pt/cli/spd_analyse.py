"""`trtllm-pt spd analyse`: which all-reduces a dense model can lose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trtllm_pt.cli.options import dtype_option, json_option
from trtllm_pt.cli.spd_options import Share, in_short, ranks_option, text_option, tokens_option, window_option
from trtllm_pt.cli.text import table

if TYPE_CHECKING:
    from trtllm_pt.model.config import ModelConfig
    from trtllm_pt.planner import Prediction
    from trtllm_pt.spd.analyse import Analysis


@click.command("analyse")
@click.argument("model_dir", metavar="MODEL_DIR", type=click.Path(path_type=Path))
@ranks_option
@text_option
@click.option("--budget", type=Share(), default="1%", show_default=True, help="Largest rise of perplexity.")
@window_option
@tokens_option(16384)
@dtype_option("auto", "bfloat16", "float32", default="auto")
@click.option("--machine", metavar="NAME|FILE.json", help="Also predict what the layers save on this machine.")
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Also write the model without the all-reduces.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE", help="Also write a plot to this PNG or SVG file."
)
@json_option
def command(
    model_dir: Path,
    ranks: int,
    texts: tuple[Path, ...],
    budget: float,
    window: int,
    tokens: int,
    dtype: str,
    machine: str | None,
    output: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Find the all-reduces after attention that a dense model can lose within a budget of perplexity.

    All-reduces are dropped from the last layer to the first, and each layer's rise of perplexity is its sensitivity.
    Then the largest set of the least sensitive layers is searched whose rise stays within the budget. A command that
    was interrupted goes on where it was. MODEL_DIR is a dense model of the Llama family or in our own format.

    \b
    Examples:
      trtllm-pt spd analyse ~/models/llama-1b --ranks 4 --text ~/texts
      trtllm-pt spd analyse ~/models/llama-1b --ranks 8 --text ~/texts --budget 0.5% --machine 8xH100 -o build/spd
    """
    from trtllm_pt.checkpoint.formats import open_source
    from trtllm_pt.checkpoint.split import SplitSource
    from trtllm_pt.files.atomic import refuse_existing
    from trtllm_pt.plotting import check_plot

    if plot is not None:
        check_plot(plot)
    if output is not None:
        refuse_existing(output)
    if machine is not None:
        _predictions(SplitSource(open_source(model_dir), ranks).config, ranks, machine)  # refuses before the long work
    from trtllm_pt.spd.analyse import analyse

    found, source = analyse(model_dir, ranks, texts, budget=budget, window=window, tokens=tokens, dtype=dtype)
    predicted = [] if machine is None else _predictions(source.config, ranks, machine)
    report = found.to_json() | ({"machine": machine, "plan": [p.to_json() for p in predicted]} if machine else {})
    click.echo(json.dumps(report, indent=2) if as_json else "\n".join(_page(found, predicted, machine)))
    if plot is not None:
        from trtllm_pt.spd.plot import plot_analysis

        plot_analysis(found, plot)
        click.echo(f"wrote {plot}", err=True)
    if output is not None:
        from trtllm_pt.backends.export import write

        write(source, output)
        click.echo(f"{output}: model directory with {len(found.dropped_layers)} layers dropped", err=True)


def _predictions(config: ModelConfig, ranks: int, machine: str) -> list[Prediction]:
    """Predict the model with all its all-reduces, and with those of the proposed layers dropped."""
    from trtllm_pt.planner import Workload, load_engine, load_machine
    from trtllm_pt.planner.engines import DEFAULT
    from trtllm_pt.planner.plan import predict

    place, engine, load = load_machine(machine), load_engine(DEFAULT), Workload(1024, 128, 1, None, 1)
    configs = (config.replace(dropped_layers=()), config)
    return [predict(each, ranks, place, engine, load, "bfloat16") for each in configs]


def _page(found: Analysis, predicted: list[Prediction], machine: str | None) -> Iterator[str]:
    yield f"{found.model} on {found.ranks} ranks, {found.dtype}: perplexity {found.perplexity:.4f}"
    yield f"{found.windows} windows of {found.window} tokens, and {found.held_out_windows} held out"
    yield ""
    rows = [
        (each.layer, f"{each.rise:+.3%}", f"{each.perplexity:.4f}", each.sensitivity, "yes" if each.dropped else "")
        for each in found.layers
    ]
    yield table(rows, ("layer", "rise", "perplexity", "sensitivity", "dropped"))
    yield ""
    yield "rise: of perplexity, where the all-reduces of all later layers are dropped already. perplexity: with those"
    yield f"of this and all later layers dropped. A layer is sensitive above {found.thresholds[0]:.3%}, the budget over"
    yield f"all layers, and extremely sensitive above {found.thresholds[1]:.3%}, the whole budget."
    yield ""
    yield f"Dropped: {len(found.dropped_layers)} of {len(found.layers)} layers, {in_short(found.dropped_layers)}."
    yield f"Perplexity {found.rise:+.3%}, with 95 % confidence at most {found.rise_high:+.3%}."
    yield f"On held-out text: {found.held_out_rise:+.3%} of {found.held_out_perplexity:.4f}."
    if predicted:
        tp, spd = predicted
        yield (
            f"On {machine}, 1 request, 1024 tokens in and 128 out: {1e3 * spd.served.tpot:.2f} ms per token instead of "
            f"{1e3 * tp.served.tpot:.2f} ms ({spd.served.tpot / tp.served.tpot - 1:+.1%}), with {spd.sync_points} "
            f"all-reduces instead of {tp.sync_points}."
        )
