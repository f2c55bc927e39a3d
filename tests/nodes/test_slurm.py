"""The batch file of deploy/slurm under a real Slurm of one node, which the test starts from Debian's packages."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.nodes.test_nodes import engine

ROOT = Path(__file__).parents[2]
PACKAGES = "apt-get install slurmctld slurmd slurm-client munge"
HERE = os.geteuid() == 0 and all(shutil.which(name, path="/usr/sbin:/usr/bin") for name in ("slurmctld", "slurmd"))
pytestmark = [pytest.mark.nodes, pytest.mark.skipif(not HERE, reason=f"needs root and Slurm: {PACKAGES}")]
CONFIG = """
ClusterName=test
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort=26827
SlurmdPort=26828
ProctrackType=proctrack/pgid
TaskPlugin=task/none
ReturnToService=2
NodeName={host} CPUs=2 RealMemory=1000
PartitionName=all Nodes={host} Default=YES State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """The environment of the commands of a running Slurm, with our command on PATH."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=socket.gethostname(), folder=folder))
    command = folder / "bin" / "trtllm-pt"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m trtllm_pt "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join((str(command.parent), "/usr/sbin", os.environ["PATH"]))
    environment = {**os.environ, "SLURM_CONF": str(config), "PATH": path, "PYTHONPATH": str(ROOT)}
    files = [f"--{name}={folder}/munge.{name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
    daemons = [
        ["munged", "--foreground", "--force", f"--key-file={key}", *files],
        ["slurmctld", "-D", "-f", str(config)],
        ["slurmd", "-D", "-f", str(config)],
    ]
    with (folder / "log").open("wb") as log:
        running = [subprocess.Popen(daemon, env=environment, stdout=log, stderr=log) for daemon in daemons]
    try:
        deadline = time.monotonic() + 60
        while b"idle" not in subprocess.run(["sinfo"], env=environment, capture_output=True, check=False).stdout:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.5)
        yield environment
    finally:
        for daemon in reversed(running):
            daemon.terminate()
            daemon.wait()


def test_the_batch_file(slurm: Mapping[str, str], tmp_path: Path) -> None:
    built, output = engine(tmp_path, "pt-d2", 2), tmp_path / "output"
    run = ["trtllm-pt", "run", str(built), "5 6 7 8"]
    one = subprocess.run(run, env=slurm, capture_output=True, text=True, check=True).stdout
    options = ["--wait", "--nodes=1", "--ntasks-per-node=2", f"--output={output}"]
    file = str(ROOT / "deploy" / "slurm" / "run.sbatch")
    subprocess.run(["sbatch", *options, file, *run[2:]], env=slurm, check=True, timeout=120)
    assert output.read_text().splitlines()[0] == one.splitlines()[0] != ""


def test_srun_without_pmi_is_one_clear_error(slurm: Mapping[str, str], tmp_path: Path) -> None:
    built = engine(tmp_path, "pt-d2", 2)
    command = ["srun", "-n", "2", "--mpi=none", "trtllm-pt", "run", str(built), "5"]
    done = subprocess.run(command, env=slurm, capture_output=True, text=True, check=False, timeout=120)
    assert "Error: srun started 2 ranks, but mpi4py here uses MPICH" in done.stderr and "Traceback" not in done.stderr
