"""Checks /dev/shm, through which MPI and the ranks of one machine share memory.

MPI itself does not check it: if there is too little room, a bus error kills a rank at some later time.
"""

from __future__ import annotations

import os

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
