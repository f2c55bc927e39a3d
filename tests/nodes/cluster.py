"""Separate machines, as far as one machine has them: each has a network, a name, a /dev/shm and an sshd of its own."""

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

from trtllm_pt.bench.netlab.links import DEVICE, Link, Links

SSHD = "/usr/sbin/sshd"
# Each process that enters a node gets its name, hosts file and shared memory in namespaces of its own.
_ENTER = 'hostname "$1"; mount -t tmpfs tmpfs /dev/shm; mount --bind "$2" /etc/hosts; shift 2; exec "$@"'
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
    """A context manager that holds `nodes` machines named node0, node1 and so on, with a link between them."""

    def __init__(self, nodes: int, link: Link) -> None:
        self._links = Links(nodes, link)
        self.names = [f"node{number}" for number in range(nodes)]
        self.folder = Path(tempfile.mkdtemp(prefix="cluster-"))
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        self._write_files()
        self._links.__enter__()
        try:
            for node in range(len(self.names)):
                daemon = self.enter(node, SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config"))
                self._daemons.append(subprocess.Popen(daemon, stderr=(self.folder / f"sshd{node}.log").open("wb")))
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

    def enter(self, node: int, *command: str) -> list[str]:
        """The command that runs `command` on a node."""
        inside = ["unshare", "--uts", "--mount", "sh", "-c", _ENTER, "sh", self.names[node], str(self.folder / "hosts")]
        return self._links.in_rank(node, *inside, *command)

    def start(
        self, *command: str, environment: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Start a command on node0, whose `ssh` reaches the other nodes."""
        path = os.pathsep.join((str(self.folder / "bin"), os.environ["PATH"]))
        return subprocess.Popen(
            self.enter(0, *command),
            env={**os.environ, "PATH": path, "TRTLLM_PT_INTERFACE": DEVICE, **(environment or {})},
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
        return [int(pid) for pid in listed.stdout.split()]

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
        ssh = self.folder / "bin" / "ssh"
        ssh.parent.mkdir()
        ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {self.folder}/ssh_config "$@"\n')
        ssh.chmod(0o755)
