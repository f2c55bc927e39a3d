"""Find TensorRT's Python package: `tensorrt` on a machine with a GPU, or `tensorrt_rtx`, which compiles without one.

Both have the same API, so one network definition serves both. `tensorrt` compiles for the GPU of the machine, whatever
it is. `tensorrt_rtx` compiles ahead of time for RTX GPUs, which excludes those of data centres from Hopper on.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from trtllm_pt.backends.manifest import EngineManifest
from trtllm_pt.errors import UsageError

PROPER, RTX = "tensorrt", "tensorrt_rtx"
BUILDERS = (PROPER, RTX)
TITLES = {PROPER: "TensorRT", RTX: "TensorRT-RTX"}
INSTALL = (
    "`pip install 'trtllm_pt[tensorrt-rtx]'` to build for RTX GPUs on any x86-64 Linux machine, "
    "or tensorrt-cu13==11.4.0.106 on a machine with an NVIDIA GPU"
)
# The architectures that TensorRT-RTX compiles for, in the words of its ComputeCapability.
RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
FP8_TARGETS = ("sm89", "sm120", "sm121")  # those that multiply FP8
DEFAULT_TARGETS = ("sm80", "sm86", *FP8_TARGETS)  # all but Turing, which multiplies only float16
_DATA_CENTRE = {"sm90": "Hopper", "sm100": "Blackwell", "sm103": "Blackwell Ultra", "sm110": "Thor"}


def builder_name(wanted: str | None = None) -> str:
    """Return the package to build with: `wanted`, or the one that works on this machine.

    TensorRT is preferred where a GPU is visible. Raises UsageError if none is installed that can compile here.
    """
    from trtllm_pt.backends.tensorrt.gpu import visible

    installed = [name for name in BUILDERS if importlib.util.find_spec(name)]
    if wanted is not None and wanted not in installed:
        raise UsageError(f"builder ({wanted!r}) is not installed: {INSTALL}")
    if not installed:
        raise UsageError(f"neither TensorRT nor TensorRT-RTX is installed: {INSTALL}")
    sees_gpu = visible() > 0
    name = wanted or (installed[0] if sees_gpu else installed[-1])
    if name == PROPER and not sees_gpu:
        raise UsageError(f"TensorRT compiles for the GPU of the machine, and none is visible here: {INSTALL}")
    return name


def load(name: str) -> ModuleType:
    """Import a package of BUILDERS. Raises UsageError if it does not load, or is too old for PT's boundary."""
    try:
        trt = importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise UsageError(f"{TITLES[name]} does not load ({' '.join(str(error).split())}): {INSTALL}") from None
    if not hasattr(trt, "CollectiveOperation"):
        raise UsageError(f"{TITLES[name]} {trt.__version__} has no collectives, which came with 10.16: {INSTALL}")
    return trt


def check_installed(folder: Path, manifest: EngineManifest) -> None:
    """Raise UsageError if the package that compiled the plans in `folder`, in the same version, is not installed."""
    for name, built in manifest.versions.items():
        if name not in BUILDERS:
            raise UsageError(f"{folder} was built with {name}, which is neither TensorRT nor TensorRT-RTX")
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"{folder} was built with {TITLES[name]} {built}, which is not installed: {INSTALL}")
        if (here := load(name).__version__) != built:
            raise UsageError(
                f"{folder} was built with {TITLES[name]} {built}, but {here} is installed, and TensorRT runs plans of "
                "its own version only: run `trtllm-pt build` again"
            )


def targets(builder: str, wanted: str | None, quant_algo: str | None) -> tuple[str, ...]:
    """Return the GPU architectures to compile for: those that `--gpu` names, separated by commas, or by default all
    that can run the model. TensorRT has no such choice, so () stands for the GPU of this machine.

    TensorRT-RTX is never left to its own choice, because it silently drops GPUs that cannot run a network.
    Raises UsageError for an architecture that the builder cannot compile for.
    """
    if builder != RTX:
        if wanted is not None:
            raise UsageError(f"gpu ({wanted}) is an option of TensorRT-RTX; TensorRT compiles for this machine's GPU")
        return ()
    if wanted is None:
        return FP8_TARGETS if quant_algo == "FP8" else DEFAULT_TARGETS
    names = tuple(dict.fromkeys(name.strip().lower() for name in wanted.split(",")))
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
