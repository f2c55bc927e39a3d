"""Every instruction path that this machine has passes the same tests; the library fits any of them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def start(library: Path, path: str, *command: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "TRTLLM_PT_ISA": path, "OMP_NUM_THREADS": "2"}
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=False)


def ask(library: Path, path: str) -> "subprocess.CompletedProcess[str]":
    code = f"import torch; torch.ops.load_library({str(library)!r}); print(torch.ops.trtllm_pt.isa())"
    return start(library, path, "-c", code)


def test_unknown_path_is_one_clear_error(library):
    done = ask(library, "z80")
    assert done.returncode != 0
    assert "TRTLLM_PT_ISA=z80 is not an instruction path of this machine; it has portable" in done.stderr


@pytest.mark.parametrize("path", ["portable", "avx2", "avx512", "avx512_bf16"])
def test_path(ops, library, path):
    if path == ops.isa():
        pytest.skip("the path of this very process")
    asked = ask(library, path)
    if asked.returncode != 0:
        assert "is not an instruction path of this machine" in asked.stderr
        pytest.skip("not on this machine")
    assert asked.stdout.strip() == path
    done = start(library, path, "-m", "pytest", "-q", "-x", str(HERE / "test_ops.py"), str(HERE / "test_bitwise.py"))
    assert done.returncode == 0, done.stdout[-2000:]


def test_library_names_no_place(library):
    """It runs beside the same torch wherever that lies."""
    import torch

    content = library.read_bytes()
    for place in (torch.__path__[0], str(HERE.parents[1]), sys.prefix, "/tmp/"):
        assert place.encode() not in content
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic
    assert not re.search(r"NEEDED.*libmpi", dynamic)
