"""Find and run this machine's C++ compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from trtllm_pt.errors import RunError, UsageError


def compiler() -> str:
    """Return the path of $CXX if set, else of g++ or clang++. Raises UsageError if there is no such program."""
    chosen = os.environ.get("CXX")
    for name in [chosen] if chosen else ["g++", "clang++"]:
        found = shutil.which(name)
        if found:
            return found
    missing = f"CXX={chosen} is not a program" if chosen else "no C++ compiler (g++ or clang++) on PATH"
    raise UsageError(f"{missing}; install one (apt-get install g++) or set CXX to its path")


def compiler_version(program: str) -> str:
    """Return the output of `program --version`."""
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout


def compile_cpp(arguments: Sequence[str], program: str | None = None) -> None:
    """Run `program`, by default the compiler. Raises RunError with its first error message if it fails."""
    command = [program or compiler(), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise RunError(f"{command[0]} failed (exit status {done.returncode}): {errors[0] if errors else 'no message'}")
