"""Two tiny models for measurements: a Parallel Track one and a dense one of the same size, on two ranks each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from trtllm_pt.bench.contenders import schedules_of
from trtllm_pt.checkpoint.init import init
from trtllm_pt.errors import MPI_OF_EMBEDDED
from trtllm_pt.job.mpirun import find_mpirun
from trtllm_pt.model.config import ModelConfig

ROOT = Path(__file__).parents[2]
PT = ModelConfig(
    num_layers=2,
    hidden_size=32,
    num_heads=2,
    num_kv_heads=2,
    head_size=16,
    intermediate_size=32,
    vocab_size=64,
    max_position_embeddings=128,
    tracks=2,
    schedule="pt",
    block_depth=2,
)
TP = schedules_of(PT, 2, ["pt-d2"])["tp"]  # what compare builds for it: one graph to compile for all tests
LIMITS = ("--max_batch_size", "4", "--max_num_tokens", "64")

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
def engines(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    root = tmp_path_factory.mktemp("bench")

    def build(name: str, config: ModelConfig) -> Path:
        init(config, root / f"{name}.ckpt", ranks=2, dtype="float32")
        done = run("build", root / f"{name}.ckpt", "-o", root / name, "--engine", "embedded", *LIMITS)
        assert done.returncode == 0, done.stderr
        return root / name

    with ThreadPoolExecutor(2) as pool:
        return Engines(*pool.map(build, ("pt", "tp"), (PT, TP)))


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Done]:
    """bench(name, *arguments, ranks=0) in an empty folder."""

    def call(*command: str | Path, ranks: int = 0) -> Done:
        return run(*command, ranks=ranks, cwd=tmp_path)

    return call
