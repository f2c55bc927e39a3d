"""Convert a dense model to Parallel Track or to delayed tensor parallelism, and write it as a MODEL_DIR."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from trtllm_pt.backends.export import write
from trtllm_pt.checkpoint.formats import open_source
from trtllm_pt.checkpoint.load import Parameters
from trtllm_pt.checkpoint.tokenizer_files import check_tokenizer
from trtllm_pt.conversion.distil import Distillation, Stage
from trtllm_pt.conversion.start import start
from trtllm_pt.errors import UsageError
from trtllm_pt.files.atomic import refuse_existing
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.layout import over_tracks
from trtllm_pt.spd.learning import Recipe
from trtllm_pt.spd.state import state_folder
from trtllm_pt.spd.windows import read_windows

_SCHEDULES = {"block_depth": "pt", "delay": "dtp"}  # by the field that grows
_STARTING_TOKENS = 4096  # that decide who gets which heads and neurons


@dataclass(frozen=True, slots=True)
class Report:
    """What a conversion did. Divergences and perplexities are those of the held-out text."""

    model: str
    schedule: str
    tracks: int
    dtype: str
    recipe: Recipe
    window: int
    windows: int
    held_out_windows: int
    stages: tuple[tuple[int, int], ...]  # each block depth or delay, and the step at which it ends
    tokens: int  # that the model has learnt from, each time that it has seen one
    perplexity: float  # of the dense model
    divergence_before: float  # from the dense model, in nats per token, before anything was learnt
    perplexity_before: float
    divergence_after: float
    perplexity_after: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def to_pt(
    model_dir: Path, output: Path, tracks: int, block_depth: int, texts: Sequence[Path], **options: Any
) -> Report:
    """Convert a dense model to a PT model of `tracks` tracks that all-reduces every `block_depth` layers.

    Half of the steps run with block depths 1, 2, 4, … below `block_depth`, and the others with `block_depth` itself.
    options: as in `convert`.
    """
    return convert(model_dir, output, tracks, "block_depth", _doubling(block_depth), texts, **options)


def to_dtp(model_dir: Path, output: Path, ranks: int, delay: int, texts: Sequence[Path], **options: Any) -> Report:
    """Convert a dense model to delayed tensor parallelism on `ranks` ranks, with `delay` sub-layers between an output
    and its arrival on the other ranks.

    Half of the steps run with delays 1, 2, 4, … below `delay`, and the others with `delay` itself.
    options: as in `convert`.
    """
    return convert(model_dir, output, ranks, "delay", _doubling(delay), texts, **options)


def convert(
    model_dir: Path,
    output: Path,
    tracks: int,
    field: str,
    values: Sequence[int],
    texts: Sequence[Path],
    *,
    recipe: Recipe | None = None,
    window: int = 256,
    tokens: int = 262144,
    dtype: str = "auto",
    progress: bool | None = None,
) -> Report:
    """Convert a dense model by distillation, with a field of the config that grows through `values`.

    recipe, window, tokens, dtype: as in `trtllm_pt.spd.distil.distil`.
    A run that is killed goes on where it was, and ends with the same weights. `output` appears complete or not at all.
    Peak memory: 4 bytes for each weight of the dense model, 16 of the new one, and the activations of a step.
    Raises UsageError if `output` exists, if the model is not dense or cannot be divided over `tracks`, and if the text
    is too short.
    """
    refuse_existing(output)
    recipe = recipe or Recipe()
    dense = open_source(model_dir)
    _check(dense.config, tracks, field, values[-1])
    configs = [over_tracks(dense.config, tracks, schedule=_SCHEDULES[field], **{field: value}) for value in values]
    if dense.tokenizer is not None:
        check_tokenizer(dense.tokenizer, dense.config.vocab_size)
    windows = read_windows(dense, texts, window, tokens)
    chosen = dense.dtype if dtype == "auto" else dtype
    stages = tuple(_stages(configs, recipe.steps))
    hide_bar = None if progress is None else not progress
    with state_folder("convert", model_dir, dense, windows, field, tracks, values, asdict(recipe), chosen) as folder:
        run = Distillation(dense, windows, folder, recipe, getattr(torch, chosen))
        sample = run.windows[: max(1, _STARTING_TOKENS // window), :-1]
        done = run.run(stages, lambda: start(dense, configs[0], sample, hide_bar=hide_bar), hide_bar)
        write(Parameters(done.model, dense.dtype, dense.tokenizer), output, progress)
        shutil.rmtree(folder)  # the weights and the optimizer's state would stay in the cache
    return Report(
        model=str(model_dir),
        schedule=_SCHEDULES[field],
        tracks=tracks,
        dtype=chosen,
        recipe=recipe,
        window=window,
        windows=len(run.windows),
        held_out_windows=len(run.held_out),
        stages=tuple((value, stage.until) for value, stage in zip(values, stages, strict=True)),
        tokens=recipe.steps * max(1, recipe.batch_tokens // window) * window,
        perplexity=math.exp(done.before.dense_nats),
        divergence_before=done.before.divergence,
        perplexity_before=math.exp(done.before.nats),
        divergence_after=done.after.divergence,
        perplexity_after=math.exp(done.after.nats),
    )


def _doubling(last: int) -> list[int]:
    """Return 1, 2, 4, … below `last`, and `last`."""
    return [*(1 << power for power in range(last.bit_length()) if 1 << power < last), last]


def _stages(configs: Sequence[ModelConfig], steps: int) -> Iterator[Stage]:
    """Yield the stages: the last one has half of the steps, and the others share the rest."""
    early = len(configs) - 1
    for number, config in enumerate(configs, start=1):
        yield Stage(config, steps if number > early else steps // 2 * number // early)


def _check(config: ModelConfig, tracks: int, field: str, value: int) -> None:
    if config.schedule != "tp":
        raise UsageError(
            f"the model has schedule {config.schedule!r}; only a dense model, of schedule 'tp', can be converted"
        )
    if config.has_moe:
        raise UsageError("the model has a mixture of experts; only models with dense FFNs can be converted")
    option = "--tracks" if field == "block_depth" else "--ranks"
    for name in ("num_heads", "intermediate_size"):
        if getattr(config, name) % tracks:
            raise UsageError(f"{option} ({tracks}) must divide {name} ({getattr(config, name)})")
    layers = config.num_layers
    if field == "block_depth" and value > layers:
        raise UsageError(f"--block-depth ({value}) must be between 1 and the model's {layers} layers")
    if field == "delay" and value >= 2 * layers:
        raise UsageError(
            f"--delay ({value}) must be below {2 * layers}, the number of sub-layers in the model's {layers} layers"
        )
