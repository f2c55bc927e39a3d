"""Processes that end when they are told to, or only when they are killed; and what they printed last."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from trtllm_pt.job.process import end, last_line

# A process that ignores SIGTERM where it is told to, with a child that sleeps.
PROGRAM = """
import signal, subprocess, sys, time
if sys.argv[1] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "60"])
print(child.pid, flush=True)
time.sleep(60)
"""


def started(kind: str, *, group: bool = True) -> tuple[subprocess.Popen[str], int]:
    """The process, and its child."""
    command = [sys.executable, "-c", PROGRAM, kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=group)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@pytest.mark.parametrize(("kind", "status"), [("polite", -signal.SIGTERM), ("stubborn", -signal.SIGKILL)])
def test_a_group_ends_whole(kind: str, status: int) -> None:
    process, _ = started(kind)
    with process:
        assert end(process, 60 if kind == "polite" else 0.2) == status
        assert process.stdout is not None and process.stdout.read() == ""  # its child, which has the pipe, ended too


def test_a_process_in_our_own_group_ends_alone() -> None:
    process, child = started("polite", group=False)
    with process:
        assert os.getpgid(process.pid) == os.getpgid(0)
        assert end(process, 60, polite=()) == -signal.SIGKILL
        os.kill(child, signal.SIGKILL)  # raises where it has ended


def test_a_process_that_has_exited_gets_no_signal() -> None:
    with subprocess.Popen(["sh", "-c", "exit 3"], start_new_session=True) as process:
        process.wait()
        assert end(process, 0) == 3


@pytest.mark.parametrize(
    ("printed", "line"),
    [("one\ntwo\n\n", "two"), ("  why it failed \n=====\n - - \n", "why it failed"), ("", None), ("\n---\n", None)],
)
def test_the_last_line_that_says_something(printed: str, line: str | None) -> None:
    assert last_line(printed) == line
