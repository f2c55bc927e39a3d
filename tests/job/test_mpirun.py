"""The command and the environment that start the ranks of a job."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trtllm_pt.errors import UsageError
from trtllm_pt.job.mpirun import find_mpirun, launch


def test_one_program_on_all_ranks() -> None:
    made = launch("/m/mpirun", (2, ["python", "-c", "1"]), options=["-ppn", "1"], environment={"A": "1"})
    assert made.command == ["/m/mpirun", "-ppn", "1", "-n", "2", "python", "-c", "1"]
    assert made.environment["A"] == "1"


def test_several_programs_in_one_job() -> None:
    made = launch("/m/mpirun", (1, ["a", "b"]), (3, ["c"]), environment={})
    assert made.command == ["/m/mpirun", "-n", "1", "a", "b", ":", "-n", "3", "c"]


def test_the_environment_is_that_of_a_new_job() -> None:
    """What another mpirun has told this process is not passed on; what the user told Open MPI counts."""
    outer = {"PMI_RANK": "3", "PMIX_ID": "x", "OMPI_ALLOW_RUN_AS_ROOT": "0", "HOME": "/h"}
    environment = launch("mpirun", (1, ["a"]), environment=outer).environment
    assert not {"PMI_RANK", "PMIX_ID"} & set(environment)
    assert environment["OMPI_ALLOW_RUN_AS_ROOT"] == "0"
    assert environment["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] == "1"
    assert environment["HOME"] == "/h"


def test_the_mpirun_of_this_environment_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("own", "path"):
        program = tmp_path / name / "bin" / "mpirun"
        program.parent.mkdir(parents=True)
        program.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "own"))
    assert find_mpirun("") == str(tmp_path / "own" / "bin" / "mpirun")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert find_mpirun("") == str(tmp_path / "path" / "bin" / "mpirun")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="needs some MPI"):
        find_mpirun("some MPI")
