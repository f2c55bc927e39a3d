"""`trtllm-pt convert-to-dtp`: convert a dense model to a model of delayed tensor parallelism, by distillation."""

from __future__ import annotations

from pathlib import Path

import click

from trtllm_pt.cli.conversion import print_report
from trtllm_pt.cli.options import output_option
from trtllm_pt.cli.spd_options import learning_options, text_option


@click.command("convert-to-dtp")
@click.argument("model_dir", metavar="MODEL_DIR", type=click.Path(path_type=Path))
@output_option("DIR")
@click.option(
    "--ranks",
    "-g",
    type=click.IntRange(min=2),
    required=True,
    help="Ranks over which the heads are divided. The model is made for this number.",
)
@click.option(
    "--delay",
    type=click.IntRange(min=1),
    required=True,
    help="Sub-layers (an attention or an FFN) that run before the outputs of the other ranks arrive.",
)
@text_option
@learning_options("Steps of the distillation.", 262144)
def command(
    model_dir: Path,
    output: Path,
    ranks: int,
    delay: int,
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
    """Convert a dense model to delayed tensor parallelism, by distillation.

    In delayed tensor parallelism (DTP, arXiv:2609.13846) the all-reduces stay, but each of them runs during the next
    sub-layers. Heads and FFN neurons go to the ranks where they miss least. Then all weights learn to give the dense
    model's probabilities for the text. A command that was interrupted goes on where it was, and ends with the same
    weights. MODEL_DIR is a dense model of the Llama family or in our own format.

    \b
    Examples:
      trtllm-pt convert-to-dtp ~/models/llama-1b --ranks 4 --delay 1 --text ~/texts -o build/llama-dtp
      trtllm-pt convert build/llama-dtp -o build/llama --ranks 4
    """
    from trtllm_pt.conversion.convert import to_dtp
    from trtllm_pt.spd.learning import Recipe

    found = to_dtp(
        model_dir,
        output,
        ranks,
        delay,
        texts,
        recipe=Recipe(steps, learning_rate, batch_tokens, seed),
        window=window,
        tokens=tokens,
        dtype=dtype,
    )
    print_report(found, output, "delay", as_json)
