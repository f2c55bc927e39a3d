"""Put ranks into network namespaces of one machine, joined by links with a delay and a rate.

The ranks use real sockets over a slow network. If the kernel has netem, it delays the packets. Otherwise the program
in wire.cpp does, which passes packets between a TUN device in each namespace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from trtllm_pt.errors import MPI_OF_EMBEDDED, RunError, UsageError
from trtllm_pt.files.compiler import compile_cpp
from trtllm_pt.job.mpirun import Launch, find_mpirun, launch

_PREFIX = "trtllm-pt-"
_SUBNET, DEVICE = "10.77.0", "link0"
_MOST_RANKS = 16
_MTU = 60000
_LATE_NANOSECONDS = 20_000  # how late a timer fires on busy cores, as measured on one machine
_QUEUE = 100_000  # packets that netem holds; it drops those that do not fit
_WIRE = Path(__file__).parent / "wire.cpp"


@dataclass(frozen=True, slots=True)
class Link:
    """A link whose two directions are alike.

    delay_us: microseconds one way.
    rate_mbit: megabits per second that a rank can send, or 0 for no limit.
    """

    delay_us: float
    rate_mbit: float = 0.0


def check_here(ranks: int) -> None:
    """Raise UsageError if the number of ranks is not supported, or if the machine lacks namespaces or MPI."""
    check_namespaces(ranks)
    find_mpirun(MPI_OF_EMBEDDED)


def check_namespaces(ranks: int) -> None:
    """Raise UsageError if the number of ranks is not supported, or if the machine lacks what namespaces need."""
    if not 2 <= ranks <= _MOST_RANKS:
        raise UsageError(f"--ranks ({ranks}) must be between 2 and {_MOST_RANKS}")
    if os.geteuid() != 0:
        raise UsageError("netlab needs root for its network namespaces: start it as root")
    if shutil.which("ip") is None:
        raise UsageError("netlab needs `ip`, which is not installed: apt-get install iproute2")
    if not Path("/dev/net/tun").exists() and shutil.which("tc") is None:
        raise UsageError("netlab needs /dev/net/tun or `tc`: load the kernel's tun module, or install iproute2")


class Links:
    """A context manager that holds a network namespace per rank. `kind` is `netem` or `tun`.

    Raises RunError if the links cannot be set up.
    """

    def __init__(self, ranks: int, link: Link) -> None:
        self.ranks, self.link = ranks, link
        self.kind = ""
        self._names = [f"{_PREFIX}{os.getpid()}-{rank}" for rank in range(ranks)]
        self._scratch = Path(tempfile.mkdtemp(prefix="trtllm_pt-links-"))
        self._wire: subprocess.Popen[str] | None = None

    def __enter__(self) -> Links:
        _remove_abandoned_namespaces()
        try:
            for name in self._names:
                _run("ip", "netns", "add", name)
                _run("ip", "-n", name, "link", "set", "lo", "up")
            if _has_netem(self._names[0]):
                self.kind = "netem"
                self._connect_by_netem()
            else:
                self.kind = "tun"
                self._connect_by_wire()
            self._write_launcher()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove all namespaces and devices."""
        if self._wire is not None:
            assert self._wire.stdin is not None
            self._wire.stdin.close()  # it exits at the end of its input
            self._wire.wait()
            self._wire = None
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True, check=False)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def in_rank_0(self, *command: str) -> list[str]:
        """Return the command that runs `command` in the first rank's namespace."""
        return self.in_rank(0, *command)

    def in_rank(self, rank: int, *command: str) -> list[str]:
        """Return the command that runs `command` in a rank's namespace."""
        return ["ip", "netns", "exec", self._names[rank], *command]

    def mpirun(self, *command: str) -> Launch:
        """Return an mpirun of a Python command, with a rank in each namespace. MPI treats them as separate machines."""
        settings = {
            "MPIR_CVAR_NOLOCAL": "1",
            "MPIR_CVAR_CH4_NETMOD": "ucx",
            "UCX_TLS": "tcp,self",
            "UCX_NET_DEVICES": DEVICE,
        }
        launcher = ["-launcher", "ssh", "-launcher-exec", str(self._launcher)]
        hosts = ",".join(self.address(rank) for rank in range(self.ranks))
        given = [word for name, value in settings.items() for word in ("-genv", name, value)]
        options = [*launcher, "-hosts", hosts, "-ppn", "1", *given]
        made = launch(find_mpirun(MPI_OF_EMBEDDED), (self.ranks, [sys.executable, *command]), options=options)
        return made._replace(command=self.in_rank_0(*made.command))

    @staticmethod
    def address(rank: int) -> str:
        """Return the IP address of a rank."""
        return f"{_SUBNET}.{rank + 1}"

    @property
    def wire_pid(self) -> int | None:
        """The process that passes packets, which runs in one of the namespaces, or None with netem."""
        return None if self._wire is None else self._wire.pid

    @property
    def _bridge(self) -> str:
        return f"tpt{os.getpid()}"  # a device's name has at most 15 characters

    @property
    def _launcher(self) -> Path:
        return self._scratch / "enter"

    def _connect_by_netem(self) -> None:
        _run("ip", "link", "add", self._bridge, "type", "bridge")
        _run("ip", "link", "set", self._bridge, "up")
        delay = ["netem", "delay", f"{self.link.delay_us:g}us", "limit", str(_QUEUE)]
        rate = ["rate", f"{self.link.rate_mbit:g}mbit"] if self.link.rate_mbit else []
        for rank, name in enumerate(self._names):
            outer = f"{self._bridge}v{rank}"[-15:]
            _run("ip", "link", "add", outer, "type", "veth", "peer", "name", DEVICE, "netns", name)
            _run("ip", "link", "set", outer, "master", self._bridge, "up")
            self._address(rank)
            _run("tc", "-n", name, "qdisc", "add", "dev", DEVICE, "root", *delay, *rate)

    def _connect_by_wire(self) -> None:
        per_byte = 8e3 / self.link.rate_mbit if self.link.rate_mbit else 0.0
        numbers = [round(self.link.delay_us * 1e3), per_byte, _LATE_NANOSECONDS]
        program = _compiled(self._scratch)
        self._wire = subprocess.Popen(
            [str(program), *map(str, numbers), DEVICE, *self._names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C goes to this process alone, which then closes the links
        )
        if _pipe(self._wire.stdout).readline() != "up\n":
            raise RunError(f"the program that passes packets did not start: {_pipe(self._wire.stderr).read().strip()}")
        for rank in range(self.ranks):
            _run("ip", "-n", self._names[rank], "link", "set", DEVICE, "mtu", str(_MTU), "txqueuelen", "2000")
            self._address(rank)

    def _address(self, rank: int) -> None:
        name = self._names[rank]
        _run("ip", "-n", name, "addr", "add", f"{self.address(rank)}/24", "dev", DEVICE)
        _run("ip", "-n", name, "link", "set", DEVICE, "up")

    def _write_launcher(self) -> None:
        """Write the script that mpirun uses as ssh: `enter [options] ADDRESS COMMAND…` runs COMMAND in a namespace."""
        namespaces = self._names[0].rsplit("-", 1)[0]
        self._launcher.write_text(
            "#!/bin/sh\n"
            'while [ "${1#-}" != "$1" ]; do shift; done\n'
            "rank=$((${1##*.} - 1)); shift\n"
            f'exec ip netns exec {namespaces}-$rank /bin/sh -c "$*"\n'
        )
        self._launcher.chmod(0o755)


def _has_netem(name: str) -> bool:
    """Try netem on the loopback device of a namespace."""
    if shutil.which("tc") is None:
        return False
    trial = ["tc", "-n", name, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    if subprocess.run(trial, capture_output=True, check=False).returncode:
        return False
    _run("tc", "-n", name, "qdisc", "del", "dev", "lo", "root")
    return True


def _compiled(folder: Path) -> Path:
    program = folder / "wire"
    compile_cpp(["-O2", "-std=c++20", "-o", str(program), str(_WIRE)])
    return program


def _remove_abandoned_namespaces() -> None:
    """Remove the namespaces that a killed process left behind."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    for line in listed.splitlines():
        name = line.split()[0]
        if name.startswith(_PREFIX) and not Path(f"/proc/{name.removeprefix(_PREFIX).split('-')[0]}").exists():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _run(*command: str) -> None:
    """Run a command. Raises RunError with the first line of its error output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said: Sequence[str] = done.stderr.strip().splitlines()
        raise RunError(f"`{' '.join(command)}` failed: {said[0] if said else f'exit status {done.returncode}'}")


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
