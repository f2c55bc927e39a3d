"""Two tiny models for measurements: a Parallel Track one and a dense one of the same size, on two ranks each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from trtllm_pt.errors import MPI_OF_EMBEDDED
from trtllm_pt.job.mpirun import find_mpirun

ROOT = Path(__file__).parents[2]
Done = subprocess.CompletedProcess[str]


def run(*command: str | Path, ranks: int = 0, cwd: Path | None = None) -> Done:
    """A script of `benchmarks/` or a `trtllm-pt` command, under mpirun where there are ranks."""
    launcher = [find_mpirun(MPI_OF_EMBEDDED), "-n", str(ranks)] if ranks else []
    name, *rest = map(str, command)
    program = ["-m", "trtllm_pt", name] if not name.endswith(".py") else [str(ROOT / "benchmarks" / name)]
    return subprocess.run(
        [*launcher, sys.executable, *program, *rest],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@dataclass(frozen=True, slots=True)
class Engines:
    pt: Path
    tp: Path


@pytest.fixture(scope="session")
def engines(engine: Callable[[str], Path]) -> Engines:
    return Engines(engine("tiny-pt"), engine("tiny-tp"))


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Done]:
    """bench(name, *arguments, ranks=0) in an empty folder."""

    def call(*command: str | Path, ranks: int = 0) -> Done:
        return run(*command, ranks=ranks, cwd=tmp_path)

    return call
