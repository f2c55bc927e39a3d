"""Finds tritonserver, in the wheel nvidia-pytriton or in NVIDIA's container, and the options that it needs.

Of the wheel, only files are used, and none of its Python code.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trtllm_pt.errors import INSTALL_SERVE, UsageError

CONTAINER = Path("/opt/tritonserver/bin/tritonserver")


@dataclass(frozen=True, slots=True, kw_only=True)
class Triton:
    """A tritonserver: its path, and the options and the environment with which it finds its backends and Python."""

    binary: Path
    options: tuple[str, ...]
    environment: Mapping[str, str]


def find_triton(scratch: Path) -> Triton:
    """Return the tritonserver to start. Raises UsageError if there is none.

    scratch: a folder for symbolic links. It must exist while the server runs.
    """
    if (wheel := _wheel()) is not None:
        return _of_wheel(wheel, scratch)
    found = shutil.which("tritonserver") or (str(CONTAINER) if CONTAINER.exists() else None)
    if found is None:
        raise UsageError(f"tritonserver was not found: {INSTALL_SERVE}, or use NVIDIA's container")
    return Triton(binary=Path(found), options=(), environment=_environment())


def _wheel() -> Path | None:
    spec = importlib.util.find_spec("pytriton")  # find_spec does not import the package
    return Path(spec.origin).parent / "tritonserver" if spec and spec.origin else None


def _of_wheel(wheel: Path, scratch: Path) -> Triton:
    backends = _backends(wheel, scratch)
    options = (f"--backend-directory={backends}", f"--cache-directory={wheel / 'caches'}")
    return Triton(binary=wheel / "bin" / "tritonserver", options=options, environment=_environment())


def _backends(wheel: Path, scratch: Path) -> Path:
    """Make the backends folder that tritonserver expects. The wheel keeps the stub for each Python elsewhere."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise UsageError(f"nvidia-pytriton has no stub for Python {version}")
    python = scratch / "backends" / "python"
    python.mkdir(parents=True)
    source = wheel / "backends" / "python"
    for file in (source / "libtriton_python.so", source / "triton_python_backend_utils.py", stub):
        (python / file.name).symlink_to(file)
    return python.parent


def _environment() -> dict[str, str]:
    """Return an environment in which Triton's stubs find this Python: the python3 on PATH, and libpython."""
    environment = {**os.environ, "PATH": os.pathsep.join((str(Path(sys.prefix) / "bin"), os.environ.get("PATH", "")))}
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        libraries = [str(sysconfig.get_config_var("LIBDIR")), os.environ.get("LD_LIBRARY_PATH", "")]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
    return environment
