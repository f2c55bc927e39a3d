"""A folder for PYTHONPATH in which the stand-in is installed as tensorrt_llm, beside as many GPUs as are wanted."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).parents[4]
FILES = {
    # Like the real one: it writes to standard output and starts MPI.
    "tensorrt_llm/__init__.py": "print('[TensorRT-LLM] TensorRT LLM version: 1.2.1')\nimport mpi4py.MPI\n",
    "tensorrt_llm/bindings/__init__.py": "",
    "tensorrt_llm/bindings/executor.py": """
from tests.backends.tensorrt_llm.executor.engine import MODULE
globals().update(vars(MODULE))
""",
    "sitecustomize.py": """
import os, torch
torch.cuda.device_count = lambda: int(os.environ['STAND_IN_GPUS'])
""",
}


def install(folder: Path, *, version: str = "1.2.1", gpus: int = 8) -> dict[str, str]:
    """The environment in which a Python process finds it."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    metadata = folder / f"tensorrt_llm-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: {version}\n")
    paths = [str(folder), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "STAND_IN_GPUS": str(gpus)}
