"""Separate machines, as far as one machine has them: each has a network, a name, a disk, a /dev/shm and an sshd."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtllm_pt.bench.netlab.links import Link, Links

SSHD = "/usr/sbin/sshd"
# A node's sshd is started in namespaces of its own, which all other processes of the node share.
_BOOT = """
hostname "$1"
mount --bind "$2" /etc/hosts
for folder in /dev/shm "$3"; do mount -t tmpfs tmpfs "$folder"; done
shift 3
exec "$@"
"""
_RANK = b"trtllm_pt.runtime.worker"
# UCX, on which MPICH sends messages, takes processes of one IPC namespace for processes of one machine, and uses shared
# memory between them (findings/ucx_network_namespaces.sh).
_OWN = ["--uts", "--ipc", "--mount"]
_SSHD = """
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
MaxStartups 100
"""
_SSH = """
Host *
  IdentityFile {folder}/key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


def lacking() -> str | None:
    """Why this machine can have no cluster, or None."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    if shutil.which("ip") is None or not Path("/dev/net/tun").exists():
        return "needs iproute2 and /dev/net/tun"
    if not Path(SSHD).exists():
        return "needs sshd: apt-get install openssh-server"
    return None


class Cluster:
    """A context manager that holds `nodes` machines named node0, node1 and so on, with a link between them.

    disk: a folder that is each node's own, and empty. Other folders are those of this machine on all nodes.
    """

    def __init__(self, nodes: int, link: Link) -> None:
        self._links = Links(nodes, link)
        self.names = [f"node{number}" for number in range(nodes)]
        self.folder = Path(tempfile.mkdtemp(prefix="cluster-"))
        self.disk = self.folder / "disk"
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        self._write_files()
        self._links.__enter__()
        try:
            self._daemons = [self._boot(node) for node in range(len(self.names))]
            for name in self.names:
                self._wait_for_ssh(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in range(len(self.names)):
            self.kill(node)
        for daemon in self._daemons:
            daemon.wait()
        self._links.close()
        shutil.rmtree(self.folder)

    def _boot(self, node: int) -> subprocess.Popen[bytes]:
        given = [self.names[node], str(self.folder / "hosts"), str(self.disk)]
        inside = ["unshare", *_OWN, "sh", "-c", _BOOT, "sh", *given]
        daemon = self._links.in_rank(node, *inside, SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config"))
        with (self.folder / f"sshd{node}.log").open("wb") as log:
            return subprocess.Popen(daemon, stderr=log)

    def boot(self, node: int) -> None:
        """Start a node again that was killed."""
        self._daemons[node].wait()
        self._daemons[node] = self._boot(node)
        self._wait_for_ssh(self.names[node])

    def enter(self, node: int, *command: str) -> list[str]:
        """The command that runs `command` on a node."""
        return ["nsenter", f"--target={self._daemons[node].pid}", "--net", *_OWN, *command]

    def start(
        self, *command: str, environment: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Start a command on node0, whose `ssh` reaches the other nodes."""
        path = os.pathsep.join((str(self.folder / "bin"), os.environ["PATH"]))
        return subprocess.Popen(
            self.enter(0, *command),
            env={**os.environ, "PATH": path, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def run(
        self, *command: str, environment: Mapping[str, str] | None = None, seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on node0 to its end."""
        with self.start(*command, environment=environment) as process:
            try:
                out, said = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                self.kill(0, all_but=self._daemons[0].pid)
                out, said = process.communicate()
                said += f"\nnot finished after {seconds} s"
        return subprocess.CompletedProcess(command, process.returncode, out, said)

    def pids(self, node: int) -> list[int]:
        """All processes on a node."""
        command = ["ip", "netns", "pids", self._name(node)]
        listed = subprocess.run(command, capture_output=True, text=True, check=False)
        wire = self._links.wire_pid  # runs in a node's network, but belongs to none
        return [int(pid) for pid in listed.stdout.split() if int(pid) != wire]

    def ranks(self, node: int) -> list[int]:
        """The processes of ranks on a node, without the shells that started them."""
        commands = {pid: Path(f"/proc/{pid}/cmdline") for pid in self.pids(node)}
        return [pid for pid, path in commands.items() if path.exists() and _RANK in path.read_bytes().split(b"\0")]

    def programs(self, node: int) -> list[str]:
        """The command lines of all processes on a node but its sshd."""
        lines = []
        for pid in self.pids(node):
            path = Path(f"/proc/{pid}/cmdline")
            words = path.read_bytes().replace(b"\0", b" ").decode() if path.exists() else ""
            if words and "sshd" not in words:
                lines.append(words)
        return lines

    def kill(self, node: int, all_but: int | None = None) -> None:
        """End every process of a node at once, as when its power fails."""
        for pid in self.pids(node):
            if pid != all_but:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def cut(self, node: int) -> None:
        """Cut a node's link: packets are lost in both directions, and nobody is told."""
        self._route(node, "add")

    def mend(self, node: int) -> None:
        self._route(node, "del")

    def _route(self, node: int, verb: str) -> None:
        for other in range(len(self.names)):
            if other != node:
                for here, there in ((node, other), (other, node)):
                    route = ["ip", "route", verb, "blackhole", f"{Links.address(there)}/32"]
                    subprocess.run(self._links.in_rank(here, *route), check=True)

    def _name(self, node: int) -> str:
        return self._links.in_rank(node)[-1]

    def _wait_for_ssh(self, name: str) -> None:
        deadline = time.monotonic() + 20
        while (done := self.run("ssh", name, "hostname")).stdout != f"{name}\n":
            assert time.monotonic() < deadline, done.stderr
            time.sleep(0.1)

    def _write_files(self) -> None:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd runs what has no privileges
        for name in ("key", "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)], check=True)
        hosts = [f"{Links.address(number)} {name}" for number, name in enumerate(self.names)]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
        (self.folder / "sshd_config").write_text(_SSHD.format(folder=self.folder))
        (self.folder / "ssh_config").write_text(_SSH.format(folder=self.folder))
        self.disk.mkdir()
        ssh = self.folder / "bin" / "ssh"
        ssh.parent.mkdir()
        ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {self.folder}/ssh_config "$@"\n')
        ssh.chmod(0o755)
