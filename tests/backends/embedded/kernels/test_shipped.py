"""Which library of a wheel is taken: only one that belongs to this torch and to these sources."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from trtllm_pt.backends.embedded.kernels import build, shipped


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / build.LIBRARY).write_bytes(b"the library of a wheel")
    shipped.describe(tmp_path)
    return tmp_path


def test_a_library_that_fits_is_taken_without_a_compiler(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(shipped, "find", partial(shipped.find, folder=folder))
    built = build.build_library(tmp_path_factory.mktemp("out"))
    assert built.read_bytes() == b"the library of a wheel"


def test_another_variant_of_the_same_torch_fits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", f"{torch.__version__.split('+')[0]}+cu130")
    assert shipped.find(build.LIBRARY, folder) == folder / build.LIBRARY


@pytest.mark.parametrize("fact", ["torch", "sources"])
def test_a_library_of_something_else_is_left_alone(folder: Path, fact: str) -> None:
    path = folder / "library.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, fact: "other"}))
    assert shipped.find(build.LIBRARY, folder) is None


def test_no_library(tmp_path: Path) -> None:
    assert shipped.find(build.LIBRARY, tmp_path) is None
