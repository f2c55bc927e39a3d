"""Results of a measurement: statistics of its samples, a progress bar, and files that are rewritten while it runs."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np

from trtllm_pt.errors import UsageError
from trtllm_pt.files.atomic import write_text
from trtllm_pt.job.launchers import launched_ranks

Row = Mapping[str, object]
PERCENTILES = {"p50": 50, "p90": 90, "p95": 95, "p99": 99}
_SAVE_SECONDS = 1.0  # the shortest time between two states of a file
_BAR_SECONDS = 2.0  # a measurement that is shorter shows no progress bar


def percentiles(samples: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Return p50, p90, p95, p99, minimum, maximum and average of `samples` times `scale`, named as by trtllm-bench.

    Percentiles are interpolated linearly, as numpy does by default. All are 0 if there are no samples.
    """
    values = np.asarray(samples or [0.0], float) * scale
    found = {name: float(np.percentile(values, rank)) for name, rank in PERCENTILES.items()}
    return found | {
        "minimum": float(values.min()),
        "maximum": float(values.max()),
        "average": float(values.mean()),
    }


def median(samples: Sequence[float]) -> float:
    """Return the median of at least one sample."""
    return float(np.median(np.asarray(samples, float)))


def ratios(ours: Sequence[float], baseline: Sequence[float]) -> Mapping[str, float]:
    """Divide each of our samples by the baseline's sample of the same round.

    Return the median of these ratios and their spread.
    """
    pairs = np.asarray(ours, float) / np.asarray(baseline, float)
    low, middle, high = np.percentile(pairs, (10, 50, 90))
    return {
        "median": float(middle),
        "p10": float(low),
        "p90": float(high),
        "minimum": float(pairs.min()),
        "maximum": float(pairs.max()),
    }


def bar(total: int, what: str, unit: str) -> Any:
    """Return a tqdm progress bar on stderr, which appears after two seconds.

    It is shown on a terminal, and under mpirun, which forwards the lines.
    """
    from tqdm import tqdm

    shown = sys.stderr.isatty() or launched_ranks() is not None
    return tqdm(total=total, desc=what, unit=unit, delay=_BAR_SECONDS, mininterval=0.5, disable=not shown, leave=False)


def as_csv_text(rows: Sequence[Row]) -> str:
    """Return a header with the first row's keys, then a line per row. Without rows the text is empty."""
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json_text(data: Any) -> str:
    """Return indented JSON that ends with a newline."""
    return json.dumps(data, indent=2) + "\n"


def check_target(path: Path | None, option: str) -> None:
    """Raise UsageError if `path`, the value of `option`, cannot be written. None is always fine."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise UsageError(f"{option} ({path}): the folder {path.parent} does not exist")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"{option} ({path}) cannot be written")


class Results:
    """Files that always hold everything measured so far.

    `texts` maps each file to a function that returns its whole text. A file that the user did not ask for is None.
    `measured` is a container that is empty until there is a result; nothing is written before.
    """

    def __init__(self, texts: Mapping[Path | None, Callable[[], str]], measured: Sized) -> None:
        self._measured = measured
        self._texts = {path: text for path, text in texts.items() if path is not None}
        self._written = 0.0

    @property
    def paths(self) -> list[Path]:
        """The files written so far."""
        return list(self._texts) if self._written else []

    @property
    def due(self) -> bool:
        """True if there are files to write and a second has passed since they were written last."""
        return bool(self._texts) and time.monotonic() - self._written >= _SAVE_SECONDS

    def save(self, *, now: bool = False) -> None:
        """Rewrite all files if a second has passed since the last time, or in any case if `now` is set.

        Raises RunError if a file cannot be written.
        """
        if not self._measured or not (now or self.due):
            return
        for path, text in self._texts.items():
            write_text(path, text())
        self._written = time.monotonic()
