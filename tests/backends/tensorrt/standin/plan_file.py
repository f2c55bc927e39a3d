"""What a plan file of the stand-in has, pickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trtllm_pt.backends.tensorrt.interpreter.program import Program

Shape = tuple[int, ...]


@dataclass(frozen=True)
class StandInPlan:
    program: Program
    profiles: Sequence[Mapping[str, tuple[Shape, ...]]]  # of each input: the least, the typical and the most
    version: str
    ranks: int
