"""The logs of this package: the records of all loggers below `trtllm_pt`, as lines of text or of JSON.

The command line calls `set_up`. The processes that it starts (Triton's Python models, an engine's ranks) call
`set_up_from_environment`, which uses the same settings and writes to the same place. No record contains a prompt or an
output.
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
# The environment variables that pass the settings to other processes.
LEVEL, JSON, FILE = "TRTLLM_PT_LOG_LEVEL", "TRTLLM_PT_LOG_JSON", "TRTLLM_PT_LOG_FILE"
_ROOT = "trtllm_pt"
_PLAIN = re.compile(r"[\w.:/+-]+")  # a value that is written without quotes in text


def set_up(level: str, as_json: bool) -> None:
    """Write records of `level` and above to stderr, and have the processes that this one starts do the same."""
    os.environ[LEVEL], os.environ[JSON] = level, "1" if as_json else "0"
    os.environ.pop(FILE, None)
    if sys.platform == "linux":
        # The stderr of a child process may be redirected to a file; this path leads to our stderr nevertheless.
        os.environ[FILE] = f"/proc/{os.getpid()}/fd/2"
        if stat.S_ISREG(os.fstat(2).st_mode):  # several processes write and must not overwrite each other's lines
            fcntl.fcntl(2, fcntl.F_SETFL, fcntl.fcntl(2, fcntl.F_GETFL) | os.O_APPEND)
    _write_to(sys.stderr, level, as_json)


def set_up_from_environment() -> None:
    """Write records as the environment variables say, by default warnings and errors as text to stderr."""
    level = os.environ.get(LEVEL, "").lower()
    _write_to(_stream(), level if level in LEVELS else DEFAULT_LEVEL, os.environ.get(JSON, "0") not in ("", "0"))


def fields(**values: object) -> Mapping[str, object]:
    """Return the `extra` of a log record with these values: `name=value` in text, one key per value in JSON."""
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
    """Formats a record as one line: time in UTC, level, logger, process, message, fields. A traceback follows it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback on the lines after it."""
        values = " ".join(f"{name}={_plain(value)}" for name, value in _fields(record).items() if value is not None)
        head = f"{_time(record)} {record.levelname} {record.name}[{record.process}]"
        line = f"{head}: {' '.join([record.getMessage(), values]).strip()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object on one line: time, level, logger, process, message, and one key per field."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the JSON object. A traceback is in its key "exception"."""
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
    """Return a value as text. Quotes and escapes keep a client's request id from forging a line of the log."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
