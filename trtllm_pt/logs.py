"""The logs of this package: the records of all loggers below `trtllm_pt`, as lines of text or of JSON.

The command line calls `set_up`. The processes that it starts (Triton's Python models, an engine's ranks) call
`set_up_from_environment`, which finds the same settings there and writes to the same place. No record holds a prompt or
an output.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import stat
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TextIO

LEVELS = ("debug", "info", "warning", "error")
DEFAULT_LEVEL = "warning"
# Variables of the environment.
LEVEL, JSON, FILE = "TRTLLM_PT_LOG_LEVEL", "TRTLLM_PT_LOG_JSON", "TRTLLM_PT_LOG_FILE"
_ROOT = "trtllm_pt"
_PLAIN = re.compile(r"[\w.:/+-]+")  # a value that text shows without quotes


def set_up(level: str, as_json: bool) -> None:
    """Write records of `level` and above to stderr, and have the processes that this one starts do the same."""
    os.environ[LEVEL], os.environ[JSON] = level, "1" if as_json else "0"
    os.environ.pop(FILE, None)
    if sys.platform == "linux":
        # A child's own stderr may be a file of its own, and this path leads to ours through any process in between.
        os.environ[FILE] = f"/proc/{os.getpid()}/fd/2"
        if stat.S_ISREG(os.fstat(2).st_mode):  # several processes write: none may write over the others' lines
            fcntl.fcntl(2, fcntl.F_SETFL, fcntl.fcntl(2, fcntl.F_GETFL) | os.O_APPEND)
    _write_to(sys.stderr, level, as_json)


def set_up_from_environment() -> None:
    """Write records as the environment says: by default warnings and errors, as text, to stderr."""
    level = os.environ.get(LEVEL, "").lower()
    _write_to(_stream(), level if level in LEVELS else DEFAULT_LEVEL, os.environ.get(JSON, "0") not in ("", "0"))


def fields(**values: object) -> Mapping[str, object]:
    """Return the `extra` of a record with these values: text shows `name=value`, JSON has a key each."""
    return {"fields": values}


def _stream() -> TextIO:
    try:
        return open(os.environ[FILE], "a", buffering=1)
    except (KeyError, OSError):  # the process that set the variable is gone, or its stderr is a socket
        return sys.stderr


def _write_to(stream: TextIO, level: str, as_json: bool) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    logger = logging.getLogger(_ROOT)
    logger.handlers = [handler]
    logger.setLevel(level.upper())


class TextFormatter(logging.Formatter):
    """One line per record: time in UTC, level, logger, process, message and fields. A traceback follows on its own."""

    def format(self, record: logging.LogRecord) -> str:
        values = " ".join(f"{name}={_plain(value)}" for name, value in _fields(record).items() if value is not None)
        head = f"{_time(record)} {record.levelname} {record.name}[{record.process}]"
        line = f"{head}: {' '.join([record.getMessage(), values]).strip()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object per record and line, with the fields as keys beside time, level, logger, process and message."""

    def format(self, record: logging.LogRecord) -> str:
        data: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            data["exception"] = self.formatException(record.exc_info)
        return json.dumps(data, default=str)


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    found: Mapping[str, object] = getattr(record, "fields", {})
    return found


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")


def _plain(value: object) -> str:
    """Return a value as it stands in a text line. Quotes and escapes keep a client's id from forging a line."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
