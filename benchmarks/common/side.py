"""The other end of the protocol of benchmarks/peers/side.py: a process that generates when it is told to."""

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

_PATIENCE = 20.0  # seconds for a side to end after it was told to


@dataclass(frozen=True, slots=True)
class Generated:
    """Seconds from the request until each sequence had its 1st, 2nd, … token, and the tokens of each."""

    seconds: list[float]
    tokens: list[list[int]]

    @property
    def first(self) -> float:
        return self.seconds[0]

    @property
    def step(self) -> float:
        """The median of the steps after the first token. Seconds."""
        return median([after - before for before, after in zip(self.seconds, self.seconds[1:], strict=False)])


class Side:
    """A model kept loaded. A context manager. `name` stands in messages, `log` takes what the process prints.

    Raises RunError, with the last line that it printed, where the process ends.
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
                start_new_session=True,  # an interruption is the driver's to handle
            )
        try:
            self.version = str(self._answer()["version"])
        except BaseException:
            self.close()
            raise

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> Generated:
        """`tokens` more of every prompt, all of one length, greedily."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # how it ended is told below
            print(json.dumps({"prompts": prompts, "tokens": tokens}), file=self._process.stdin, flush=True)
        answer = self._answer()
        return Generated(answer["seconds"], answer["tokens"])

    def close(self) -> None:
        """The end of its input is the side's sign to end."""
        try:
            self._process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            end(self._process, _PATIENCE, polite=())

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RunError(f"{self._name} ended with status {self._process.wait()}: {last_words(self._log)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RunError(f"{self._name}: {' '.join(answer['error'].split())}")
        return answer


def last_words(log: Path) -> str:
    """The last line that a process printed, and the file that has the rest."""
    return f"{last_line(log.read_text(errors='replace')) or 'it said nothing'} ({log})"
