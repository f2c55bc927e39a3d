"""Write files and folders that appear whole or not at all.

Everything is first written under a hidden name in the target's folder and renamed at the end, so a reader finds either
the old state or the new one, also after an interruption. The hidden name is `.NAME.HOST.PID-N.partial`, where HOST and
PID identify the process that writes it. A process that is killed cannot remove its partial file; the next process that
writes the same NAME on that host removes it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trtllm_pt.errors import RunError, UsageError

_numbers = itertools.count()  # several threads of one process may write the same file


class PartialFile:
    """A hidden file at `path`, in the folder of `target`. `keep` renames it to `target`, `drop` removes it.

    Use `new_file` where one block of code writes the whole file.
    """

    def __init__(self, target: Path) -> None:
        remove_partials_of_the_dead(target)
        self.target, self.path = target, _hidden(target)

    def keep(self) -> None:
        """Rename the file to `target`, replacing any file there."""
        os.replace(self.path, self.target)

    def drop(self) -> None:
        """Remove the file, if it still has its hidden name."""
        self.path.unlink(missing_ok=True)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield the path of a hidden file for the block to write.

    The file replaces `target` at the end of the block, and is removed if the block raises an exception.
    """
    partial = PartialFile(target)
    try:
        yield partial.path
        partial.keep()
    finally:
        partial.drop()


def write_text(path: Path, text: str) -> None:
    """Write the whole file at once. Raises RunError if that fails; the old file is then unchanged."""
    try:
        with new_file(path) as partial:
            partial.write_text(text)
    except OSError as error:
        raise RunError(f"writing {path} failed: {error.strerror or error}") from error


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write `data` as indented JSON, the whole file at once. Raises OSError if that fails."""
    with new_file(path) as partial:
        partial.write_text(json.dumps(data, indent=2) + "\n")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yield a hidden directory for the block to fill.

    The directory becomes `output` at the end of the block, and is removed if the block raises an exception.
    Raises UsageError if `output` already exists or its parent cannot be written to, RunError if writing fails later.
    """
    output = output.resolve()  # renaming needs the real folder behind a symbolic link or `.`
    partial = _hidden(output)
    try:
        refuse_existing(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        remove_partials_of_the_dead(output)
        partial.mkdir()
    except OSError as error:
        raise UsageError(f"cannot write to {output.parent}: {error.strerror}") from None
    try:
        yield partial
        partial.rename(output)
    except OSError as error:
        raise RunError(f"writing {output} failed: {error.strerror or error}; nothing was kept") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_existing(output: Path) -> None:
    """Raise UsageError unless `output` does not exist or is an empty directory that can be replaced."""
    if output.is_mount() or output.resolve() == Path.cwd():
        raise UsageError(f"{output} is a mount point or the current directory; choose a folder inside it")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UsageError(f"{output} already exists; remove it or choose another")


def remove_partials_of_the_dead(target: Path) -> None:
    """Remove the partial files of `target` that were left by processes of this host that no longer run.

    Partial files of other hosts that share the folder stay, because this host cannot check whether their writers run.
    """
    written_here = re.compile(re.escape(f".{target.name}.{socket.gethostname()}.") + r"(\d+)-\d+\.partial")
    for path in _entries(target.parent):
        found = written_here.fullmatch(path.name)
        if found is None or _runs(int(found[1])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _hidden(target: Path) -> Path:
    return target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}-{next(_numbers)}.partial")


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # the write that follows reports the reason
        return []


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process exists and belongs to another user
        return True
    return True
