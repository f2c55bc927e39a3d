"""Neighbouring collectives of a network are in one order on every rank: each needs the result of the one before.

TensorRT may run layers that need nothing of each other in any order, and each rank has an engine of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.backends.tensorrt_llm.cases import CASES, PROMPTS, Case
from tests.backends.tensorrt_llm.conftest import Checkpoints
from tests.backends.tensorrt_llm.standin import functional
from tests.backends.tensorrt_llm.standin.engine import Engines
from tests.backends.tensorrt_llm.standin.world import state

RANKS = 2
SCHEDULES = [case for case in CASES.values() if RANKS in case.ranks and not case.is_quantised]


class Traced(torch.Tensor):
    """A tensor that knows the collectives from whose results it was computed."""

    after: frozenset[int] = frozenset()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = super().__torch_function__(function, types, args, kwargs)
        for each in _tensors(made):
            each.after = collectives_of([args, list((kwargs or {}).values())])
        return made


def _tensors(value: Any) -> Iterator[Traced]:
    if isinstance(value, Traced):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def collectives_of(value: Any) -> frozenset[int]:
    return frozenset().union(*(each.after for each in _tensors(value)))


def operands(definition: ModuleType, checkpoint: Path) -> list[list[frozenset[int]]]:
    """For each rank, the collectives on which the operand of each collective of a forward depends."""
    found: list[list[frozenset[int]]] = [[] for _ in range(RANKS)]
    meet = functional.meet

    def traced(kind: str, group: list[int], x: functional.Tensor, strategy: str | None = None) -> list[torch.Tensor]:
        own = found[state().rank]
        own.append(collectives_of([functional.data_of(x)]))
        parts = [part.as_subclass(Traced) for part in meet(kind, group, x, strategy)]
        for part in parts:
            part.after = own[-1] | {len(own) - 1}
        return parts

    with patch.object(functional, "meet", traced):
        Engines(definition.MODEL_MAP, checkpoint).run(PROMPTS[:1], [()], (0,))
    return found


@pytest.mark.parametrize("case", SCHEDULES, ids=lambda case: case.name)
def test_every_collective_needs_the_one_before(definition: ModuleType, checkpoints: Checkpoints, case: Case) -> None:
    for own in operands(definition, checkpoints(case, RANKS)):
        assert len(own) > 1
        assert all(number in after for number, after in enumerate(own[1:])), own


def test_without_the_edge_ladder_has_none(definition: ModuleType, checkpoints: Checkpoints) -> None:
    """The test of the test."""
    case = CASES["ladder"]
    with patch.object(definition.TrackOps, "in_order", lambda self, x: x):
        own, _ = operands(definition, checkpoints(case, RANKS))
    *reduces, gather = own
    assert not any(number in after for number, after in enumerate(reduces[1:])), reduces
    assert len(reduces) - 1 in gather
