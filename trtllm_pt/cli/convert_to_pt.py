"""`trtllm-pt convert-to-pt`: convert a dense model to a Parallel Track model, by distillation."""

from __future__ import annotations

from pathlib import Path

import click

from trtllm_pt.cli.conversion import print_report
from trtllm_pt.cli.options import output_option
from trtllm_pt.cli.spd_options import learning_options, text_option


@click.command("convert-to-pt")
@click.argument("model_dir", metavar="MODEL_DIR", type=click.Path(path_type=Path))
@output_option("DIR")
@click.option(
    "--tracks",
    "-n",
    type=click.IntRange(min=2),
    required=True,
    help="Tracks. The heads are divided over them, and as many ranks can run the model.",
)
@click.option(
    "--block-depth",
    type=click.IntRange(min=1),
    required=True,
    help="Layers of a block. All-reduces are at its end only.",
)
@text_option
@learning_options("Steps of the distillation.", 262144)
def command(
    model_dir: Path,
    output: Path,
    tracks: int,
    block_depth: int,
    texts: tuple[Path, ...],
    steps: int,
    learning_rate: float,
    batch_tokens: int,
    seed: int,
    window: int,
    tokens: int,
    dtype: str,
    as_json: bool,
) -> None:
    """Convert a dense model to a Parallel Track model, by distillation.

    Each track gets a part of the heads and FFN neurons of every layer. Then all weights learn to give the dense model's
    probabilities for the text: first with an all-reduce after every layer, and then with longer blocks. The conversion
    costs accuracy; --text should be like what the model is for, and much of it. A command that was interrupted goes on
    where it was, and ends with the same weights. MODEL_DIR is a dense model of the Llama family or in our own format.

    \b
    Examples:
      trtllm-pt convert-to-pt ~/models/llama-1b --tracks 4 --block-depth 2 --text ~/texts -o build/llama-pt
      trtllm-pt convert build/llama-pt -o build/llama --ranks 4
    """
    from trtllm_pt.conversion.convert import to_pt
    from trtllm_pt.spd.learning import Recipe

    found = to_pt(
        model_dir,
        output,
        tracks,
        block_depth,
        texts,
        recipe=Recipe(steps, learning_rate, batch_tokens, seed),
        window=window,
        tokens=tokens,
        dtype=dtype,
    )
    print_report(found, output, "block depth", as_json)
