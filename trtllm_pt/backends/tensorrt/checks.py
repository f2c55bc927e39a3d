"""The checks that `trtllm-pt doctor` makes for native TensorRT engines."""

from __future__ import annotations

from trtllm_pt.backends.checks import Check, Finding, version
from trtllm_pt.backends.tensorrt.api import BUILDERS, INSTALL, TITLES

_NEEDED_FOR = "--engine tensorrt"


def builder() -> Finding:
    """Check that a compiler of plans is installed. It is not imported, which takes seconds."""
    found = [f"{TITLES[name]} {number}" for name in BUILDERS if (number := version(name))]
    return Finding("plan builder", bool(found), ", ".join(found) or "none", INSTALL, _NEEDED_FOR)


def runtime() -> Finding:
    """Report that plans cannot be run yet."""
    return Finding("plan runtime", False, "none: plans are built and inspected", needed_for=_NEEDED_FOR)


CHECKS: tuple[Check, ...] = (builder, runtime)
