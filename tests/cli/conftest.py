"""The command line as users call it: a process, its status, its two streams."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]


def run_in(folder: Path, *arguments: str, env: Mapping[str, str | None] | None = None, stdin: str = "") -> Done:
    """`trtllm-pt arguments…` in `folder`; an env value of None removes the variable."""
    merged = {**os.environ, **(env or {})}
    return subprocess.run(
        [sys.executable, "-m", "trtllm_pt", *arguments],
        cwd=folder,
        env={name: value for name, value in merged.items() if value is not None},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """run(*arguments, env={…}) in an empty folder."""
    return partial(run_in, tmp_path)
