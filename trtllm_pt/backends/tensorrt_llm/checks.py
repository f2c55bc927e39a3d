"""The checks that `trtllm-pt doctor` makes for TensorRT engines."""

from __future__ import annotations

import importlib.util
import shutil
from collections import Counter
from pathlib import Path

from trtllm_pt.backends.checks import Check, Finding, output, version
from trtllm_pt.errors import INSTALL_TENSORRT_LLM, TENSORRT_LLM_VERSION

_NEEDED_FOR = "--engine tensorrt_llm"
_CONTAINER = f"nvcr.io/nvidia/tensorrt-llm/release:{TENSORRT_LLM_VERSION}"


def tensorrt_llm() -> Finding:
    """Check that a TensorRT-LLM that can build engines is installed. It is not imported, which would need a GPU."""
    found, spec = version("tensorrt_llm"), importlib.util.find_spec("tensorrt_llm")
    builder = spec is not None and spec.origin is not None and (Path(spec.origin).parent / "builder.py").exists()
    words = found or "none"
    if found and not builder:
        words = f"{found}, which can no longer build engines"
    elif found and found != TENSORRT_LLM_VERSION:
        words = f"{found}; trtllm_pt is made for {TENSORRT_LLM_VERSION}"
    return Finding("TensorRT-LLM", builder, words, INSTALL_TENSORRT_LLM, _NEEDED_FOR)


def tensorrt() -> Finding:
    """Check that TensorRT 10.14 is installed."""
    found = version("tensorrt") or version("tensorrt_cu13")
    good = found is not None and found.startswith("10.14.")
    return Finding("TensorRT", good, found or "none", f"TensorRT 10.14, as in {_CONTAINER}", _NEEDED_FOR)


def gpu() -> Finding:
    """Check for GPUs, and report the number of each kind with name, memory, compute capability and driver."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap,driver_version", "--format=csv,noheader"]
    listed = output(query) if shutil.which("nvidia-smi") else None
    gpus = Counter(" ".join(line.split()) for line in (listed or "").splitlines() if line.strip())
    found = "; ".join(f"{count} x {gpu}" for gpu, count in gpus.items()) or "none"
    return Finding("GPU", bool(gpus), found, "an NVIDIA GPU and its driver", _NEEDED_FOR)


def model_class() -> Finding:
    """Report the file that plain trtllm-build needs to read our checkpoints."""
    path = Path(__file__).with_name("shim.py")
    return Finding("--model_cls_file", path.exists(), str(path), needed_for="plain trtllm-build", essential=False)


def python_path() -> Finding:
    """Report the folder that makes our model class known to NVIDIA's tools for engines."""
    path = Path(__file__).with_name("python_path")
    needed_for = "trtllm-serve, trtllm-bench and NVIDIA's LLM"
    return Finding("PYTHONPATH", path.exists(), str(path), needed_for=needed_for, essential=False)


CHECKS: tuple[Check, ...] = (tensorrt_llm, tensorrt, gpu, model_class, python_path)
