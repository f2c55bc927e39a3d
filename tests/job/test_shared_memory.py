"""Jobs on a machine whose /dev/shm is missing, full or read-only, each in a mount namespace of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from trtllm_pt.errors import MPI_OF_EMBEDDED
from trtllm_pt.job.mpirun import find_mpirun
from trtllm_pt.job.python import code_command

CHECK = "from trtllm_pt.job.shared_memory import check_shared_memory; check_shared_memory(12_000_000)"
JOIN = "from trtllm_pt.job.world import World; World.join(2, 'MPI')"
TMPFS = "mount -t tmpfs -o size={} tmpfs /dev/shm"


def in_namespace(mount: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    script = f'{mount}; exec "$@"'
    return subprocess.run(
        ["unshare", "-m", "sh", "-ec", script, "sh", *command], capture_output=True, text=True, timeout=60
    )


def can_unshare() -> bool:
    return shutil.which("unshare") is not None and in_namespace(TMPFS.format("1m"), ["true"]).returncode == 0


pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not can_unshare(), reason="this user cannot make mount namespaces"
)
FAULTS = [
    (TMPFS.format("100k"), "/dev/shm has 0.1 MB free, but the ranks need"),
    (TMPFS.format("64m,ro"), "/dev/shm cannot be written to"),
]


@pytest.mark.parametrize(
    ("mount", "message"), [*FAULTS, ("mount -t tmpfs tmpfs /dev; mknod /dev/null c 1 3", "/dev/shm: No such file")]
)
def test_a_fault_is_one_line(mount: str, message: str) -> None:
    done = in_namespace(mount, [*code_command(CHECK)])
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]


def test_enough_room() -> None:
    assert in_namespace(TMPFS.format("13m"), [*code_command(CHECK)]).returncode == 0
    done = in_namespace(TMPFS.format("11m"), [*code_command(CHECK)])
    assert "has 11.5 MB free, but the ranks need 12 MB" in done.stderr


@pytest.mark.parametrize(("mount", "message"), FAULTS)
def test_ranks_of_a_users_own_mpirun(mount: str, message: str) -> None:
    done = in_namespace(mount, [find_mpirun(MPI_OF_EMBEDDED), "-n", "2", *code_command(JOIN)])
    assert done.returncode
    assert message in done.stderr
