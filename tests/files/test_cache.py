"""Where compiled things are kept, and what compiles them."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.files.cache import cache_dir
from trtllm_pt.files.compiler import compile_cpp, compiler


def test_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("TRTLLM_PT_CACHE", raising=False)
    assert cache_dir() == tmp_path / "xdg" / "trtllm_pt"
    monkeypatch.setenv("TRTLLM_PT_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("TRTLLM_PT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "trtllm_pt"


def test_the_compiler_is_the_one_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "my-compiler"
    own.write_text("#!/bin/sh\necho 'a.cpp:1: error: no such thing' >&2\nexit 3\n")
    own.chmod(0o755)
    monkeypatch.setenv("CXX", str(own))
    assert compiler() == str(own)
    with pytest.raises(RunError, match=r"my-compiler failed \(exit status 3\): a\.cpp:1: error: no such thing"):
        compile_cpp(["a.cpp"])
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="none is not a program"):
        compiler()
