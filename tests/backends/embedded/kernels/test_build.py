"""What a machine may lack when the ops are compiled, and the cache."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trtllm_pt.backends.embedded import constants
from trtllm_pt.backends.embedded.kernels import build, fakes
from trtllm_pt.backends.embedded.kernels.library import check_constants, load
from trtllm_pt.errors import RunError, UsageError


def test_no_compiler_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"no C\+\+ compiler .*apt-get install g\+\+"):
        build.build_library(tmp_path / "out")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match="CXX=no-such-compiler is not a program"):
        build.build_library(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_mpi_header_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(build.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UsageError, match=r"pip install 'trtllm_pt\[embedded\]'"):
        build.build_library(tmp_path / "out")


@pytest.mark.slow  # it compiles all sources again
@pytest.mark.parametrize("name", build.objects(Path("mpi")))
def test_no_warnings(name):
    """Those that the compiler gives without optimizing: when it optimizes, GCC 12 warns of its own intrinsics."""
    arguments = build.objects(build.mpi_header().parent)[name]
    command = [build.compiler(), *arguments, "-fsyntax-only", "-Werror"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:2000]
    assert {"-Wall", "-Wextra"} <= set(arguments)


def test_a_compile_error_is_one_line_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("TRTLLM_PT_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "_FLAGS", ("-no-such-flag",))
    with pytest.raises(RunError, match="no-such-flag"):
        build.build_library(tmp_path / "out")
    assert not list(tmp_path.rglob("*.o")) and not list(tmp_path.rglob("*.so"))


def test_a_missing_or_other_library_is_refused(ops, library, tmp_path):
    load(library)  # again: nothing happens
    with pytest.raises(UsageError, match="does not exist"):
        load(tmp_path / "none.so")
    (tmp_path / "other.so").write_bytes(b"other")
    with pytest.raises(UsageError, match="already loaded another op library"):
        load(tmp_path / "other.so")


@pytest.mark.parametrize("name", [name for name in vars(constants) if name.isupper()])
def test_a_changed_constant_is_noticed(ops, monkeypatch, name):
    check_constants()
    monkeypatch.setattr(constants, name, getattr(constants, name) + 1)
    with pytest.raises(AssertionError, match=name):
        check_constants()


@pytest.mark.parametrize("shape", [(16, 2), (1, 1), (2, 3, 20, 7), (100, 64)])
def test_the_fake_of_pack_has_the_shape_of_pack(ops, dtype, shape):
    w = torch.zeros(shape, dtype=dtype)
    assert fakes.pack(w).shape == ops.pack(w).shape
