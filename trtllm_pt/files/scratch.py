"""A private temporary folder of a process, and files elsewhere that go with it.

A process that is killed cannot remove them, so the next process of the same user removes what dead ones left. A lock
on a file in the folder shows that its owner runs; the kernel releases it however the owner ends, also in another
container that shares the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from glob import glob
from pathlib import Path

_PREFIX = "trtllm_pt-"
_LOCK = "lock"
_ELSEWHERE = "elsewhere"  # the list of patterns of files in other folders


class Scratch:
    """A new folder at `path`, after the removal of those whose owners are dead. kind: a word for its name."""

    def __init__(self, kind: str = "") -> None:
        _remove_those_of_the_dead()
        self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{kind}"))
        new = self.path / f"{_LOCK}.new"
        self._lock = new.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        new.rename(self.path / _LOCK)  # from here on, others look at the folder

    def remove_later(self, patterns: Iterable[str]) -> None:
        """Let `remove` also remove the files that match these absolute patterns."""
        with (self.path / _ELSEWHERE).open("a") as listed:
            listed.writelines(f"{pattern}\n" for pattern in patterns)

    def remove(self) -> None:
        """Remove the folder and the files elsewhere."""
        _remove(self.path)
        self._lock.close()


def _remove_those_of_the_dead() -> None:
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError):  # its owner has just removed it
            if _is_private(lock.parent):
                _remove_if_dead(lock)


def _is_private(folder: Path) -> bool:
    """Return whether a folder is this user's own and nobody else can write to it.

    Everybody can make folders in the temporary folder. One of another user could name files of this user for removal.
    """
    found = folder.lstat()  # a link of another user could lead to a folder of this one
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o700


def _remove_if_dead(lock: Path) -> None:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # its owner runs
            return
        _remove(lock.parent)


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        for pattern in (folder / _ELSEWHERE).read_text().splitlines():
            for path in glob(pattern):
                Path(path).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
