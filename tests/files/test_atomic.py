"""Files and folders that appear whole or not at all, and what killed writers leave."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.files.atomic import PartialFile, new_file, new_folder, write_json, write_text

# Begins a file and a folder, says so, and waits to be killed.
KILLED = """
import sys, time
from pathlib import Path
from trtllm_pt.files.atomic import new_file, new_folder
with new_file(Path(sys.argv[1])) as file, new_folder(Path(sys.argv[2])) as folder:
    file.write_text("half")
    (folder / "half").touch()
    print("begun", flush=True)
    time.sleep(60)
"""


def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path: Path) -> None:
    target = tmp_path / "result"
    target.write_text("old")
    with new_file(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old" and partial.parent == tmp_path
    assert target.read_text() == "new"
    with pytest.raises(ZeroDivisionError), new_file(target) as partial:
        partial.write_text("never")
        raise ZeroDivisionError
    assert target.read_text() == "new" and list(tmp_path.iterdir()) == [target]


def test_text_and_json(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "a\n")
    write_json(tmp_path / "json", {"a": 1})
    assert (tmp_path / "text").read_text() == "a\n" and json.loads((tmp_path / "json").read_text()) == {"a": 1}
    with pytest.raises(RunError, match=r"writing .*missing/text failed"):
        write_text(tmp_path / "missing" / "text", "")


def test_a_folder_appears_at_the_end_of_the_block(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with pytest.raises(ZeroDivisionError), new_folder(output) as partial:
        (partial / "file").touch()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with new_folder(output) as partial:
        (partial / "file").touch()
        assert not output.exists()
    assert [path.name for path in output.iterdir()] == ["file"] and list(tmp_path.iterdir()) == [output]
    with pytest.raises(UsageError, match="already exists"), new_folder(output):
        pass


def test_one_process_writes_a_file_several_times_at_once(tmp_path: Path) -> None:
    target = tmp_path / "result"
    with new_file(target) as first, new_file(target) as second:
        first.write_text("1")
        second.write_text("2")
    assert target.read_text() == "1" and list(tmp_path.iterdir()) == [target]


def test_what_a_killed_process_left_is_removed_by_the_next_writer(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    command = [sys.executable, "-c", KILLED, str(file), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "begun\n"
            left = set(tmp_path.glob(".*.partial"))
            assert len(left) == 2 and all(f".{process.pid}-" in path.name for path in left)
            write_text(file, "while it runs")  # what it writes is still its own
            assert set(tmp_path.glob(".*.partial")) == left
        finally:
            process.send_signal(signal.SIGKILL)
    write_text(file, "whole")
    with new_folder(folder):
        pass
    assert set(tmp_path.iterdir()) == {file, folder}


def test_only_what_is_known_to_be_left_is_removed(tmp_path: Path) -> None:
    """Another file's, another host's, that of a process which runs, and names of other programs stay."""
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    host = socket.gethostname()
    stay = [
        f".other.{host}.{dead.pid}-0.partial",
        f".file.another-{host}.{dead.pid}-0.partial",
        f".file.{host}.{os.getppid()}-0.partial",
        f".file.{dead.pid}.partial",
        f".file.{host}.{dead.pid}-0.partial.txt",
    ]
    for name in [*stay, f".file.{host}.{dead.pid}-0.partial"]:
        (tmp_path / name).touch()
    write_text(tmp_path / "file", "")
    assert {path.name for path in tmp_path.iterdir()} == {*stay, "file"}


def test_a_partial_file_can_be_dropped_twice(tmp_path: Path) -> None:
    partial = PartialFile(tmp_path / "file")
    partial.path.touch()
    partial.drop()
    partial.drop()
    assert list(tmp_path.iterdir()) == []
