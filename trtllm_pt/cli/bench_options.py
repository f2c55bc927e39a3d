"""Options that several measurements share, and what they mean."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtllm_pt.cli.options import Decorator
from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import ModelConfig, read_json
from trtllm_pt.model.presets import preset

if TYPE_CHECKING:
    from trtllm_pt.bench.files import Results

# TensorRT-LLM's benchmarks write --batch_size, others --batch-size: both are taken.
SPELLING = {"token_normalize_func": lambda name: name.replace("-", "_")}
MOST = 1 << 30

threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads of a rank.  [default: the cores, shared out]"
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Of the random prompts.")
report_option = click.option(
    "--report_json", type=click.Path(path_type=Path), metavar="FILE", help="Write the results here, as they come."
)
output_csv_option = click.option(
    "--output_csv", type=click.Path(path_type=Path), metavar="FILE", help="Write the table here, as it grows."
)
batch_size_option = click.option(
    "--batch_size", default="1", show_default=True, metavar="N[;N…]", help="Sequences of a batch."
)
lengths_option = click.option(
    "--input_output_len",
    default="128,20",
    show_default=True,
    metavar="IN,OUT[;IN,OUT…]",
    help="Tokens of each prompt and of each output.",
)


engines_dir_option = click.option(
    "--engines_dir",
    type=click.Path(path_type=Path),
    default=Path("build/bench"),
    show_default=True,
    help="Where engines of --model are kept.",
)
plot_option = click.option(
    "--plot",
    "plots",
    type=click.Path(path_type=Path),
    metavar="FILE",
    multiple=True,
    help="Draw it, PNG or SVG; may be repeated.",
)


def combined(*decorators: Decorator) -> Decorator:
    """Several options as one, in this order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


model_options = combined(
    click.option("--model", metavar="PRESET|CONFIG.json|DIR", help="Build this model under every schedule instead."),
    click.option(
        "--schedules", metavar="NAME[;NAME…]", help="Such as pt-d4;desync-2; tp is always there.  [default: all]"
    ),
    click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), default="bfloat16", show_default=True),
)


def engines_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """`engines`: the argument ENGINES, or `--engine_dir` as TensorRT-LLM's benchmarks have it."""

    @functools.wraps(function)
    def with_engines(*, engines: Path | None, engine_dir: Path | None, **others: Any) -> Any:
        if (engines is None) == (engine_dir is None):
            raise UsageError("give one engine directory: ENGINES, or --engine_dir ENGINES")
        return function(engines=engines or engine_dir, **others)

    option = click.option("--engine_dir", type=click.Path(path_type=Path), hidden=True)
    argument = click.argument("engines", metavar="ENGINES", required=False, type=click.Path(path_type=Path))
    return argument(option(with_engines))


def whole_numbers(text: str, option: str, separator: str = ";") -> list[int]:
    """`1;8;64`. Raises UsageError for anything but whole numbers of at least 1."""
    try:
        numbers = [int(word) for word in text.split(separator)]
    except ValueError:
        numbers = []
    if not numbers or not all(1 <= number <= MOST for number in numbers):
        raise UsageError(f"--{option} ({text!r}) must be whole numbers of at least 1 with {separator!r} between them")
    return numbers


def length_pairs(text: str) -> list[tuple[int, int]]:
    """`128,20;60,20`. Raises UsageError for anything but pairs of whole numbers."""
    pairs = [whole_numbers(part, "input_output_len", ",") for part in text.split(";")]
    for pair in pairs:
        if len(pair) != 2:
            raise UsageError(f"--input_output_len ({text!r}) must be pairs such as 128,20 with ';' between them")
    return [(pair[0], pair[1]) for pair in pairs]


def model_config(model: str) -> ModelConfig:
    """A preset, a model config, or the model of a checkpoint or engine directory."""
    path = Path(model)
    if path.is_dir():
        data = read_json(path / "config.json")
        if "pretrained_config" in data or "parallel_track" in data:
            from trtllm_pt.backends.registry import read_engine
            from trtllm_pt.checkpoint.manifest import CheckpointManifest

            engine = "pretrained_config" in data
            return read_engine(path).model if engine else CheckpointManifest.from_dir(path).model
        return ModelConfig.from_json(data)
    return ModelConfig.from_file(path) if path.suffix == ".json" else preset(model)


@contextmanager
def kept(results: Results) -> Iterator[None]:
    """Saves whatever the end is, and after an interruption says where that was."""
    try:
        yield
    except KeyboardInterrupt:
        results.save(now=True)
        click.echo(f"interrupted; kept {', '.join(map(str, results.paths)) or 'nothing'}", err=True)
        raise
    finally:
        results.save(now=True)
