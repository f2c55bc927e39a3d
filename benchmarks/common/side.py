"""The parent of a process that keeps a model loaded and generates on request (benchmarks/peers/side.py)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_pt.bench.results import median
from trtllm_pt.errors import RunError
from trtllm_pt.job.process import end, last_line

_PATIENCE = 20.0  # seconds that a process has to exit after its input was closed


@dataclass(frozen=True, slots=True)
class Generated:
    """The seconds from the request until all sequences had their 1st, 2nd, … token, and the tokens of each sequence."""

    seconds: list[float]
    tokens: list[list[int]]

    @property
    def first(self) -> float:
        """The seconds to the first token."""
        return self.seconds[0]

    @property
    def step(self) -> float:
        """The median of the seconds per step after the first token."""
        return median([after - before for before, after in zip(self.seconds, self.seconds[1:], strict=False)])


class Side:
    """A context manager that keeps a model loaded in a process.

    `name` appears in error messages, and `log` is the file for the process's output. Raises RunError, with the last
    line of the log, if the process exits.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, threads: int) -> None:
        self._name, self._log = name, log
        with log.open("w") as printed:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
                start_new_session=True,  # Ctrl-C goes to the parent alone
            )
        try:
            self.version = str(self._answer()["version"])
        except BaseException:
            self.close()
            raise

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> Generated:
        """Generate `tokens` tokens after every prompt, greedily. All prompts have the same length."""
        answer = self._ask({"prompts": prompts, "tokens": tokens})
        return Generated(answer["seconds"], answer["tokens"])

    def nats(self, windows: Sequence[Sequence[int]]) -> list[float]:
        """Return the sum of -log(p) of each window's tokens from the second on."""
        found: list[float] = self._ask({"windows": windows})["nats"]
        return found

    def close(self) -> None:
        """Close the process's input, at which it exits, or kill it if it does not."""
        try:
            self._process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            end(self._process, _PATIENCE, polite=())

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # _answer reports why the process exited
            print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RunError(f"{self._name} exited with status {self._process.wait()}: {last_words(self._log)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RunError(f"{self._name}: {' '.join(answer['error'].split())}")
        return answer


def last_words(log: Path) -> str:
    """Return the last line of a log, and the path of the file."""
    return f"{last_line(log.read_text(errors='replace')) or 'no output'} ({log})"
