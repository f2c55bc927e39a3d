"""Files and folders that appear whole or not at all.

Everything is first written to a hidden name beside the place where it belongs, and renamed at the end: a reader, or
somebody who interrupts, finds the old state or the new one and nothing in between. The hidden name is
`.NAME.HOST.PID-N.partial`, where HOST and PID tell which process writes it. A process that is killed cannot remove what
it has begun: the next one that writes the same NAME on that host does.
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

_numbers = itertools.count()  # threads of one process may write the same file


class PartialFile:
    """A hidden file beside `target`, at `path`, which `keep` gives the target's name and `drop` removes.

    `new_file` is the simpler form, where one block of code writes all of the file.
    """

    def __init__(self, target: Path) -> None:
        remove_partials_of_the_dead(target)
        self.target, self.path = target, _hidden(target)

    def keep(self) -> None:
        os.replace(self.path, self.target)

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """The path of a file to be written by the block. It replaces `target` at the end of the block, and is removed where
    the block raises an exception."""
    partial = PartialFile(target)
    try:
        yield partial.path
        partial.keep()
    finally:
        partial.drop()


def write_text(path: Path, text: str) -> None:
    """Write the whole file at once. Raises RunError where the disk refuses; the file is then as it was before."""
    try:
        with new_file(path) as partial:
            partial.write_text(text)
    except OSError as error:
        raise RunError(f"writing {path} failed: {error.strerror or error}") from error


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write the whole file at once, indented. Raises OSError where the disk refuses."""
    with new_file(path) as partial:
        partial.write_text(json.dumps(data, indent=2) + "\n")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A hidden directory to be filled by the block. It becomes `output` at the end of the block, and is removed where
    the block raises an exception.

    Raises UsageError where something is already at `output`, RunError where the disk refuses.
    """
    output = output.resolve()  # of a link, or of `.`, the folder that is meant
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
    """Raises UsageError unless `output` is free, or an empty directory that another can take the place of."""
    if output.is_mount() or output.resolve() == Path.cwd():
        raise UsageError(f"{output} cannot be replaced as a whole; choose a folder inside it")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UsageError(f"{output} already exists; remove it or choose another")


def remove_partials_of_the_dead(target: Path) -> None:
    """Remove what processes of this host that no longer run have left of `target`.

    Files of other hosts, which may share the folder, stay: nothing tells here whether their writers run.
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
    except OSError:  # whoever writes there says why that is not possible
        return []


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True
