"""`trtllm-pt doctor`: what works on this machine, and what to install for the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from trtllm_pt.cli.options import json_option
from trtllm_pt.cli.text import table
from trtllm_pt.errors import INSTALL_EMBEDDED, INSTALL_TENSORRT_LLM, MPI_OF_EMBEDDED, TENSORRT_LLM_VERSION, UsageError
from trtllm_pt.files import compiler as files_compiler
from trtllm_pt.job.mpirun import find_mpirun, launch

_TENSORRT = "--engine tensorrt_llm"
_CONTAINER = f"nvcr.io/nvidia/tensorrt-llm/release:{TENSORRT_LLM_VERSION}"
_HELLO_SECONDS = 30.0
# One write each, or two ranks' words may come mixed.
_HELLO = "import os; from mpi4py import MPI; os.write(1, b'ranks=%d;' % MPI.COMM_WORLD.size)"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    ok: bool
    found: str
    install: str | None = None  # what would help, where not ok
    needed_for: str | None = None  # None: nothing here runs without it


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Check MPI, compiler, instruction set, TensorRT-LLM, GPU, Triton and versions.

    Ends with 2 where no engine can run here, else with 0.

    \b
    Examples:
      trtllm-pt doctor
      trtllm-pt doctor --json | jq '.[] | select(.ok | not)'
    """
    findings = [check() for check in CHECKS]
    click.echo(json.dumps([asdict(f) for f in findings], indent=2) if as_json else report(findings))
    tensorrt = all(f.ok for f in findings if f.needed_for == _TENSORRT)
    broken = [f.name for f in findings if not f.ok and f.needed_for is None]
    if broken and not tensorrt:
        raise UsageError(f"the embedded engine cannot run here: {', '.join(broken)}")


def report(findings: list[Finding]) -> str:
    rows = []
    for f in findings:
        rows.append(("ok" if f.ok else "missing", f.name, f.found))
        if not f.ok and f.install:
            rows.append(("", "", f"  → {f.install}" + (f" (for {f.needed_for})" if f.needed_for else "")))
    return table(rows, ("", "part", "found"), left=3)


def python() -> Finding:
    good = (3, 10) <= sys.version_info[:2] <= (3, 13)
    return Finding("Python", good, platform.python_version(), None if good else "Python 3.10 to 3.13")


def torch() -> Finding:
    wanted, found = _pinned("torch"), _version("torch")
    good = found is not None and found.split("+")[0] == wanted
    return Finding("torch", good, found or "none", None if good else f"{INSTALL_EMBEDDED} (torch {wanted})")


def tokenizers() -> Finding:
    found = _version("tokenizers")
    return Finding("tokenizers", found is not None, found or "none", "pip install tokenizers")


def mpi4py() -> Finding:
    if _version("mpi4py") is None:
        return Finding("mpi4py", False, "none", INSTALL_EMBEDDED)
    done = _output([sys.executable, "-c", "from mpi4py import MPI; print(MPI.Get_library_version().split(chr(10))[0])"])
    if done is None:
        return Finding("mpi4py", False, f"{_version('mpi4py')}, but no MPI library that it can load", INSTALL_EMBEDDED)
    return Finding("mpi4py", True, f"{_version('mpi4py')} with {' '.join(done.split())}")


def mpirun() -> Finding:
    """Two ranks say how many they are: another MPI's mpirun starts two worlds of one."""
    try:
        path: str | None = find_mpirun(MPI_OF_EMBEDDED)
    except UsageError:
        path = None
    if path is None:
        return Finding("mpirun", False, "none", INSTALL_EMBEDDED)
    sizes = _hello(path)
    if sizes is None:
        return Finding("mpirun", False, f"{path}: two ranks gave no answer in {_HELLO_SECONDS:.0f} s", INSTALL_EMBEDDED)
    if sizes != [2, 2]:
        install = f"{INSTALL_EMBEDDED}, and use the mpirun that comes with it"
        return Finding(
            "mpirun", False, f"{path} belongs to another MPI than mpi4py: its two ranks are each alone", install
        )
    return Finding("mpirun", True, f"{path}, two ranks meet")


def mpirun_on_path() -> Finding:
    """For those who start the ranks by hand."""
    name, use = "mpirun on PATH", "starting ranks by hand"
    path = shutil.which("mpirun")
    own = Path(sys.prefix) / "bin" / "mpirun"
    if path is None:
        return Finding(name, False, "none", f"use {own}" if own.exists() else INSTALL_EMBEDDED, use)
    if own.exists() and not own.samefile(path) and _hello(path) != [2, 2]:
        return Finding(name, False, f"{path} belongs to another MPI than mpi4py", f"use {own}", use)
    return Finding(name, True, path, needed_for=use)


