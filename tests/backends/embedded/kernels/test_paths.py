"""Every instruction path that this machine has passes the same tests; the library fits any of them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trtllm_pt.backends.embedded.kernels import build

HERE = Path(__file__).parent


def start(path: str, *command: str, preload: str = "") -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "TRTLLM_PT_ISA": path, "OMP_NUM_THREADS": "2", "LD_PRELOAD": preload}
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=False)


def ask(library: Path, path: str, preload: str = "") -> "subprocess.CompletedProcess[str]":
    code = f"import torch; torch.ops.load_library({str(library)!r}); print(torch.ops.trtllm_pt.isa())"
    return start(path, "-c", code, preload=preload)


def run_tests(path: str, preload: str = "") -> None:
    """The ops' tests in a process of that path; pytest's fault handler would take the emulator's signal."""
    files = [
        str(HERE / name)
        for name in ("test_ops.py", "test_codes.py", "test_integers.py", "test_bitwise.py", "test_amx.py")
    ]
    done = start(path, "-m", "pytest", "-q", "-x", "-p", "no:faulthandler", *files, preload=preload)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-200:]


def test_unknown_path_is_one_clear_error(library):
    done = ask(library, "z80")
    assert done.returncode != 0
    assert "TRTLLM_PT_ISA=z80 is not an instruction path of this machine; it has portable" in done.stderr


@pytest.mark.parametrize("path", ["portable", "avx2", "avx512", "avx512_bf16", "avx512_amx"])
def test_path(ops, library, path):
    if path == ops.isa():
        pytest.skip("the path of this very process")
    asked = ask(library, path)
    if asked.returncode != 0:
        assert "is not an instruction path of this machine" in asked.stderr
        pytest.skip("not on this machine")
    assert asked.stdout.strip() == path
    run_tests(path)


def test_amx_on_an_emulator(library, tmp_path):
    """The library's own code for AMX, its instructions carried out by a signal handler where the processor has none."""
    if ask(library, "avx512_amx").returncode == 0 or ask(library, "avx512_bf16").returncode != 0:
        pytest.skip("the machine has AMX, or not what else that path needs")
    emulator = str(tmp_path / "amx_emulator.so")
    flags = [
        "-std=c++20",
        "-O2",
        "-march=x86-64-v4",
        "-ffp-contract=off",
        "-ftls-model=initial-exec",
        "-fPIC",
        "-shared",
    ]
    subprocess.run([build.compiler(), *flags, str(HERE / "amx_emulator.cpp"), "-o", emulator], check=True)
    assert ask(library, "avx512_amx", emulator).stdout.strip() == "avx512_amx"
    run_tests("avx512_amx", emulator)


def test_amx_is_not_chosen_by_itself(ops, library):
    assert ask(library, "").stdout.strip() in ("portable", "avx2", "avx512", "avx512_bf16")


def test_library_names_no_place(library):
    """It runs beside the same torch wherever that lies."""
    import torch

    content = library.read_bytes()
    for place in (torch.__path__[0], str(HERE.parents[1]), sys.prefix, "/tmp/"):
        assert place.encode() not in content
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic
    assert not re.search(r"NEEDED.*libmpi", dynamic)
