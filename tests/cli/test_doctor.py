"""The doctor on machines that lack something, made by environment variables and stand-ins."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Done, Run
from trtllm_pt.backends.embedded import checks

OTHER_MPIRUN = """#!/bin/sh
# Another MPI's launcher, as mpi4py sees it: every process is a world of one.
shift 2
export OMPI_COMM_WORLD_SIZE=2
OMPI_COMM_WORLD_RANK=0 "$@" && OMPI_COMM_WORLD_RANK=1 "$@"
"""


def findings(done: Done) -> dict[str, Any]:
    return {finding["name"]: finding for finding in json.loads(done.stdout)}


def other_mpirun(folder: Path) -> Path:
    path = folder / "bin" / "mpirun"
    path.parent.mkdir()
    path.write_text(OTHER_MPIRUN)
    path.chmod(0o755)
    return path


def test_everything_here(run: Run) -> None:
    done = run("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = findings(done)
    for name in ("Python", "torch", "tokenizers", "mpi4py", "mpirun", "instruction set"):
        assert found[name]["ok"], name
    assert run("doctor").stdout.count("\nok ") == sum(finding["ok"] for finding in found.values())


def test_no_torch(run: Run, tmp_path: Path) -> None:
    """The doctor itself needs none of what it looks for."""
    for package in ("torch", "numpy", "tokenizers", "safetensors"):
        (tmp_path / f"{package}.py").write_text("raise ImportError('not here')")
    assert run("doctor", env={"PYTHONPATH": str(tmp_path)}).returncode == 0


def test_no_compiler(run: Run) -> None:
    done = run("doctor", "--json", env={"CXX": "no-such-compiler"})
    finding = findings(done)["C++ compiler"]
    assert (finding["ok"], finding["needed_for"]) == (False, "building engines")
    assert done.returncode == 0  # what is built runs without one


def test_no_mpi(run: Run, tmp_path: Path) -> None:
    broken = tmp_path / "mpi4py" / "__init__.py"
    broken.parent.mkdir()
    broken.write_text("raise ImportError('no libmpi')")
    done = run("doctor", "--json", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert not findings(done)["mpi4py"]["ok"]
    (line,) = done.stderr.splitlines()
    assert "the embedded engine lacks mpi4py, mpirun" in line


NVIDIA_SMI = """#!/bin/sh
printf 'NVIDIA H100 80GB HBM3, 81559 MiB, 9.0, 590.44.01\\nNVIDIA H100 80GB HBM3, 81559 MiB, 9.0, 590.44.01\\n'
"""


def container(folder: Path, version: str = "1.2.1", builder: bool = True) -> dict[str, str]:
    """What TensorRT-LLM's container has, without an MPI for the embedded engine; the environment that shows it."""
    (folder / "mpi4py").mkdir()
    (folder / "mpi4py" / "__init__.py").write_text("raise ImportError('no libmpi')")
    (folder / "tensorrt_llm").mkdir()
    (folder / "tensorrt_llm" / "__init__.py").write_text("raise ImportError('asking must not import it')")
    if builder:
        (folder / "tensorrt_llm" / "builder.py").touch()
    for name, number in (("tensorrt_llm", version), ("tensorrt", "10.14.1.48")):
        info = folder / f"{name}-{number}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
    (folder / "nvidia-smi").write_text(NVIDIA_SMI)
    (folder / "nvidia-smi").chmod(0o755)
    return {"PYTHONPATH": str(folder), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_in_tensorrt_llms_container(run: Run, tmp_path: Path) -> None:
    done = run("doctor", "--json", env=container(tmp_path))
    found = findings(done)
    assert done.returncode == 0, done.stderr  # one engine runs, though not the embedded one
    assert not found["mpi4py"]["ok"]
    assert (found["TensorRT-LLM"]["found"], found["TensorRT"]["found"]) == ("1.2.1", "10.14.1.48")
    assert found["GPU"]["found"] == "2 x NVIDIA H100 80GB HBM3, 81559 MiB, 9.0, 590.44.01"
    assert Path(found["--model_cls_file"]["found"]).name == "shim.py"
    assert (Path(found["PYTHONPATH"]["found"]) / "sitecustomize.py").exists()


@pytest.mark.parametrize(
    ("version", "builder", "words", "status"),
    [
        ("1.3.0rc3", True, "1.3.0rc3; trtllm_pt is made for 1.2.1", 0),
        ("1.4.0rc1", False, "can no longer build engines", 2),
    ],
)
def test_other_versions_of_tensorrt_llm(
    run: Run, tmp_path: Path, version: str, builder: bool, words: str, status: int
) -> None:
    done = run("doctor", "--json", env=container(tmp_path, version, builder))
    assert words in findings(done)["TensorRT-LLM"]["found"]
    assert done.returncode == status


def test_another_mpirun_on_path(run: Run, tmp_path: Path) -> None:
    path = other_mpirun(tmp_path)
    done = run("doctor", "--json", env={"PATH": f"{path.parent}{os.pathsep}{os.environ['PATH']}"})
    finding = findings(done)["mpirun on PATH"]
    assert not finding["ok"]
    assert "another MPI" in finding["found"]
    assert finding["install"] == f"use {Path(sys.prefix) / 'bin' / 'mpirun'}"
    assert done.returncode == 0  # ranks are started with our own


def test_only_another_mpirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = other_mpirun(tmp_path)
    monkeypatch.setattr(checks, "find_mpirun", lambda hint: str(path))
    finding = checks.mpirun()
    assert not finding.ok
    assert finding.essential
    assert "another MPI" in finding.found


def test_a_processor_without_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_cpu_flags", lambda: {"sse4_2"})
    assert not checks.instruction_set().ok
    monkeypatch.setattr(checks, "_cpu_flags", lambda: {"avx2", "fma", "f16c"})
    assert checks.instruction_set().found == "AVX2"
