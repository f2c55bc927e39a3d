"""Options that the commands share which let a dense model synchronise less."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from trtllm_pt.cli.options import Decorator, dtype_option, json_option


class Share(click.ParamType[float]):
    """A share of one, such as 0.01 or 1%."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"{text!r} is not a share, such as 1% or 0.01", param, ctx)
        if not (share >= 0 and math.isfinite(share)):
            self.fail(f"{text} must be at least 0", param, ctx)
        return share


class Layers(click.ParamType[tuple[int, ...]]):
    """Numbers of layers, such as `0,3-5`, or `none`."""

    name = "layers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if value == "none":
            return ()
        try:
            ends = [[int(end) for end in part.split("-", 1)] for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a list of layers, such as 0,3-5", param, ctx)
        return tuple(sorted({layer for first, *rest in ends for layer in range(first, (rest or [first])[0] + 1)}))


def in_short(layers: Iterable[int]) -> str:
    """Return numbers in short form, such as `0,3-5`, which `Layers` reads."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) or "none"


ranks_option = click.option(
    "--ranks",
    "-g",
    type=click.IntRange(min=2),
    required=True,
    help="Ranks over which the heads are divided; what a layer can bear depends on it.",
)
text_option = click.option(
    "--text",
    "texts",
    metavar="FILE|DIR",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Text to predict: a UTF-8 file, or all files in a folder. The last quarter is held out. Can be repeated.",
)
window_option = click.option(
    "--window", type=click.IntRange(min=2), default=256, show_default=True, help="Tokens of each window."
)


def tokens_option(default: int) -> Decorator:
    """Return the option --tokens."""
    return click.option(
        "--tokens",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        help="Most tokens to use. Windows are evenly spread over a longer text.",
    )


def learning_options(steps: str, tokens: int) -> Decorator:
    """Return the options of a command in which weights learn: what steps there are, and the default of --tokens."""

    def declare(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(
            (
                click.option("--steps", type=click.IntRange(min=1), default=400, show_default=True, help=steps),
                click.option(
                    "--learning-rate",
                    type=click.FloatRange(min=0, min_open=True),
                    default=1e-3,
                    show_default=True,
                    help="Of AdamW.",
                ),
                click.option(
                    "--batch-tokens",
                    type=click.IntRange(min=1),
                    default=2048,
                    show_default=True,
                    help="Tokens of each step.",
                ),
                click.option(
                    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Decides the batches."
                ),
                window_option,
                tokens_option(tokens),
                dtype_option("auto", "bfloat16", "float32", default="auto"),
                json_option,
            )
        ):
            command = option(command)
        return command

    return declare
