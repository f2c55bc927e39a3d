"""A rank that has work and uses no processor time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from trtllm_pt.job.stalled_rank import StallDetector

# Its command line is a rank's; it works for as long as a line is open on its input.
PROGRAM = """
import sys
print("ready", flush=True)
for line in sys.stdin:
    sum(range(200_000))
    print("done", flush=True)
"""


@pytest.fixture
def ranks() -> Iterator[list[subprocess.Popen[str]]]:
    with ExitStack() as stack:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, "-c", PROGRAM, "trtllm_pt.runtime.worker"]
        made = [stack.enter_context(subprocess.Popen(command, text=True, **pipes)) for _ in range(2)]  # type: ignore[call-overload]
        for each in made:
            stack.callback(each.kill)
            assert each.stdout.readline() == "ready\n"
        yield made


def work(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None and process.stdout is not None
    print("more", file=process.stdin, flush=True)
    assert process.stdout.readline() == "done\n"


def settle(process: subprocess.Popen[str]) -> None:
    """Wait until it waits for its input: what it does after its answer is processor time, too."""
    while Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "S":
        pass


def test_the_rank_that_does_nothing_is_found(ranks: list[subprocess.Popen[str]]) -> None:
    detector = StallDetector([each.pid for each in ranks], checks=3)
    settle(ranks[1])
    for _ in range(3):
        work(ranks[0])
        assert detector.stalled() is None
    work(ranks[0])
    assert detector.stalled() == 1
    detector.reset()
    assert detector.stalled() is None


def test_ranks_that_work_are_left_alone(ranks: list[subprocess.Popen[str]]) -> None:
    detector = StallDetector([each.pid for each in ranks], checks=2)
    for _ in range(6):
        for each in ranks:
            work(each)
        assert detector.stalled() is None


def test_other_processes_are_not_looked_at() -> None:
    """A process of that number on this machine need not be the rank: it may run on another."""
    with subprocess.Popen(["sleep", "60"]) as other:
        detector = StallDetector([other.pid], checks=1)
        assert [detector.stalled() for _ in range(3)] == [None] * 3
        other.kill()
