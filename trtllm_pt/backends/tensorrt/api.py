"""Find TensorRT's Python package: `tensorrt` on a machine with a GPU, or `tensorrt_rtx`, which compiles without one.

Both have the same API, so one network definition serves both. `tensorrt` compiles for the GPU of the machine, whatever
it is. `tensorrt_rtx` compiles ahead of time for RTX GPUs, which excludes those of data centres from Hopper on.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from trtllm_pt.errors import UsageError

PROPER, RTX = "tensorrt", "tensorrt_rtx"
BUILDERS = (PROPER, RTX)
TITLES = {PROPER: "TensorRT", RTX: "TensorRT-RTX"}
INSTALL = (
    "`pip install 'trtllm_pt[tensorrt-rtx]'` to build for RTX GPUs on any x86-64 Linux machine, "
    "or tensorrt-cu13==11.4.0.106 on a machine with an NVIDIA GPU"
)
# The targets of TensorRT-RTX, as `ComputeCapability` names them, and a GPU of each.
RTX_TARGETS = {
    "sm75": "RTX 2080",
    "sm80": "A100",
    "sm86": "RTX 3090",
    "sm89": "RTX 4090, L4",
    "sm120": "RTX 5090",
    "sm121": "GB10",
}
_DATA_CENTRE = {"sm90": "Hopper", "sm100": "Blackwell", "sm103": "Blackwell Ultra", "sm110": "Thor"}


def builder_name(wanted: str | None = None) -> str:
    """Return the package to build with: `wanted`, or the one that works on this machine.

    TensorRT is preferred where a GPU is visible. Raises UsageError if none is installed that can compile here.
    """
    installed = [name for name in BUILDERS if importlib.util.find_spec(name)]
    if wanted is not None and wanted not in installed:
        raise UsageError(f"builder ({wanted!r}) is not installed: {INSTALL}")
    if not installed:
        raise UsageError(f"neither TensorRT nor TensorRT-RTX is installed: {INSTALL}")
    sees_gpu = gpu_is_visible()
    name = wanted or (installed[0] if sees_gpu else installed[-1])
    if name == PROPER and not sees_gpu:
        raise UsageError(f"TensorRT compiles for the GPU of the machine, and none is visible here: {INSTALL}")
    return name


def gpu_is_visible() -> bool:
    """Return whether this process can use an NVIDIA GPU."""
    import torch

    return torch.cuda.is_available()


def load(name: str) -> ModuleType:
    """Import a package of BUILDERS. Raises UsageError if it does not load, or is too old for PT's boundary."""
    try:
        trt = importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise UsageError(f"{TITLES[name]} does not load ({' '.join(str(error).split())}): {INSTALL}") from None
    if not hasattr(trt, "CollectiveOperation"):
        raise UsageError(f"{TITLES[name]} {trt.__version__} has no collectives, which came with 10.16: {INSTALL}")
    return trt


def targets(builder: str, wanted: str | None) -> tuple[str, ...]:
    """Return the GPU architectures that `--gpu` names, separated by commas; () for the builder's own choice.

    TensorRT-RTX's own choice is every RTX GPU from sm80 on, and TensorRT's is the GPU of this machine.
    Raises UsageError for an architecture that the builder cannot compile for.
    """
    if wanted is None:
        return ()
    names = tuple(dict.fromkeys(name.strip().lower() for name in wanted.split(",")))
    if builder != RTX:
        raise UsageError(f"gpu ({wanted}) is an option of TensorRT-RTX; TensorRT compiles for the GPU of this machine")
    known = ", ".join(RTX_TARGETS)
    for name in names:
        if name in _DATA_CENTRE:
            raise UsageError(
                f"gpu ({name}): TensorRT-RTX does not compile for {_DATA_CENTRE[name]}, only for {known}; "
                f"build on that GPU with --builder {PROPER}"
            )
        if name not in RTX_TARGETS:
            raise UsageError(f"gpu ({name}) must be one of {known}, or several of them separated by commas")
    return names


def default_target(builder: str) -> str:
    """Return, in words, the GPUs for which a builder compiles when none is named."""
    if builder == RTX:
        return "every RTX GPU from sm80 on"
    import torch

    return str(torch.cuda.get_device_name())
