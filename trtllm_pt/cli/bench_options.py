"""Options that several measurements share, and the values that are made of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtllm_pt.cli.measurement import Output
from trtllm_pt.cli.options import Decorator
from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import ModelConfig, read_json
from trtllm_pt.model.presets import preset

if TYPE_CHECKING:
    from trtllm_pt.bench.contenders import Contender
    from trtllm_pt.bench.static_batch import Case

MOST = 1 << 30


def grouped(name: str, make: Callable[..., Any], *options: Decorator) -> Decorator:
    """Declare several options that a command receives as one argument `name`.

    `make` makes the argument. Its parameters are named like the options; those that are not declared keep defaults.
    """
    names = tuple(inspect.signature(make).parameters)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def with_group(**given: Any) -> Any:
            own = {each: given.pop(each) for each in names if each in given}
            return function(**{name: make(**own)}, **given)

        declared: Callable[..., Any] = with_group
        for option in reversed(options):
            declared = option(declared)
        return declared

    return decorate


def _file_option(flag: str, text: str) -> Decorator:
    return click.option(flag, type=click.Path(path_type=Path), metavar="FILE", help=text)


_OUTPUT_OPTIONS: dict[str, Decorator] = {
    "--csv": click.option("--csv", "as_csv", is_flag=True, help="Print the table as CSV."),
    "--json": click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
    "--output_csv": _file_option("--output_csv", "Write the table as CSV, and update it regularly."),
    "--report_json": _file_option("--report_json", "Write the report as JSON, and update it regularly."),
    "--plot": click.option(
        "--plot",
        "plots",
        type=click.Path(path_type=Path),
        metavar="FILE",
        multiple=True,
        help="Write a plot to this PNG or SVG file. May be given several times.",
    ),
}


def output_options(*flags: str) -> Decorator:
    """Declare the named options of `Output`, which the command receives as `output`."""
    return grouped("output", Output, *(_OUTPUT_OPTIONS[flag] for flag in flags))


threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads per rank.  [default: cores / ranks]"
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random prompts.")
lengths_option = click.option(
    "--input_output_len",
    default="128,20",
    show_default=True,
    metavar="IN,OUT[;IN,OUT…]",
    help="Tokens of each prompt and of each output.",
)


def _cases(batch_size: str, input_output_len: str) -> list[Case]:
    from trtllm_pt.bench.static_batch import Case

    sizes = whole_numbers(batch_size, "batch_size")
    return [Case(size, *pair) for pair in length_pairs(input_output_len) for size in sizes]


case_options = grouped(
    "cases",
    _cases,
    click.option(
        "--batch_size", default="1", show_default=True, metavar="N[;N…]", help="Number of sequences in a batch."
    ),
    lengths_option,
)


def engines_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """Declare the argument ENGINES, which may also be given as `--engine_dir` as in TensorRT-LLM's benchmarks."""

    def one(engines: Path | None, engine_dir: Path | None) -> Path:
        if (engines is None) == (engine_dir is None):
            raise UsageError("give one engine directory: ENGINES, or --engine_dir ENGINES")
        return engines or engine_dir or Path()

    option = click.option("--engine_dir", type=click.Path(path_type=Path), hidden=True)
    argument = click.argument("engines", metavar="ENGINES", required=False, type=click.Path(path_type=Path))
    return grouped("engines", one, argument, option)(function)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which engines are compared: NAME=ENGINES arguments, or a model under several schedules."""

    engines: tuple[str, ...]
    model: str | None
    schedules: str | None
    dtype: str
    engines_dir: Path
    ranks: int | None

    def __post_init__(self) -> None:
        if bool(self.engines) == (self.model is not None):
            raise UsageError("give either engines to compare, the baseline first, or --model")
        if self.schedules is not None and self.model is None:
            raise UsageError("--schedules needs --model")

    def build(self, ranks: int, cases: Sequence[Case], wait: Callable[[Callable[[], Any]], Any]) -> list[Contender]:
        """Build the engines of --model that are missing.

        `wait` gets the function that builds them, and returns its result on every rank.
        """
        from trtllm_pt.bench.contenders import Contender, build_all, options_for, schedules_of
        from trtllm_pt.bench.facts import Facts

        assert self.model is not None
        config = model_config(self.model)
        configs = schedules_of(config, ranks, self.schedules.split(";") if self.schedules else None)
        options = options_for(config, cases)
        paths = wait(lambda: build_all(configs, ranks, self.dtype, options, self.engines_dir))
        return [Contender(name, Facts.of(path)) for name, path in paths.items()]


def choice_options(ranks_option: Decorator) -> Decorator:
    """Declare the options of `Choice`, which the command receives as `choice`."""
    return grouped(
        "choice",
        Choice,
        click.argument("engines", metavar="[[NAME=]ENGINES]...", nargs=-1),
        click.option("--model", metavar="PRESET|CONFIG.json|DIR", help="Build this model under all schedules."),
        click.option(
            "--schedules",
            metavar="NAME[;NAME…]",
            help="Schedules to compare with tp, for example pt-d4;desync-2.  [default: all]",
        ),
        click.option(
            "--dtype",
            type=click.Choice(["bfloat16", "float32"]),
            default="bfloat16",
            show_default=True,
            help="Weight type of --model.",
        ),
        click.option(
            "--engines-dir",
            type=click.Path(path_type=Path),
            default=Path("build/bench"),
            show_default=True,
            help="Folder in which the engines of --model are kept.",
        ),
        ranks_option,
    )


def whole_numbers(text: str, option: str, separator: str = ";") -> list[int]:
    """Read numbers such as `1;8;64`. Raises UsageError if one is not a whole number of at least 1."""
    try:
        numbers = [int(word) for word in text.split(separator)]
    except ValueError:
        numbers = []
    if not numbers or not all(1 <= number <= MOST for number in numbers):
        raise UsageError(f"--{option} ({text!r}) must be whole numbers of at least 1, separated by {separator!r}")
    return numbers


def length_pairs(text: str) -> list[tuple[int, int]]:
    """Read pairs such as `128,20;60,20`. Raises UsageError if one is not a pair of whole numbers."""
    pairs = [whole_numbers(part, "input_output_len", ",") for part in text.split(";")]
    for pair in pairs:
        if len(pair) != 2:
            raise UsageError(f"--input_output_len ({text!r}) must be pairs such as 128,20, separated by ';'")
    return [(pair[0], pair[1]) for pair in pairs]


def model_config(model: str) -> ModelConfig:
    """Read a preset, a model config, or the model of a checkpoint or engine directory.

    Raises UsageError if it is none of them.
    """
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
