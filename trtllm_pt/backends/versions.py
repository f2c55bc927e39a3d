"""What must be the same where an engine is built and where it runs, told without importing torch."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trtllm_pt.backends.manifest import EngineManifest
from trtllm_pt.errors import INSTALL_TENSORRT_LLM, UsageError
from trtllm_pt.model.config import read_json

# Everything that decides which ops a graph has, with which shapes, what they compute, and how the weights are stored.
_GRAPH = (
    "model/config.py",
    "model/layout.py",
    "model/schedule.py",
    "network/module.py",
    "network/walk.py",
    "backends/embedded/constants.py",
    "backends/embedded/network.py",
    "backends/embedded/graph.py",
    "backends/embedded/pack.py",
    "backends/embedded/kernels/fakes.py",
)


def sources(*, ops: bool = True) -> str:
    """A digest of the sources of the graph and, with `ops`, of the C++ ops."""
    package = Path(__file__).parents[1]
    paths = [package / name for name in _GRAPH]
    if ops:
        paths += sorted(
            [
                *(package / "backends/embedded/kernels").glob("*.cpp"),
                *(package / "backends/embedded/kernels").glob("*.h"),
            ]
        )
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def versions() -> dict[str, str]:
    """What an embedded engine needs to be the same where it runs.

    The digest of the sources stands for the version of trtllm_pt, which also changes where nothing an engine holds did.
    """
    return {"trtllm_pt sources": sources(), "torch": version("torch")}


def check_versions(folder: Path, manifest: EngineManifest) -> None:
    """Raises UsageError for an engine built with other versions than those here, or whose runtime is not here."""
    hint = "run `trtllm-pt build` again"
    if manifest.kind == "tensorrt_llm":
        built, here = _tensorrt_llm_versions(folder)
        hint += f", or {INSTALL_TENSORRT_LLM}"
    else:
        built, here = manifest.versions, versions()
    for what, wanted in here.items():
        if built.get(what) != wanted:
            raise UsageError(f"{folder} was built with {what} {built.get(what)}, here is {wanted}: {hint}")


def _tensorrt_llm_versions(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Where an engine was built, which its config.json has at the top, and here."""
    try:
        here = version("tensorrt_llm")
    except PackageNotFoundError:
        raise UsageError(f"{folder} holds TensorRT engines: {INSTALL_TENSORRT_LLM}") from None
    return {"TensorRT-LLM": read_json(folder / "config.json").get("version", "?")}, {"TensorRT-LLM": here}
