"""How ranks are started, told without importing MPI or torch; and what all runtimes say."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from trtllm_pt.errors import INSTALL_EMBEDDED, INSTALL_TENSORRT_LLM, UsageError

NO_MPI: dict[str, str] = {
    "embedded": f"no MPI: more than one rank needs mpi4py and MPICH, `{INSTALL_EMBEDDED}`",
    "tensorrt_llm": f"no MPI: more than one rank needs mpi4py and Open MPI, {INSTALL_TENSORRT_LLM}",
}
CLOSED = "this engine is closed"


def find_mpirun(kind: str = "embedded") -> str:
    """The mpirun of this Python environment, else the one on PATH. Raises UsageError where there is none."""
    own = Path(sys.prefix) / "bin" / "mpirun"
    found = str(own) if own.exists() else shutil.which("mpirun")
    if found is None:
        raise UsageError(NO_MPI[kind])
    return found
