"""Engines by name, and how to start a program on ranks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

FEW_RANKS = (1, 2)  # those that the fast tests have engines for

Engines = Callable[..., list[Path]]


@pytest.fixture(scope="session", autouse=True)
def _ops(library: Path) -> None:
    from trtllm_pt.backends.embedded.kernels.library import load

    load(library)


@pytest.fixture(scope="session")
def engines(engine: Callable[[str], Path]) -> Engines:
    """Names of tests.engines.RECIPES -> their folders; the checkpoints lie beside them as `checkpoint-NAME`."""

    def folders(*names: str) -> list[Path]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(engine, names))

    return folders


def mpirun(ranks: int, *command: Iterable[str] | str) -> str:
    """What rank 0 printed."""
    launcher = [str(Path(sys.prefix) / "bin" / "mpirun"), "-n", str(ranks)] if ranks > 1 else []
    worker = [sys.executable, *(["-m", "mpi4py"] if ranks > 1 else []), *map(str, command)]
    done = subprocess.run([*launcher, *worker], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
