"""What `trtllm-pt doctor` reports: one finding per part that the package or a backend needs."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_SECONDS = 30.0  # that a command may take


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    ok: bool
    found: str
    install: str | None = None  # what would help, where not ok
    needed_for: str | None = None  # what needs it, in words
    essential: bool = True  # its backend cannot run engines without it


Check = Callable[[], Finding]


def version(package: str) -> str | None:
    """The installed version of a package; None: it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def output(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str | None:
    """What a command prints; None where it fails or takes longer than 30 seconds.

    environment: to start it in; None: that of this process.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
