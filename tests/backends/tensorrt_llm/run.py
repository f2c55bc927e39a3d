"""Runs a case over the stand-in, and compares with the reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from tests.backends.tensorrt_llm.cases import CASES, FORCED, PROMPTS, Case
from tests.backends.tensorrt_llm.standin.engine import Engines
from tests.backends.tensorrt_llm.standin.world import Collective
from tests.backends.tensorrt_llm.truth import true_logits

STEPS = 2  # decode steps
JOINS = (0, 1, 0)  # the second request's prompt runs beside the others' first decode step
assert sum(len(p) for p, join in zip(PROMPTS, JOINS, strict=True) if join == 0) == 53  # a prime: see is_dynamic


@dataclass(frozen=True, slots=True)
class Outcome:
    errors: Tensor  # [prompts, 1 + decode steps], of the largest logit's size
    rms: float  # over all, likewise
    collectives: list[list[Collective]]  # of every forward

    @property
    def prefill(self) -> float:
        return float(self.errors[:, 0].max())

    @property
    def decode(self) -> float:
        return float(self.errors[:, 1:].max())


def outcome(definition: ModuleType, case: Case, ranks: int, checkpoint: Path) -> Outcome:
    """Two prompts, then a third beside decode steps, then decode steps alone."""
    engines = Engines(definition.MODEL_MAP, checkpoint)
    logits, collectives = engines.run(PROMPTS, [forced[:STEPS] for forced in FORCED], JOINS)
    true = [rows[: 1 + STEPS] for rows in _true_logits(case.name, _tracks_matter(case) and ranks, checkpoint)]
    scale = max(float(part.abs().max()) for part in true)
    errors = [(found[:, : case.config.vocab_size] - wanted) / scale for found, wanted in zip(logits, true, strict=True)]
    largest = torch.stack([error.abs().amax(1) for error in errors])
    return Outcome(largest, float(torch.cat(errors).square().mean().sqrt()), collectives)


def _tracks_matter(case: Case) -> bool:
    """Whether a rank's tracks have something in common: FP8 context attention's scale."""
    return case.quant_algo == case.kv_cache_quant_algo == "FP8"


_TRUE: dict[tuple[str, int], list[Tensor]] = {}


def _true_logits(name: str, ranks: int, checkpoint: Path) -> list[Tensor]:
    if (name, ranks) not in _TRUE:
        _TRUE[name, ranks] = true_logits(CASES[name], ranks or 1, checkpoint)
    return _TRUE[name, ranks]
