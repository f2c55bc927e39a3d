"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from trtllm_pt.model.quantization import KV_CACHE_QUANT_ALGOS, QUANT_ALGOS

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

ranks_option = click.option(
    "--ranks", "-g", type=click.IntRange(min=1), default=1, show_default=True, help="Ranks to divide the model over."
)
quantize_option = click.option(
    "--quantize",
    type=click.Choice(QUANT_ALGOS),
    help="The layers' matrices in 8 or 4 bits, or in FP8. For --engine tensorrt_llm.",
)
kv_cache_option = click.option(
    "--kv-cache",
    type=click.Choice(KV_CACHE_QUANT_ALGOS),
    help="The KV cache in FP8. For --engine tensorrt_llm.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")


def output_option(what: str, *names: str) -> Decorator:
    return click.option(
        "-o",
        "--output",
        *names,
        "output",
        metavar=what,
        required=True,
        type=click.Path(path_type=Path),
        help="Folder to write.",
    )


def dtype_option(*choices: str, default: str) -> Decorator:
    return click.option("--dtype", type=click.Choice(choices), default=default, show_default=True, help="Weight type.")
