"""Which all-reduces after attention a dense model can lose within a budget of perplexity."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from trtllm_pt.checkpoint.formats import open_source
from trtllm_pt.checkpoint.split import SplitSource
from trtllm_pt.checkpoint.tokenizer_files import check_tokenizer
from trtllm_pt.errors import UsageError
from trtllm_pt.spd.blocks import Blocks
from trtllm_pt.spd.state import state_folder
from trtllm_pt.spd.streams import Streams
from trtllm_pt.spd.sweep import Nats, Sweep
from trtllm_pt.spd.windows import read_windows

INSENSITIVE, SENSITIVE, EXTREME = "insensitive", "sensitive", "extremely sensitive"
_HELD_OUT_ONE_IN = 4  # the last quarter of the windows chooses nothing
_ONE_SIDED_95 = 1.645  # standard deviations


@dataclass(frozen=True, slots=True)
class LayerResult:
    """What it costs to drop the all-reduce of one layer where those of all later layers are dropped already."""

    layer: int
    rise: float  # relative, of perplexity
    perplexity: float  # with the all-reduces of this layer and all later ones dropped
    sensitivity: str  # INSENSITIVE, SENSITIVE or EXTREME
    dropped: bool


@dataclass(frozen=True, slots=True)
class Analysis:
    """What `analyse` found. Rises are relative to the perplexity with all all-reduces."""

    model: str
    ranks: int
    dtype: str
    window: int
    windows: int
    held_out_windows: int
    budget: float
    thresholds: tuple[float, float]  # rises from which a layer is sensitive, and extremely sensitive
    perplexity: float
    layers: tuple[LayerResult, ...]
    dropped_layers: tuple[int, ...]
    rise: float  # of the proposed set
    rise_high: float  # the upper end of its one-sided 95 % interval, which is within the budget
    held_out_perplexity: float
    held_out_rise: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def analyse(
    model_dir: Path,
    ranks: int,
    texts: Sequence[Path],
    *,
    budget: float = 0.01,
    window: int = 256,
    tokens: int = 16384,
    dtype: str = "auto",
    progress: bool | None = None,
) -> tuple[Analysis, SplitSource]:
    """Measure how sensitive each layer is, and find the largest set of layers within the budget.

    budget: the largest relative rise of perplexity, such as 0.01.
    window, tokens: the length of the windows of text, and about how many tokens of text are used.
    dtype: of the products; "auto" for that of the model.
    Returns the analysis, and the model with the proposed layers dropped.
    Peak memory: the embedding, one layer, and the activations of 2048 tokens. The streams of all windows, 4 bytes
    times width per token, are on disk for each layer that is dropped first; a run that is killed goes on with them.
    Raises UsageError if the model is not dense or cannot be divided over `ranks`, if the text is too short, and for a
    negative budget.
    """
    if not (budget >= 0 and math.isfinite(budget)):
        raise UsageError(f"--budget ({budget:.4g}) must be at least 0")
    dense = open_source(model_dir)
    source = SplitSource(dense, ranks)
    if dense.tokenizer is not None:
        check_tokenizer(dense.tokenizer, dense.config.vocab_size)
    windows = read_windows(dense, texts, window, tokens)
    chosen = source.dtype if dtype == "auto" else dtype
    blocks = Blocks(source, getattr(torch, chosen))
    with state_folder("analyse", model_dir, source, windows, chosen) as folder:
        search = Search(Sweep(Streams(blocks, windows, folder), progress), budget)
        dropped = search.largest_set()
        analysis = Analysis(
            model=str(model_dir),
            ranks=ranks,
            dtype=chosen,
            window=window,
            windows=search.fitted.stop,
            held_out_windows=len(windows) - search.fitted.stop,
            budget=budget,
            thresholds=search.thresholds(),
            perplexity=search.perplexity((), search.fitted),
            layers=tuple(search.layers(dropped)),
            dropped_layers=dropped,
            rise=search.rise(dropped, search.fitted),
            rise_high=search.rise_high(dropped),
            held_out_perplexity=search.perplexity((), search.held_out),
            held_out_rise=search.rise(dropped, search.held_out),
        )
    return analysis, SplitSource(dense, ranks, dropped)


class Search:
    """The choice of layers. The windows `fitted` choose, and those of `held_out` do not."""

    def __init__(self, sweep: Sweep, budget: float) -> None:
        self.sweep, self.budget = sweep, budget
        self.count, windows = sweep.layers, sweep.windows
        self.fitted = slice(0, windows - windows // _HELD_OUT_ONE_IN)
        self.held_out = slice(self.fitted.stop, windows)
        tails = [range(first, self.count) for first in range(self.count + 1)]
        self.tails = sweep.measure(tails, "dropping")  # all layers, all but the first, …, none

    def rises(self) -> list[float]:
        """Return each layer's rise of perplexity, where those of all later layers are dropped already."""
        means = [each[self.fitted].mean() for each in self.tails]
        return [math.expm1(after - before) for after, before in pairwise(means)]

    def thresholds(self) -> tuple[float, float]:
        """Return the rises above which a layer is sensitive, and extremely sensitive.

        If no layer rose by more than the first, all could be dropped. One layer of the second uses up the budget.
        """
        return math.expm1(math.log1p(self.budget) / self.count), self.budget

    def layers(self, dropped: Collection[int]) -> Iterator[LayerResult]:
        sensitive, extreme = self.thresholds()
        for layer, rise in enumerate(self.rises()):
            kind = INSENSITIVE if rise <= sensitive else SENSITIVE if rise <= extreme else EXTREME
            perplexity = math.exp(self.tails[layer][self.fitted].mean())
            yield LayerResult(layer, rise, perplexity, kind, layer in dropped)

    def largest_set(self) -> tuple[int, ...]:
        """Return the largest set within the budget, of the sets that have the least sensitive layers.

        It is found by bisection, which takes for granted that a larger set costs more. That the set found is within the
        budget is measured.
        """
        rises = self.rises()
        order = sorted(range(self.count), key=lambda layer: (rises[layer], -layer))
        within, beyond = 0, self.count + 1
        while beyond - within > 1:
            middle = (within + beyond) // 2
            if self.rise_high(order[:middle]) <= self.budget:
                within = middle
            else:
                beyond = middle
        return tuple(sorted(order[:within]))

    def perplexity(self, dropped: Collection[int], part: slice) -> float:
        return math.exp(self._nats(dropped)[part].mean())

    def rise(self, dropped: Collection[int], part: slice) -> float:
        return math.expm1((self._nats(dropped) - self._nats(()))[part].mean())

    def rise_high(self, dropped: Collection[int]) -> float:
        """Return the upper end of the one-sided 95 % interval of the rise, so that the budget also holds elsewhere."""
        more = (self._nats(dropped) - self._nats(()))[self.fitted]
        return math.expm1(more.mean() + _ONE_SIDED_95 * more.std(ddof=1) / math.sqrt(len(more)))

    def _nats(self, dropped: Collection[int]) -> Nats:
        [nats] = self.sweep.measure([dropped], f"{len(dropped)} of {self.count} layers")
        return nats