def compiler() -> Finding:
    try:
        version, found = _output([files_compiler.compiler(), "--version"]), "none that runs"
    except UsageError as error:
        version, found = None, str(error).partition(";")[0]
    found = version.splitlines()[0] if version else found
    return Finding("C++ compiler", bool(version), found, "apt-get install g++", "building embedded engines")


def instruction_set() -> Finding:
    """The best of what the ops have a path for."""
    flags = _cpu_flags()
    for name, needed in _INSTRUCTION_SETS:
        if needed <= flags:
            return Finding("instruction set", True, name)
    machine = platform.machine()
    return Finding("instruction set", False, f"{machine} without AVX2", "an x86-64 processor with AVX2, FMA and F16C")


def tensorrt_llm() -> Finding:
    """Without importing it, which takes long and wants a GPU."""
    found, spec = _version("tensorrt_llm"), importlib.util.find_spec("tensorrt_llm")
    builder = spec is not None and spec.origin is not None and (Path(spec.origin).parent / "builder.py").exists()
    words = found or "none"
    if found and not builder:
        words = f"{found}, which builds no engines any more"
    elif found and found != TENSORRT_LLM_VERSION:
        words = f"{found}; trtllm_pt is made for {TENSORRT_LLM_VERSION}"
    return Finding("TensorRT-LLM", builder, words, INSTALL_TENSORRT_LLM, _TENSORRT)


def tensorrt() -> Finding:
    found = _version("tensorrt") or _version("tensorrt_cu13")
    good = found is not None and found.startswith("10.14.")
    return Finding("TensorRT", good, found or "none", f"TensorRT 10.14, as in {_CONTAINER}", _TENSORRT)


def gpu() -> Finding:
    """How many of each kind: name, memory, compute capability, driver."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap,driver_version", "--format=csv,noheader"]
    listed = _output(query) if shutil.which("nvidia-smi") else None
    gpus = Counter(" ".join(line.split()) for line in (listed or "").splitlines() if line.strip())
    found = "; ".join(f"{count} x {gpu}" for gpu, count in gpus.items()) or "none"
    return Finding("GPU", bool(gpus), found, "an NVIDIA GPU and its driver", _TENSORRT)


def model_class() -> Finding:
    """What plain trtllm-build needs to know our checkpoints."""
    spec = importlib.util.find_spec("trtllm_pt.backends.tensorrt_llm.shim")
    path = spec.origin if spec else None
    return Finding("--model_cls_file", path is not None, path or "none", needed_for="plain trtllm-build")


def triton() -> Finding:
    path = shutil.which("tritonserver") or ("/opt/tritonserver/bin/tritonserver" if _default_triton() else None)
    wheel = _version("nvidia-pytriton")
    found = path or (f"in nvidia-pytriton {wheel}" if wheel else "none")
    return Finding("Triton", bool(path or wheel), found, "NVIDIA's tritonserver container", "serving")


CHECKS: tuple[Callable[[], Finding], ...] = (
    python,
    torch,
    tokenizers,
    mpi4py,
    mpirun,
    mpirun_on_path,
    instruction_set,
    compiler,
    tensorrt_llm,
    tensorrt,
    gpu,
    model_class,
    triton,
)
_AVX2 = {"avx2", "fma", "f16c"}
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
_INSTRUCTION_SETS: tuple[tuple[str, set[str]], ...] = (
    ("AVX-512 with bfloat16", _AVX512 | {"avx512_bf16"}),
    ("AVX-512", _AVX512),
    ("AVX2", _AVX2),
)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pinned(package: str) -> str | None:
    """The version that our `embedded` extra asks for."""
    for requirement in importlib.metadata.requires("trtllm_pt") or ():
        if found := re.match(rf"{package}==([\w.]+)", requirement):
            return found[1]
    return None


def _output(command: list[str], environment: dict[str, str] | None = None) -> str | None:
    """What a command prints; None where it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_HELLO_SECONDS, stdin=subprocess.DEVNULL, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _hello(mpirun: str) -> list[int] | None:
    """What each of two ranks takes for the number of ranks."""
    said = _output(*launch(mpirun, (2, [sys.executable, "-c", _HELLO])))
    return None if said is None else [int(size) for size in re.findall(r"ranks=(\d+);", said)]


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else set()


def _default_triton() -> bool:
    return Path("/opt/tritonserver/bin/tritonserver").exists()
