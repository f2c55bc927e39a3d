"""`trtllm-pt spd distil`: drop all-reduces and repair the layers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trtllm_pt.cli.options import output_option
from trtllm_pt.cli.spd_options import Layers, in_short, learning_options, ranks_option, text_option
from trtllm_pt.cli.text import table

if TYPE_CHECKING:
    from trtllm_pt.spd.distil import Report


@click.command("distil")
@click.argument("model_dir", metavar="MODEL_DIR", type=click.Path(path_type=Path))
@output_option("DIR")
@ranks_option
@text_option
@click.option("--drop", type=Layers(), required=True, help="Layers that lose their all-reduce, such as 0,3-5.")
@click.option("--learn", type=Layers(), help="Layers to distil, or none.  [default: those of --drop]")
@click.option(
    "--group", type=Layers(), default="none", show_default=True, help="Layers whose heads are shared out anew."
)
@learning_options("Steps of each layer.", 65536)
def command(
    model_dir: Path,
    output: Path,
    ranks: int,
    texts: tuple[Path, ...],
    drop: tuple[int, ...],
    learn: tuple[int, ...] | None,
    group: tuple[int, ...],
    steps: int,
    learning_rate: float,
    batch_tokens: int,
    seed: int,
    window: int,
    tokens: int,
    dtype: str,
    as_json: bool,
) -> None:
    """Drop all-reduces after attention of a dense model, and repair the layers.

    Each layer learns alone to give the output that it has with its all-reduce. With --group, the heads of a layer are
    first shared out over the ranks so that the output changes little; that leaves the dense model as it is. A command
    that was interrupted goes on where it was, and ends with the same weights.

    \b
    Examples:
      trtllm-pt spd distil ~/models/llama-1b --ranks 4 --text ~/texts --drop 3-15 -o build/llama-spd
      trtllm-pt spd distil ~/models/llama-1b -g 4 --text ~/texts --drop 0-15 --learn 0-2,15 --group 0 -o build/llama-spd
    """
    from trtllm_pt.spd.distil import distil
    from trtllm_pt.spd.learning import Recipe

    recipe = Recipe(steps, learning_rate, batch_tokens, seed)
    found = distil(
        model_dir,
        output,
        ranks,
        texts,
        drop,
        learn=learn,
        group=group,
        recipe=recipe,
        window=window,
        tokens=tokens,
        dtype=dtype,
    )
    click.echo(json.dumps(found.to_json(), indent=2) if as_json else "\n".join(_page(found)))
    click.echo(f"{output}: model directory with {len(found.dropped_layers)} layers dropped", err=True)


def _page(found: Report) -> Iterator[str]:
    yield f"{found.model} on {found.ranks} ranks, {found.dtype}: layers {in_short(found.dropped_layers)} dropped"
    yield f"{found.windows} windows of {found.window} tokens, and {found.held_out_windows} held out"
    yield ""
    rows = [
        (each.layer, *(_shown(value) for value in (each.before, each.grouped, each.after))) for each in found.layers
    ]
    yield table(rows, ("layer", "error", "grouped", "distilled"))
    yield ""
    yield "error: of the layer's output on held-out text, squared, relative to what the layer adds to the stream."
    yield f"Perplexity of held-out text: {found.perplexity:.4f} with all all-reduces,"
    for perplexity, what in ((found.dropped_perplexity, "without them"), (found.perplexity_after, "repaired")):
        yield f"{perplexity:.4f} ({perplexity / found.perplexity - 1:+.3%}) {what}"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"
