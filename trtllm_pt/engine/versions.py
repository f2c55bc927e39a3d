"""What must be the same where an engine is built and where it runs, told without importing torch."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

import trtllm_pt
from trtllm_pt.engine.manifest import EngineManifest
from trtllm_pt.errors import UsageError

# Everything that decides which ops a graph has, with which shapes, and what they compute.
_GRAPH = (
    "layout.py",
    "schedule.py",
    "network/module.py",
    "network/embedded.py",
    "network/walk.py",
    "kernels/fakes.py",
    "engine/graph.py",
)


def sources(*, ops: bool = True) -> str:
    """A digest of the sources of the graph and, with `ops`, of the C++ ops."""
    package = Path(trtllm_pt.__file__).parent
    paths = [package / name for name in _GRAPH]
    if ops:
        paths += sorted([*(package / "kernels").glob("*.cpp"), *(package / "kernels").glob("*.h")])
    return hashlib.sha256("\0".join(path.read_text() for path in paths).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    return {"trtllm_pt": trtllm_pt.__version__, "trtllm_pt sources": sources(), "torch": version("torch")}


def check_versions(folder: Path, manifest: EngineManifest) -> None:
    """Raises UsageError for another kind of engine, or one built with other versions than those here."""
    if manifest.kind != "embedded":
        raise UsageError(f"{folder} holds TensorRT engines, which run through TensorRT-LLM on NVIDIA GPUs")
    for what, here in versions().items():
        built = manifest.versions.get(what)
        if built != here:
            raise UsageError(f"{folder} was built with {what} {built}, here is {here}: run `trtllm-pt build` again")
