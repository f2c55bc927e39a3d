"""Checks and clears /dev/shm, through which MPI and the ranks of one machine share memory.

MPI itself does not check it: if there is too little room, a bus error kills a rank at some later time.
"""

from __future__ import annotations

import os
from pathlib import Path

from trtllm_pt.errors import UsageError

_FOLDER = "/dev/shm"
BYTES_PER_RANK = 6_000_000  # MPICH 5 and the engine's own window take 5.3 MB per rank


def check_shared_memory(needed: int) -> None:
    """Raise UsageError if /dev/shm is missing, cannot be written to, or has less than `needed` bytes free."""
    try:
        space = os.statvfs(_FOLDER)
    except OSError as error:
        raise UsageError(f"{_FOLDER}: {error.strerror}; ranks share memory there, so mount a tmpfs") from None
    if not os.access(_FOLDER, os.W_OK):
        raise UsageError(f"{_FOLDER} cannot be written to; ranks share memory there, so mount it writable")
    free = space.f_bavail * space.f_frsize
    if free < needed:
        raise UsageError(
            f"{_FOLDER} has {free / 1e6:.1f} MB free, but the ranks need {needed / 1e6:.0f} MB: remove files there "
            "that no process uses, or enlarge it (docker run --shm-size 1g)"
        )


def remove_unmapped(pattern: str) -> None:
    """Remove the files of /dev/shm that match `pattern` and that no process maps: those of runs that were killed."""
    left = {str(path): path for path in Path(_FOLDER).glob(pattern)}
    for maps in Path("/proc").glob("[0-9]*/maps") if left else ():
        try:
            mapped = maps.read_text(errors="replace")
        except OSError:  # the process has ended, or belongs to another user, as its files do
            continue
        left = {name: path for name, path in left.items() if name not in mapped}
    for path in left.values():
        path.unlink(missing_ok=True)
