"""The command line as users call it: a process, its status, its two streams."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """run(*arguments, env={…}) in an empty folder; an env value of None removes the variable."""

    def call(
        *arguments: str, env: Mapping[str, str | None] | None = None, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        merged = {**os.environ, **(env or {})}
        return subprocess.run(
            [sys.executable, "-m", "trtllm_pt", *arguments],
            cwd=tmp_path,
            env={name: value for name, value in merged.items() if value is not None},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return call
