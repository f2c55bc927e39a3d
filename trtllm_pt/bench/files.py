"""Results on disk while they grow: a reader, or whoever interrupts, finds the last whole state."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

from trtllm_pt.errors import UsageError
from trtllm_pt.files.atomic import write_text

Row = Mapping[str, object]
_SECONDS = 1.0  # between two states on disk


def as_csv_text(rows: Sequence[Row]) -> str:
    """A header from the first row, then a line per row; nothing for no rows."""
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json_text(data: Any) -> str:
    return json.dumps(data, indent=2) + "\n"


def check_target(path: Path | None, option: str) -> None:
    """Before anything runs. Raises UsageError for a file that could not be written."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise UsageError(f"{option} ({path}): there is no folder {path.parent}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"{option} ({path}) cannot be written")


class Results:
    """Files that follow what was measured: `texts` makes the whole of each anew. None: a file nobody wants.

    measured: what is empty before there is any result; until then nothing is written.
    """

    def __init__(self, texts: Mapping[Path | None, Callable[[], str]], measured: Sized) -> None:
        self._measured = measured
        self._texts = {path: text for path, text in texts.items() if path is not None}
        self._written = 0.0

    @property
    def paths(self) -> list[Path]:
        """Those that were written."""
        return list(self._texts) if self._written else []

    @property
    def due(self) -> bool:
        """Whether there are files, and none was written for a second."""
        return bool(self._texts) and time.monotonic() - self._written >= _SECONDS

    def save(self, *, now: bool = False) -> None:
        """If it is due, or `now`."""
        if not self._measured or not (now or self.due):
            return
        for path, text in self._texts.items():
            write_text(path, text())
        self._written = time.monotonic()
