"""Distil a dense model into a model with tracks: all weights learn from the dense model's probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from trtllm_pt.checkpoint.load import reference_of
from trtllm_pt.checkpoint.source import Source
from trtllm_pt.files.atomic import write_json
from trtllm_pt.model.config import ModelConfig, read_json
from trtllm_pt.network.reference import ReferenceModel
from trtllm_pt.spd.blocks import batches
from trtllm_pt.spd.learning import Lesson, Recipe, learn

HELD_OUT_ONE_IN = 4


@dataclass(frozen=True, slots=True)
class Stage:
    """A model that is distilled up to, but excluding, a step; the last one is the model that is wanted."""

    config: ModelConfig
    until: int


@dataclass(frozen=True, slots=True)
class Measured:
    """How far a model is from the dense one on held-out text: nats per token of each."""

    divergence: float  # Kullback-Leibler, from the dense model's distribution
    nats: float
    dense_nats: float


@dataclass(frozen=True, slots=True)
class Distilled:
    """The model that has learnt, and what was measured of it before and after."""

    model: ReferenceModel
    before: Measured
    after: Measured


class Distillation:
    """A run over windows [N, S + 1], whose last quarter is held out, with its state in `folder`.

    Products are in `dtype`; weights, residual streams and logits are float32.
    """

    def __init__(self, dense: Source, windows: Tensor, folder: Path, recipe: Recipe, dtype: torch.dtype) -> None:
        self.folder, self.recipe, self.dtype = folder, recipe, dtype
        held_out = len(windows) // HELD_OUT_ONE_IN
        self.windows, self.held_out = windows[:-held_out], windows[-held_out:]
        self.teacher = reference_of(dense, torch.float32).requires_grad_(False)

    def run(self, stages: Sequence[Stage], start: Callable[[], Source], hide_bar: bool | None) -> Distilled:
        """Distil the model that `start` returns through all stages, or go on where a killed run was."""
        wanted, state, measured = stages[-1].config, self.folder / "progress", self.folder / "before.json"
        student = ReferenceModel(wanted) if state.exists() else reference_of(start(), torch.float32)
        run_as(student, wanted)
        if not measured.exists():
            write_json(measured, asdict(self._measure(student)))

        def loss(step: int, drawn: Sequence[int]) -> Tensor:
            run_as(student, next(stage.config for stage in stages if step < stage.until))
            return divergence(*self._logits(student, self.windows[list(drawn)]))

        def held_out() -> float:
            run_as(student, wanted)
            return self._measure(student).divergence

        length = self.windows.shape[1] - 1
        learn(student, self.recipe, Lesson("distilling", len(self.windows), length, 0, loss, held_out, state), hide_bar)
        run_as(student, wanted)
        return Distilled(student, Measured(**read_json(measured)), self._measure(student))

    def _logits(self, student: ReferenceModel, rows: Tensor) -> tuple[Tensor, Tensor]:
        # Unfused attention: the backward pass of the fused kernel is slow on CPUs.
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            with torch.no_grad():
                target = self.teacher(rows[:, :-1])
            return student(rows[:, :-1]).float(), target.float()

    @torch.no_grad()
    def _measure(self, student: ReferenceModel) -> Measured:
        sums = torch.zeros(3, dtype=torch.float64)
        for some in batches(len(self.held_out), self.held_out.shape[1] - 1):
            rows = self.held_out[some]
            own, target = self._logits(student, rows)
            nats = [F.cross_entropy(each.flatten(0, 1), rows[:, 1:].flatten()) for each in (own, target)]
            sums += torch.stack([divergence(own, target), *nats]).double() * len(rows)
        return Measured(*(sums / len(self.held_out)).tolist())


def run_as(model: ReferenceModel, config: ModelConfig) -> None:
    """Let a model compute as one of another block depth or delay, which has the same weights."""
    model.config = model.transformer.config = config


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler divergence of the distributions of `target` from those of `logits`, in nats."""
    own, wanted = logits.flatten(0, 1).log_softmax(-1), target.flatten(0, 1).log_softmax(-1)
    return F.kl_div(own, wanted, reduction="batchmean", log_target=True)
