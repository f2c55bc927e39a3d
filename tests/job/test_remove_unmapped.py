"""Files that killed runs left in /dev/shm."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from trtllm_pt.job import shared_memory


def test_only_files_that_no_process_maps_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "_FOLDER", str(tmp_path))
    for name in ("-tp:0-used", "-tp:1-left", "another"):
        (tmp_path / name).write_bytes(bytes(4096))
    with (tmp_path / "-tp:0-used").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        shared_memory.remove_unmapped("-tp:*")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["-tp:0-used", "another"]
    shared_memory.remove_unmapped("-tp:*")
    assert [path.name for path in tmp_path.iterdir()] == ["another"]
