"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import click

from trtllm_pt.model.quantization import EMBEDDING_QUANT_ALGOS, KV_CACHE_QUANT_ALGOS, QUANT_ALGOS
from trtllm_pt.requests.fields import WHOLE, Field

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

ranks_option = click.option(
    "--ranks", "-g", type=click.IntRange(min=1), default=1, show_default=True, help="Number of ranks."
)
quantize_option = click.option(
    "--quantize",
    type=click.Choice(QUANT_ALGOS),
    help="Quantise the layers' matrices: to 8 or 4 bits with one scale per output (W8A16, W4A16) or with a scale for "
    "each group of 128, 64 or 32 inputs (-G), also with zero points (-ZP), or to FP8. --engine embedded builds all but "
    "FP8, --engine tensorrt_llm all but groups.",
)
embedding_option = click.option(
    "--embedding",
    type=click.Choice(EMBEDDING_QUANT_ALGOS),
    help="Quantise the embedding and the output head, to 8 bits with a scale for each token of the vocabulary. Only "
    "--engine embedded can build the result.",
)
kv_cache_option = click.option(
    "--kv-cache",
    type=click.Choice(KV_CACHE_QUANT_ALGOS),
    help="Keep the KV cache in FP8 (only for --engine tensorrt_llm), or in INT8 with a scale per token and head (only "
    "for --engine embedded).",
)
speculative_option = click.option(
    "--speculative",
    metavar="ngram[:K]",
    help="Draft up to K tokens (8) from earlier ones of the same sequence, and compute them in one step. The output "
    "stays the same.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def output_option(what: str, *names: str) -> Decorator:
    """Return the required option --output, with metavar `what` and further option names `names`."""
    return click.option(
        "-o",
        "--output",
        *names,
        "output",
        metavar=what,
        required=True,
        type=click.Path(path_type=Path),
        help="Folder to create.",
    )


def dtype_option(*choices: str, default: str) -> Decorator:
    """Return the option --dtype with the given choices."""
    return click.option("--dtype", type=click.Choice(choices), default=default, show_default=True, help="Weight type.")


def sampling_options(fields: Iterable[Field]) -> Decorator:
    """An option for each of the numbers, under its name in SamplingParams, with its default and its range."""

    def declare(command: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(tuple(fields)):
            text = f"{field.help}; {field.range}".removesuffix("; ") + "."
            option = click.option(
                f"--{field.name.replace('_', '-')}",
                type=int if field.kind == WHOLE else float,
                default=field.default,
                show_default=True,
                callback=partial(_checked, field),
                help=text,
            )
            command = option(command)
        return command

    return declare


def _checked(field: Field, context: click.Context, option: click.Parameter, value: float) -> float:
    if problem := field.problem(value):
        raise click.BadParameter(problem, context, option)
    return value
