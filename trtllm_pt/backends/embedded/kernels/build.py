"""Compile the C++ ops into one shared library, kept in a cache by what went into it."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from trtllm_pt.backends.embedded.kernels import shipped
from trtllm_pt.errors import INSTALL_EMBEDDED, UsageError
from trtllm_pt.files.atomic import new_file
from trtllm_pt.files.cache import cache_dir
from trtllm_pt.files.compiler import compile_cpp, compiler, compiler_version

LIBRARY = "libtrtllm_pt_ops.so"

_HERE = Path(__file__).parent
_PER_INSTRUCTION_SET = _HERE / "path.cpp"
_INSTRUCTION_SETS = {  # path.cpp is compiled once for each; every other source file is compiled once
    "portable": ("-march=x86-64-v2",),
    "avx2": ("-march=x86-64-v3",),
    "avx512": ("-march=x86-64-v4",),
    "avx512_bf16": ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vbmi", "-mavx512vnni"),
    "avx512_amx": ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vbmi", "-mavx512vnni", "-mamx-tile", "-mamx-bf16"),
}
# fp-contract is off: the kernels write out their fused multiply-adds, so that every loop rounds in the same way.
_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
          "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi",
          "-Wno-uninitialized", "-Wno-maybe-uninitialized")  # GCC 12 warns of its own intrinsics  # fmt: skip


def build_library(out: Path) -> Path:
    """Put the ops library into the folder `out` and return its path there.

    A wheel may bring the library compiled. Otherwise compiles what the cache lacks: `$TRTLLM_PT_CACHE`, else
    `$XDG_CACHE_HOME/trtllm_pt`, else `~/.cache/trtllm_pt`.
    The library names no path of this machine and holds all instruction paths, so it runs beside the same torch version
    on any x86-64 processor.

    Raises UsageError where the compiler or MPI's header is missing, RunError where compiling fails.
    """
    ready = shipped.find(LIBRARY) or _compiled()
    out.mkdir(parents=True, exist_ok=True)
    target = out / LIBRARY
    with new_file(target) as partial:
        shutil.copyfile(ready, partial)
    return target


def _compiled() -> Path:
    """The library in the cache, compiled where the cache lacks it."""
    program = compiler()
    headers = mpi_header().parent
    cached = cache_dir() / _key(program, headers) / LIBRARY
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        with new_file(cached) as partial:
            _compile(program, headers, partial)
    return cached


def mpi_header() -> Path:
    """MPICH's mpi.h, which its package puts beside this Python. Raises UsageError where there is none."""
    folders = dict.fromkeys([Path(sys.prefix) / "include", Path(sysconfig.get_path("include"))])
    for folder in folders:
        if (folder / "mpi.h").is_file():
            return folder / "mpi.h"
    looked = " or ".join(map(str, folders))
    raise UsageError(f"no mpi.h in {looked}; the embedded engine's build needs it: {INSTALL_EMBEDDED}")


def _key(compiler: str, headers: Path) -> str:
    parts = [
        compiler_version(compiler),
        torch.__version__,
        repr(_FLAGS),
        repr(_INSTRUCTION_SETS),
        (headers / "mpi.h").read_text(),
    ]
    parts += [path.read_text() for path in sorted([*_HERE.glob("*.cpp"), *_HERE.glob("*.h")])]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def objects(headers: Path) -> dict[str, list[str]]:
    """The compiler's arguments for each object of the library, by the object's name: flags and a source file.

    `headers` is the folder of mpi.h.
    """
    torch_home = Path(torch.__path__[0])
    includes = [torch_home / "include", torch_home / "include/torch/csrc/api/include", headers]
    # Error messages of the ops contain the source file's name as the compiler was given it: leave the folders out.
    renames = [f"-ffile-prefix-map={old}={new}" for old, new in ((torch_home, "torch"), (_HERE, "kernels"))]
    common = [*_FLAGS, *renames, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    common += [f"-isystem{include}" for include in includes]
    arguments = {"ops": [*common, str(_HERE / "ops.cpp")]}
    for name, flags in _INSTRUCTION_SETS.items():
        arguments[f"path_{name}"] = [*common, *flags, f"-DTRTLLM_PT_PATH={name}", str(_PER_INSTRUCTION_SET)]
    return arguments


def _compile(compiler: str, headers: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="trtllm_pt-") as folder:
        jobs = {Path(folder) / f"{name}.o": arguments for name, arguments in objects(headers).items()}
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            commands = [[*arguments, "-c", "-o", str(obj)] for obj, arguments in jobs.items()]
            list(pool.map(lambda command: compile_cpp(command, compiler), commands))
        torch_libraries = [f"-L{Path(torch.__path__[0]) / 'lib'}", "-ltorch_cpu", "-lc10"]
        link = ["-shared", "-fopenmp", *map(str, jobs), *torch_libraries, "-ldl"]
        compile_cpp([*link, "-Wl,--no-undefined", f"-Wl,-soname,{LIBRARY}", "-s", "-o", str(target)], compiler)
