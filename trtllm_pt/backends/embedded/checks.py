"""The checks that `trtllm-pt doctor` makes for the embedded engine."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import sys
from pathlib import Path

from trtllm_pt.backends.checks import Check, Finding, output, version
from trtllm_pt.errors import INSTALL_EMBEDDED, MPI_OF_EMBEDDED, UsageError
from trtllm_pt.files import compiler as files_compiler
from trtllm_pt.job.mpirun import find_mpirun, launch
from trtllm_pt.job.python import code_command

# Each rank writes with a single call, so that the output of two ranks is not interleaved.
_HELLO = "import os; from mpi4py import MPI; os.write(1, b'ranks=%d;' % MPI.COMM_WORLD.size)"
_LIBRARY = "from mpi4py import MPI; print(MPI.Get_library_version().splitlines()[0])"
_AVX2 = {"avx2", "fma", "f16c"}
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
_INSTRUCTION_SETS: tuple[tuple[str, set[str]], ...] = (
    ("AVX-512 with bfloat16", _AVX512 | {"avx512_bf16", "avx512vbmi", "avx512_vnni"}),
    ("AVX-512", _AVX512),
    ("AVX2", _AVX2),
)


def torch() -> Finding:
    """Check that the installed torch is the one that the op library is compiled for."""
    wanted, found = _pinned("torch"), version("torch")
    good = found is not None and found.split("+")[0] == wanted
    return Finding("torch", good, found or "none", None if good else f"{INSTALL_EMBEDDED} (torch {wanted})")


def mpi4py() -> Finding:
    """Check that mpi4py is installed and loads an MPI library."""
    found = version("mpi4py")
    if found is None:
        return Finding("mpi4py", False, "none", INSTALL_EMBEDDED)
    library = output(code_command(_LIBRARY))
    if library is None:
        return Finding("mpi4py", False, f"{found}, but it finds no MPI library to load", INSTALL_EMBEDDED)
    return Finding("mpi4py", True, f"{found} with {' '.join(library.split())}")


def mpirun() -> Finding:
    """Check that mpirun starts two ranks in one world. The mpirun of another MPI starts two worlds of one rank each."""
    try:
        path = find_mpirun(MPI_OF_EMBEDDED)
    except UsageError:
        return Finding("mpirun", False, "none", INSTALL_EMBEDDED)
    sizes = _hello(path)
    if sizes is None:
        return Finding("mpirun", False, f"{path}: two ranks did not answer in time", INSTALL_EMBEDDED)
    if sizes != [2, 2]:
        install = f"{INSTALL_EMBEDDED}, and use the mpirun that comes with it"
        return Finding("mpirun", False, f"{path} belongs to another MPI than mpi4py: each rank is alone", install)
    return Finding("mpirun", True, f"{path} starts two ranks that find each other")


def mpirun_on_path() -> Finding:
    """Check that the first mpirun on PATH, which users call by hand, belongs to the same MPI as mpi4py."""
    name, use = "mpirun on PATH", "starting ranks by hand"
    path = shutil.which("mpirun")
    own = Path(sys.prefix) / "bin" / "mpirun"
    if path is None:
        return Finding(name, False, "none", f"use {own}" if own.exists() else INSTALL_EMBEDDED, use, False)
    if own.exists() and not own.samefile(path) and _hello(path) != [2, 2]:
        return Finding(name, False, f"{path} belongs to another MPI than mpi4py", f"use {own}", use, False)
    return Finding(name, True, path, None, use, False)


def instruction_set() -> Finding:
    """Check for AVX2, and find the best instruction set for which the ops have kernels."""
    flags = _cpu_flags()
    for name, needed in _INSTRUCTION_SETS:
        if needed <= flags:
            return Finding("instruction set", True, name)
    machine = platform.machine()
    return Finding("instruction set", False, f"{machine} without AVX2", "an x86-64 processor with AVX2, FMA and F16C")


def compiler() -> Finding:
    """Check that there is a C++ compiler that runs."""
    try:
        printed, found = output([files_compiler.compiler(), "--version"]), "none that runs"
    except UsageError as error:
        printed, found = None, str(error).partition(";")[0]
    found = printed.splitlines()[0] if printed else found
    return Finding("C++ compiler", bool(printed), found, "apt-get install g++", "building engines", False)


CHECKS: tuple[Check, ...] = (torch, mpi4py, mpirun, mpirun_on_path, instruction_set, compiler)


def _pinned(package: str) -> str | None:
    """Return the version of a package that the extra `embedded` requires."""
    for requirement in importlib.metadata.requires("trtllm_pt") or ():
        if found := re.match(rf"{package}==([\w.]+)", requirement):
            return found[1]
    return None


def _hello(mpirun: str) -> list[int] | None:
    """Start two ranks and return the size of the MPI world that each of them sees, or None if that fails."""
    said = output(*launch(mpirun, (2, code_command(_HELLO))))
    return None if said is None else [int(size) for size in re.findall(r"ranks=(\d+);", said)]


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else set()
