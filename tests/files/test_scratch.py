"""Temporary folders, and what a process that is killed leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trtllm_pt.files.scratch import Scratch

OWNER = """
import sys, time
from trtllm_pt.files.scratch import Scratch
scratch = Scratch("kind-")
scratch.remove_later([sys.argv[1]])
print(scratch.path, flush=True)
time.sleep(60)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which this process and its children make temporary folders."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


def test_removal(temporary: Path, tmp_path: Path) -> None:
    scratch = Scratch("serve-")
    for name in ("a-1", "a-2", "b"):
        (tmp_path / name).touch()
    (scratch.path / "file").touch()
    scratch.remove_later([f"{tmp_path}/a-*", f"{tmp_path}/missing"])
    assert scratch.path.parent == temporary and scratch.path.name.startswith("trtllm_pt-serve-")
    assert scratch.path.stat().st_mode & 0o777 == 0o700
    scratch.remove()
    assert not scratch.path.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "temporary"]


def test_the_next_one_removes_what_the_dead_left_and_nothing_else(temporary: Path, tmp_path: Path) -> None:
    for name in ("of-the-dead", "of-the-living"):
        (tmp_path / name).touch()
    foreign = temporary / "trtllm_pt-without-a-lock"
    foreign.mkdir()
    command = [sys.executable, "-c", OWNER]
    with (
        subprocess.Popen([*command, tmp_path / "of-the-dead"], stdout=subprocess.PIPE, text=True) as dead,
        subprocess.Popen([*command, tmp_path / "of-the-living"], stdout=subprocess.PIPE, text=True) as living,
    ):
        assert dead.stdout is not None and living.stdout is not None
        of_dead, of_living = Path(dead.stdout.readline().strip()), Path(living.stdout.readline().strip())
        dead.kill()
        dead.wait()
        assert of_dead.exists() and of_living.exists()
        Scratch().remove()
        assert not of_dead.exists() and not (tmp_path / "of-the-dead").exists()
        assert of_living.exists() and (tmp_path / "of-the-living").exists() and foreign.exists()
        living.kill()


def of_the_dead(victim: Path) -> Path:
    """A folder as a killed owner leaves it, which names `victim` for removal."""
    scratch = Scratch()
    scratch.remove_later([str(victim)])
    scratch._lock.close()
    return scratch.path


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    (tmp_path / "victim").touch()
    return tmp_path / "victim"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_folders_of_other_users_are_not_believed(temporary: Path, victim: Path) -> None:
    """Even if all files in them belong to this user, such as a lock that is a link."""
    folder = of_the_dead(victim)
    os.chown(folder, 12345, 12345)
    Scratch().remove()
    assert folder.exists() and victim.exists()


def test_folders_that_others_can_write_to_are_not_believed(temporary: Path, victim: Path) -> None:
    folder = of_the_dead(victim)
    folder.chmod(0o777)
    Scratch().remove()
    assert folder.exists() and victim.exists()


def test_links_to_folders_are_not_followed(temporary: Path, tmp_path: Path, victim: Path) -> None:
    folder = of_the_dead(victim).rename(tmp_path / "elsewhere")
    (temporary / "trtllm_pt-link").symlink_to(folder)
    Scratch().remove()
    assert folder.exists() and victim.exists()
