"""Run an engine's two kinds of step on the interpreted networks of all ranks: prefill chunks and decode steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trtllm_pt.backends.tensorrt.interpreter.lockstep import execute_ranks
from trtllm_pt.backends.tensorrt.interpreter.program import Program, Value

Inputs = Mapping[str, Sequence[int] | Sequence[Sequence[int]]]  # by name, as in network.Step


class Steps:
    """The slots of an engine, with the KV caches of all ranks.

    `lengths` has the number of tokens in each slot.
    """

    def __init__(self, programs: Sequence[Program], slots: int) -> None:
        self.programs = programs
        self.lengths = [0] * slots
        self._caches = [{value.name: _empty(value, slots) for value in _caches(program)} for program in programs]

    def prefill(self, slot: int, tokens: Sequence[int]) -> Tensor:
        """Append a chunk of a prompt to a slot. Returns float32 logits [V] of its last token."""
        start = self.lengths[slot]
        inputs: Inputs = {
            "tokens": [list(tokens)],
            "positions": [list(range(start, start + len(tokens)))],
            "starts": [start],
            "lengths": [start + len(tokens)],
            "last": [len(tokens) - 1],
        }
        self.lengths[slot] += len(tokens)
        return self._run(inputs, slot, 1)[0]

    def decode(self, tokens: Sequence[int]) -> Tensor:
        """Append a token to each of the first slots. Returns float32 logits [B, V]."""
        starts = self.lengths[: len(tokens)]
        inputs: Inputs = {
            "tokens": [[token] for token in tokens],
            "positions": [[start] for start in starts],
            "starts": starts,
            "lengths": [start + 1 for start in starts],
            "last": list(range(len(tokens))),
        }
        for slot in range(len(tokens)):
            self.lengths[slot] += 1
        return self._run(inputs, 0, len(tokens))

    def _run(self, step: Inputs, first: int, slots: int) -> Tensor:
        """Run a step on the slots from `first` on, whose caches are views of the whole ones."""
        shared = {name: torch.tensor(values, dtype=torch.int32) for name, values in step.items()}
        views = [{name: cache[first : first + slots] for name, cache in caches.items()} for caches in self._caches]
        outputs = execute_ranks(self.programs, [shared | own for own in views])
        for own, output in zip(views, outputs, strict=True):
            for name, cache in own.items():
                cache.copy_(output[f"new_{name}"])
        logits = [output["logits"] for output in outputs]
        same = (torch.allclose(each, logits[0], rtol=0, atol=0, equal_nan=True) for each in logits)
        assert all(same), "the ranks have different logits"
        return logits[0]


def _caches(program: Program) -> list[Value]:
    return [value for value in program.inputs if f"new_{value.name}" in program.outputs]


def _empty(cache: Value, slots: int) -> Tensor:
    """Return a cache that has NaN everywhere, so that a position that is read before it is written shows."""
    return torch.full((slots, *cache.shape[1:]), float("nan"), dtype=cache.dtype)
