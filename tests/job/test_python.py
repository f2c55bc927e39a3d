"""Processes that do not import from their working directory."""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from trtllm_pt.job.python import code_command, module_command


@pytest.mark.parametrize(
    "command",
    [
        code_command("import queue; print(queue.__name__)"),
        module_command("program", "a", "-b"),
        module_command("mpi4py", "-m", "program", "a", "-b"),
    ],
    ids=["code", "module", "mpi4py"],
)
def test_the_working_directory_is_not_imported_from(tmp_path: Path, command: Sequence[str]) -> None:
    installed, working = tmp_path / "installed", tmp_path / "working"
    for folder in (installed, working):
        folder.mkdir()
    (installed / "program.py").write_text(
        "import queue, sys; assert sys.argv[1:] == ['a', '-b']; print(queue.__name__)"
    )
    for name in ("queue", "runpy", "mpi4py", "program"):
        (working / f"{name}.py").write_text("raise SystemExit(9)")
    path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        command, cwd=working, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "queue\n"), done.stderr


def test_no_process_of_ours_is_started_otherwise() -> None:
    """Every command that runs code of this package or of Python in this interpreter comes from job/python.py."""
    package = Path(__file__).parents[2] / "trtllm_pt"
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.List) and len(node.elts) > 1 and ast.unparse(node.elts[0]) == "sys.executable":
                option = node.elts[1]
                by_name = isinstance(option, ast.Constant) and option.value in ("-m", "-c")
                assert not by_name or path == package / "job" / "python.py", f"{path}:{node.lineno}"
