"""Compile the C++ ops into one shared library, kept in a cache by what went into it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from trtllm_pt.errors import INSTALL_EMBEDDED, RunError, UsageError

LIBRARY = "libtrtllm_pt_ops.so"

_HERE = Path(__file__).parent
_PER_INSTRUCTION_SET = _HERE / "path.cpp"
_INSTRUCTION_SETS = {  # path.cpp is compiled once for each; every other source file is compiled once
    "portable": ("-march=x86-64-v2",),
    "avx2": ("-march=x86-64-v3",),
    "avx512": ("-march=x86-64-v4",),
    "avx512_bf16": ("-march=x86-64-v4", "-mavx512bf16"),
    "avx512_amx": ("-march=x86-64-v4", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
}
# fp-contract off: the kernels write their fused multiply-adds out, so that every loop rounds alike (path.cpp).
_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
          "-fvisibility=hidden", "-Wall", "-Wno-psabi", "-Wno-maybe-uninitialized")  # fmt: skip


def build_library(out: Path) -> Path:
    """Put the ops library into the folder `out` and return its path there.

    Compiles only what the cache lacks: `$TRTLLM_PT_CACHE`, else `$XDG_CACHE_HOME/trtllm_pt`, else `~/.cache/trtllm_pt`.
    The library names no path of this machine and holds all instruction paths, so it runs beside the same torch version
    on any x86-64 processor.

    Raises UsageError where the compiler or MPI's header is missing, RunError where compiling fails.
    """
    program = compiler()
    headers = _mpi_header().parent
    cached = cache_dir() / _key(program, headers) / LIBRARY
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        _compile(program, headers, cached)
    out.mkdir(parents=True, exist_ok=True)
    target = out / LIBRARY
    with tempfile.NamedTemporaryFile(dir=out, prefix=f".{LIBRARY}.", delete=False) as copy:
        copy.write(cached.read_bytes())
    os.chmod(copy.name, 0o755)
    os.replace(copy.name, target)
    return target


def compiler() -> str:
    """$CXX, else g++ or clang++. Raises UsageError where there is none."""
    wish = os.environ.get("CXX")
    for name in [wish] if wish else ["g++", "clang++"]:
        found = shutil.which(name)
        if found:
            return found
    missing = f"CXX={wish} is not a program" if wish else "no C++ compiler (g++ or clang++) on PATH"
    raise UsageError(f"{missing}; the embedded engine's build needs one: apt-get install g++, or set CXX")


def _mpi_header() -> Path:
    folders = dict.fromkeys([Path(sys.prefix) / "include", Path(sysconfig.get_path("include"))])
    for folder in folders:
        if (folder / "mpi.h").is_file():
            return folder / "mpi.h"
    looked = " or ".join(map(str, folders))
    raise UsageError(f"no mpi.h in {looked}; the embedded engine's build needs it: {INSTALL_EMBEDDED}")


def cache_dir() -> Path:
    """Where compiled things are kept: $TRTLLM_PT_CACHE, else $XDG_CACHE_HOME/trtllm_pt, else ~/.cache/trtllm_pt."""
    own = os.environ.get("TRTLLM_PT_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trtllm_pt"


def _key(compiler: str, headers: Path) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = [version, torch.__version__, repr(_FLAGS), repr(_INSTRUCTION_SETS), (headers / "mpi.h").read_text()]
    parts += [path.read_text() for path in sorted([*_HERE.glob("*.cpp"), *_HERE.glob("*.h")])]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _compile(compiler: str, headers: Path, target: Path) -> None:
    torch_home = Path(torch.__path__[0])
    includes = [torch_home / "include", torch_home / "include/torch/csrc/api/include", headers]
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        scratch = Path(folder)
        # Names without folders: error messages of the ops carry the source file's name as the compiler was given it.
        renames = [f"-ffile-prefix-map={old}={new}" for old, new in ((torch_home, "torch"), (_HERE, "kernels"))]
        common = [compiler, *_FLAGS, *renames, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
        common += [f"-isystem{include}" for include in includes]
        once = sorted(set(_HERE.glob("*.cpp")) - {_PER_INSTRUCTION_SET})
        jobs = {scratch / f"{source.stem}.o": [str(source)] for source in once}
        for name, flags in _INSTRUCTION_SETS.items():
            jobs[scratch / f"path_{name}.o"] = [*flags, f"-DTRTLLM_PT_PATH={name}", str(_PER_INSTRUCTION_SET)]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            list(pool.map(_run, [[*common, *job, "-c", "-o", str(obj)] for obj, job in jobs.items()]))
        library = scratch / LIBRARY
        link = ["-shared", "-fopenmp", *map(str, jobs), f"-L{torch_home / 'lib'}", "-ltorch_cpu", "-lc10", "-ldl"]
        _run([compiler, *link, "-Wl,--no-undefined", f"-Wl,-soname,{LIBRARY}", "-s", "-o", str(library)])
        os.replace(library, target)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise RunError(f"{command[0]} failed (exit status {done.returncode}): {errors[0] if errors else 'no message'}")
