"""Recognise the small files that a clone has in place of large ones if git-lfs did not download them."""

from __future__ import annotations

from pathlib import Path

from trtllm_pt.errors import UsageError

_FIRST = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(path: Path) -> None:
    """Raise UsageError if the file is there, but is only a pointer of git-lfs to the file that it should be."""
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(_FIRST)) == _FIRST
    except OSError:
        return  # whoever reads the file reports it
    if is_pointer:
        raise UsageError(f"{path} is only git-lfs's pointer to the file; run `git lfs pull` in {path.parent}")
