"""The checks that `trtllm-pt doctor` makes for native TensorRT engines."""

from __future__ import annotations

from trtllm_pt.backends.checks import Check, Finding, version
from trtllm_pt.backends.tensorrt.api import INSTALL, PROPER, RTX, TITLES

# What pip installs, and the package that is in it.
_DISTRIBUTIONS = (("tensorrt", PROPER), ("tensorrt_cu13", PROPER), ("tensorrt_rtx", RTX))
_NEEDED_FOR = "--engine tensorrt"


def builder() -> Finding:
    """Check that a compiler of plans is installed. It is not imported, which takes seconds."""
    found = {TITLES[package]: number for name, package in _DISTRIBUTIONS if (number := version(name))}
    words = ", ".join(f"{title} {number}" for title, number in found.items())
    return Finding("plan builder", bool(found), words or "none", INSTALL, _NEEDED_FOR)


def gpu() -> Finding:
    """Check that torch can use a GPU, which plans run on."""
    try:
        from trtllm_pt.backends.tensorrt.gpu import visible

        count = visible()
    except ImportError:
        count = 0
    words = f"{count} visible to torch" if count else "none: plans can be built and inspected"
    return Finding("GPUs for plans", count > 0, words, "an NVIDIA GPU, and torch with CUDA", f"to run {_NEEDED_FOR}")


CHECKS: tuple[Check, ...] = (builder, gpu)
