"""The all-reduce under mpirun: the same bits on any number of ranks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.skipif(MPIRUN is None, reason="no mpirun")
@pytest.mark.parametrize(
    ("way", "settings"),
    [("memory", {}), ("messages", {"MPIR_CVAR_NOLOCAL": "1"})],  # MPI then takes every rank for a machine of its own
    ids=["memory", "messages"],
)
@pytest.mark.parametrize("ranks", [2, *(pytest.param(ranks, marks=pytest.mark.slow) for ranks in (4, 8))])
def test_ranks_give_the_bits_of_one(library, ranks, way, settings):
    give_the_bits_of_one(library, ranks, way, settings)


# MPICH can take the ranks of one machine for those of several.
@pytest.mark.skipif(MPIRUN is None, reason="no mpirun")
@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        pytest.param(4, {"MPIR_CVAR_NUM_CLIQUES": "2", "MPIR_CVAR_CLIQUES_BY_BLOCK": "1"}, id="0 1, 2 3"),
        pytest.param(4, {"MPIR_CVAR_NUM_CLIQUES": "2"}, id="0 2, 1 3"),
        pytest.param(8, {"MPIR_CVAR_NUM_CLIQUES": "3"}, id="0 3 6, 1 4 7, 2 5", marks=pytest.mark.slow),
        pytest.param(
            8,
            {"MPIR_CVAR_NUM_CLIQUES": "3", "MPIR_CVAR_CLIQUES_BY_BLOCK": "1"},
            id="0 1 2, 3 4 5, 6 7",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_any_placement_gives_the_bits_of_one(library, ranks, settings):
    give_the_bits_of_one(library, ranks, "messages", settings)


def give_the_bits_of_one(library, ranks, way, settings):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **settings}
    program = [sys.executable, "-m", "mpi4py", "-m", "tests.backends.embedded.kernels.ranks"]
    command = [MPIRUN, "-n", str(ranks), *program, str(library), way]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.count(f"of {ranks}: equal") == ranks


def test_communicator_without_mpi_is_one_clear_error(library):
    code = f"import torch; torch.ops.load_library({str(library)!r}); torch.ops.trtllm_pt.set_communicator(0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "libmpi.so.12 is not loaded in this process" in done.stderr
