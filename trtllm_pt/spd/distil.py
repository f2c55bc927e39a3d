"""Repair layers whose all-reduce after attention is dropped, by block-to-block distillation and by head grouping.

Block-to-block: only the weights of one layer learn, and their target is the output that the layer has with its
all-reduce. Inputs and targets are those of the dense model, so no layer waits for another one to be repaired.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from trtllm_pt.backends.export import write
from trtllm_pt.checkpoint.formats import open_source
from trtllm_pt.checkpoint.source import Source
from trtllm_pt.checkpoint.split import SplitSource
from trtllm_pt.checkpoint.tokenizer_files import check_tokenizer
from trtllm_pt.errors import UsageError
from trtllm_pt.files.atomic import new_file, refuse_existing, write_json
from trtllm_pt.files.safetensors import SafetensorsFile
from trtllm_pt.model.config import ModelConfig, read_json
from trtllm_pt.model.tensors import TensorSpec
from trtllm_pt.network.reference import Layer
from trtllm_pt.spd.blocks import Blocks, batches
from trtllm_pt.spd.heads import GroupedHeads, Order, best_order
from trtllm_pt.spd.learning import Lesson, Recipe, learn
from trtllm_pt.spd.state import state_folder
from trtllm_pt.spd.streams import Streams
from trtllm_pt.spd.sweep import Sweep
from trtllm_pt.spd.windows import read_windows

_HELD_OUT_ONE_IN = 4
_GROUPING_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class LayerReport:
    """The relative squared error of a dropped layer's output on held-out text: before, after grouping, after learning.

    Relative to what the layer adds to the stream, so that 0 is the dense layer and 1 is no layer at all.
    """

    layer: int
    before: float
    grouped: float | None
    after: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """What `distil` did. Perplexities are those of the held-out text."""

    model: str
    ranks: int
    dtype: str
    recipe: Recipe
    window: int
    windows: int
    held_out_windows: int
    dropped_layers: tuple[int, ...]
    layers: tuple[LayerReport, ...]
    perplexity: float  # of the dense model
    dropped_perplexity: float  # with the all-reduces dropped
    perplexity_after: float  # with the layers repaired

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Repaired:
    """A `Source` with the weights of some layers from files."""

    def __init__(self, source: Source, files: Mapping[int, Path]) -> None:
        self._source = source
        self._files = {f"transformer.layers.{layer}": SafetensorsFile(path) for layer, path in files.items()}
        self.config: ModelConfig = source.config
        self.dtype = source.dtype
        self.tokenizer: Path | None = source.tokenizer

    def read(self, spec: TensorSpec, track: int, dtype: torch.dtype) -> Tensor:
        prefix = ".".join(spec.name.split(".", 3)[:3])
        if prefix not in self._files:
            return self._source.read(spec, track, dtype)
        whole = self._files[prefix].get(spec.name.removeprefix(f"{prefix}."))
        return (whole[track] if spec.per_track else whole).to(dtype)


def distil(
    model_dir: Path,
    output: Path,
    ranks: int,
    texts: Sequence[Path],
    drop: Collection[int],
    *,
    learn: Collection[int] | None = None,
    group: Collection[int] = (),
    recipe: Recipe | None = None,
    window: int = 256,
    tokens: int = 65536,
    dtype: str = "auto",
    progress: bool | None = None,
) -> Report:
    """Drop the all-reduces after attention of the layers `drop`, repair them, and write the model as a MODEL_DIR.

    learn: the layers that are distilled; None for all of `drop`. group: the layers whose heads are shared out anew.
    A run that is killed goes on where it was, and ends with the same weights. `output` appears complete or not at all.
    Raises UsageError if `output` exists, if the model is not dense or cannot be divided over `ranks`, for layers that
    do not exist or are not dropped, and if the text is too short.
    """
    refuse_existing(output)
    recipe, learn = recipe or Recipe(), drop if learn is None else learn
    dense = open_source(model_dir)
    split = SplitSource(dense, ranks)
    _check_layers(split.config, drop, learn, group)
    if dense.tokenizer is not None:
        check_tokenizer(dense.tokenizer, dense.config.vocab_size)
    windows = read_windows(dense, texts, window, tokens)
    chosen = split.dtype if dtype == "auto" else dtype
    blocks = Blocks(split, getattr(torch, chosen))
    dropped = tuple(sorted(drop))
    job = [dropped, sorted(learn), sorted(group), asdict(recipe), chosen]
    hide_bar = None if progress is None else not progress
    with state_folder("distil", model_dir, split, windows, *job) as folder:
        repair = _Repair(dense, blocks, windows, folder, recipe)
        layers = repair.run(dropped, learn, group, hide_bar)
        source, held_out = repair.source(dropped), windows[repair.held_out]

        def perplexity(of: Source, layers: Collection[int], name: str) -> float:
            sweep = Sweep(Streams(Blocks(of, blocks.dtype), held_out, folder / name), progress)
            return math.exp(float(sweep.measure([layers], name)[0].mean()))

        report = Report(
            model=str(model_dir),
            ranks=ranks,
            dtype=chosen,
            recipe=recipe,
            window=window,
            windows=repair.held_out.start,
            held_out_windows=len(held_out),
            dropped_layers=dropped,
            layers=tuple(layers),
            perplexity=perplexity(split, (), "dense"),
            dropped_perplexity=perplexity(split, dropped, "dropped"),
            perplexity_after=perplexity(source, dropped, "repaired"),
        )
        write(source, output, progress)
        shutil.rmtree(folder)  # the weights of the layers would stay in the cache
    return report


def _check_layers(config: ModelConfig, drop: Collection[int], learn: Collection[int], group: Collection[int]) -> None:
    for name, layers in (("--drop", drop), ("--learn", learn), ("--group", group)):
        for layer in layers:
            if not 0 <= layer < config.num_layers:
                raise UsageError(f"{name} ({layer}) must be layers between 0 and {config.num_layers - 1}")
            if layer not in drop:
                raise UsageError(f"{name} ({layer}) must be among the dropped layers: the others need no repair")
    if not drop:
        raise UsageError("--drop must name at least one layer")


class _Repair:
    """The work on the layers, one after the other, in a folder that keeps what is done."""

    def __init__(self, dense: Source, blocks: Blocks, windows: Tensor, folder: Path, recipe: Recipe) -> None:
        self.dense, self.blocks, self.folder, self.recipe = dense, blocks, folder, recipe
        self.streams = Streams(blocks, windows, folder)
        self.held_out = slice(len(windows) - len(windows) // _HELD_OUT_ONE_IN, len(windows))
        self.length = windows.shape[1] - 1

    def run(
        self, drop: Sequence[int], learn: Collection[int], group: Collection[int], hide_bar: bool | None
    ) -> list[LayerReport]:
        """Repair the layers, with the dense model's streams before and after each of them."""
        todo = [layer for layer in drop if not self._report(layer).exists()]
        if todo:
            first = max(depth for depth in range(todo[0] + 1) if self.streams.exists("0" * depth))
            with tqdm(total=todo[-1] + 1, initial=first, desc="layers", unit="layer", disable=hide_bar) as bar:
                for layer in range(first, todo[-1] + 1):
                    if not self.streams.exists("0" * (layer + 1)):
                        self.streams.advance(self.blocks.load(layer), "0" * (layer + 1))
                    if layer in todo:
                        self._repair(layer, layer in learn, layer in group, hide_bar)
                    self.streams.remove("0" * layer)
                    bar.update()
            self.streams.remove("0" * (todo[-1] + 1))
        return [LayerReport(**read_json(self._report(layer))) for layer in drop]

    def source(self, dropped: tuple[int, ...]) -> Source:
        """Return the model with the layers dropped, and with the weights of the repaired ones."""
        files = {layer: path for layer in dropped if (path := self._weights(layer)).exists()}
        return Repaired(SplitSource(self.dense, self.blocks.config.tracks, dropped), files)

    def _report(self, layer: int) -> Path:
        return self.folder / f"layer-{layer}.json"

    def _weights(self, layer: int) -> Path:
        return self.folder / f"layer-{layer}.safetensors"

    def _repair(self, layer: int, learns: bool, groups: bool, hide_bar: bool | None) -> None:
        block, grouped, after = self.blocks.load(layer, torch.float32), None, None
        before = start = self._error(block, layer)
        if groups:
            block = self._grouped(layer, block)
            grouped = start = self._error(block, layer)
        if learns:
            initial = {name: value.clone() for name, value in block.state_dict().items()}
            self._learn(block, layer, hide_bar)
            after = self._error(block, layer)
            if after >= start:  # the block had better stayed as it was
                block.load_state_dict(initial)
                after = start
        if groups or learns:
            with new_file(self._weights(layer)) as path:
                save_file({name: value.contiguous() for name, value in block.state_dict().items()}, path)
        write_json(self._report(layer), asdict(LayerReport(layer, before, grouped, after)))
        self._progress(layer).unlink(missing_ok=True)

    def _grouped(self, layer: int, block: Layer) -> Layer:
        """Return the layer with its heads shared out over the tracks by their effect on a part of the text."""
        some = slice(0, max(1, _GROUPING_TOKENS // self.length))
        with torch.no_grad():
            order: Order = best_order(self.dense.config, block, self.streams.read("0" * layer, some))
        source = SplitSource(GroupedHeads(self.dense, {layer: order}), self.blocks.config.tracks)
        return Blocks(source, self.blocks.dtype).load(layer, torch.float32)

    def _learn(self, block: Layer, layer: int, hide_bar: bool | None) -> None:
        def loss(step: int, drawn: Sequence[int]) -> Tensor:
            x, target = self._pair(layer, list(drawn))
            return (self.blocks.run(block, x, True) - target).square().sum() / (target - x).square().sum()

        lesson = Lesson(
            name=f"layer {layer}",
            windows=self.held_out.start,
            length=self.length,
            stream=layer,
            loss=loss,
            held_out=lambda: self._error(block, layer),
            state=self._progress(layer),
        )
        learn(block, self.recipe, lesson, hide_bar)

    def _progress(self, layer: int) -> Path:
        return self.folder / f"layer-{layer}.progress"

    def _pair(self, layer: int, some: slice | list[int]) -> tuple[Tensor, Tensor]:
        """Return the dense model's streams before and after a layer."""
        return self.streams.read("0" * layer, some), self.streams.read("0" * (layer + 1), some)

    @torch.no_grad()
    def _error(self, block: Layer, layer: int) -> float:
        """Return the relative squared error of the dropped block's output on the held-out windows."""
        wrong = added = 0.0
        for some in batches(self.held_out.stop - self.held_out.start, self.length):
            x, target = self._pair(layer, slice(some.start + self.held_out.start, some.stop + self.held_out.start))
            wrong += float((self.blocks.run(block, x, True) - target).square().sum())
            added += float((target - x).square().sum())
        return wrong / added
