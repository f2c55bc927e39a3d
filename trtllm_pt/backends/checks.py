"""The report of `trtllm-pt doctor`: one finding for each part that the package or a backend needs."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_SECONDS = 30.0  # time limit of a command


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    ok: bool
    found: str  # the version that was found, or the problem
    install: str | None = None  # how to repair it, if not ok
    needed_for: str | None = None  # the purpose for which it is needed, if not always
    essential: bool = True  # whether the backend cannot run engines without it


Check = Callable[[], Finding]


def version(package: str) -> str | None:
    """Return the installed version of a package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def output(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str | None:
    """Return the stdout of a command, or None if it fails or takes longer than 30 seconds.

    environment: the command's environment variables; None passes those of this process.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
