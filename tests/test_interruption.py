"""Ctrl-C while an engine is built ends pytest and all that it started soon, also on a busy machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interruption import descendants

ROOT = Path(__file__).parents[1]
SECONDS = 60
LONG_BUILD = """
def test_build(engine):
    engine("everything-1")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send", "options"), [(os.killpg, ()), (os.kill, ("-n", "1"))], ids=["to the group", "to pytest and its workers"]
)
def test_interruption(tmp_path: Path, send: Callable[[int, int], None], options: tuple[str, ...]) -> None:
    (tmp_path / "test_long.py").write_text(LONG_BUILD)
    environment = {**os.environ, "TRTLLM_PT_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:hypothesispytest",
        "-p",
        "tests.conftest",
        "--rootdir",
        str(tmp_path),
        *options,
    ]
    with subprocess.Popen(
        [*command, "test_long.py"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            until(lambda: any(name(pid) == "cc1plus" for pid in descendants(process.pid)), 120)
            started = {process.pid, *descendants(process.pid)}
            send(process.pid, signal.SIGINT)
            until(lambda: process.poll() is not None and not any(map(runs, started)), SECONDS)
        finally:
            for pid in (process.pid, *descendants(process.pid)):
                if runs(pid):
                    os.kill(pid, signal.SIGKILL)
    assert process.returncode == pytest.ExitCode.INTERRUPTED


def until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
