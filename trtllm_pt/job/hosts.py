"""The hosts on which mpirun starts ranks, and what must be true of them before it does."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from trtllm_pt._version import __version__
from trtllm_pt.errors import UsageError
from trtllm_pt.job.interface import INTERFACE, own_address
from trtllm_pt.job.process import last_line

HOSTS = "TRTLLM_PT_HOSTS"  # the option --hosts, for the processes that a command starts
_SSH = ("ssh", "-x", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5")
_ANSWER_SECONDS = 60.0  # Python may start from a slow shared disk
_MARK = "trtllm_pt has version "  # login scripts print lines, too, but none that begins so
_PROBE = f"import mpi4py, trtllm_pt; print({_MARK!r} + trtllm_pt.__version__)"


@dataclass(frozen=True, slots=True)
class Hosts:
    """How many ranks each host has room for, in the order in which mpirun fills them.

    interface: the network interface for the messages between the hosts; None leaves it to MPI.
    """

    slots: Mapping[str, int]
    interface: str | None = None

    @classmethod
    def from_environment(cls) -> Hosts | None:
        """Return the hosts that the options of the command name, or None for this machine alone."""
        text = os.environ.get(HOSTS)
        return cls(parse_hosts(text, HOSTS), os.environ.get(INTERFACE) or None) if text else None

    def options(self, mpirun: str) -> list[str]:
        """Return the options with which an mpirun, MPICH's or Open MPI's, starts ranks on these hosts over ssh."""
        hosts = ",".join(f"{host}:{slots}" for host, slots in self.slots.items())
        if "Open MPI" in _version_of(mpirun):
            chosen = ["btl_tcp_if_include", "oob_tcp_if_include"] if self.interface else []
            return ["--host", hosts] + [word for name in chosen for word in ("--mca", name, str(self.interface))]
        return ["-launcher", "ssh", "-hosts", hosts, *(["-iface", self.interface] if self.interface else [])]

    def check(self, ranks: int) -> None:
        """Raise UsageError, naming the host, unless `ranks` ranks can be started on these hosts."""
        first, *others = self._used(ranks)
        if not _is_this_machine(first):
            raise UsageError(
                f"--hosts ({first}): the first host must be this machine, {socket.gethostname()}, because rank 0 gets "
                "its requests through a socket in the file system"
            )
        if self.interface is not None:
            own_address()
        if (problem := _first_problem(others)) is not None:
            raise UsageError(problem)

    def problem(self) -> str | None:
        """Return what is wrong with one of the other hosts now, in one clause that names it, or None."""
        return _first_problem(list(self.slots)[1:])

    def _used(self, ranks: int) -> list[str]:
        """Return the hosts that get ranks. Raises UsageError for more ranks than slots."""
        left, used = ranks, []
        for host, slots in self.slots.items():
            if left > 0:
                used.append(host)
                left -= slots
        if left > 0:
            have = ", ".join(f"{host} has {slots}" for host, slots in self.slots.items())
            raise UsageError(f"--hosts: {ranks} ranks are needed, but there is room for {ranks - left}: {have}")
        return used


def parse_hosts(text: str, source: str = "--hosts") -> dict[str, int]:
    """Return the slots of each host in a list such as `a:4,b:4`. A host without a number has one slot.

    Raises UsageError, naming `source` and the part of the text, for anything else.
    """
    found: dict[str, int] = {}
    for part in text.split(","):
        host, _, slots = part.strip().rpartition(":") if ":" in part else (part.strip(), "", "1")
        if not host or host.startswith("-") or not host.isascii() or any(c in host for c in " \t\"'\\;:/@"):
            raise UsageError(f"{source} ({part.strip()!r}) must be HOST or HOST:SLOTS, such as node1:4")
        if not slots.isdecimal() or not int(slots):
            raise UsageError(f"{source} ({part.strip()!r}): the slots of {host} must be a number from 1")
        found[host] = found.get(host, 0) + int(slots)
    return found


def read_hostfile(path: Path) -> dict[str, int]:
    """Return the slots of each host in a file with one host per line: `a:4` as for MPICH, or `a slots=4` for Open MPI.

    Raises UsageError, naming the line, for anything else.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"--hostfile ({path}) cannot be read: {why}") from None
    found: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        host, *words = line.partition("#")[0].split() or [""]
        if not host:
            continue
        rest = "".join(words)
        slots = rest.partition("=")
        if rest and slots[0] != "slots":
            raise UsageError(f"{path}, line {number} ({line.strip()!r}) must be HOST, HOST:SLOTS or HOST slots=SLOTS")
        for name, count in parse_hosts(f"{host}:{slots[2]}" if rest else host, f"{path}, line {number}").items():
            found[name] = found.get(name, 0) + count
    if not found:
        raise UsageError(f"--hostfile ({path}) names no host")
    return found


def _is_this_machine(host: str) -> bool:
    """Return whether a name or an address belongs to this machine: only then can a socket be bound to it."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):  # the latter for a name that no host can have, such as a..b
        return False
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as one:
            try:
                one.bind(address)
            except OSError:
                continue
            return True
    return False


def _first_problem(hosts: Sequence[str]) -> str | None:
    with ThreadPoolExecutor(len(hosts) or 1) as pool:
        return next(filter(None, pool.map(_problem, hosts)), None)


def _problem(host: str) -> str | None:
    """Return why no rank of this version can be started on a host over ssh, in one line, or None if it can."""
    if shutil.which("ssh") is None:
        return f"{host} cannot be reached: `ssh` is not installed on this machine"
    python = [f"PYTHONPATH={os.environ['PYTHONPATH']}"] if os.environ.get("PYTHONPATH") else []
    command = shlex.join(["env", *python, sys.executable, "-c", _PROBE])
    try:
        done = subprocess.run(
            [*_SSH, host, command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ANSWER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{host} has not answered `ssh {host}` within {_ANSWER_SECONDS:.0f} s"
    said = last_line(done.stderr)
    if done.returncode == 255:  # of ssh itself
        return f"{host} cannot be reached: {said}; `ssh {host} true` must work without a password"
    if done.returncode:
        return f"{host} cannot run a rank: {said}; install trtllm_pt there as here, with Python at {sys.executable}"
    found = next((line.removeprefix(_MARK) for line in done.stdout.splitlines() if line.startswith(_MARK)), None)
    if found is None:
        return f"{host} cannot run a rank: over ssh it starts no Python, but prints {last_line(done.stdout)!r}"
    if found != __version__:
        return f"{host} has trtllm_pt {found}, but this machine has {__version__}: install the same version on both"
    return None


def _version_of(mpirun: str) -> str:
    return subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False).stdout
