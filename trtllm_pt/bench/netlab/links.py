"""Ranks in network namespaces of one machine, joined by links of a delay and a rate: real sockets, a slow network.

Where the kernel has netem it delays; elsewhere a process does (wire.cpp) that owns a TUN device in each namespace.
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
_SUBNET, _DEVICE = "10.77.0", "link0"
_MOST_RANKS = 16
_MTU = 60000
_LATE_NANOSECONDS = 20_000  # of a timer, on cores that are busy: measured here
_QUEUE = 100_000  # packets of netem's, which drops what does not fit
_WIRE = Path(__file__).parent / "wire.cpp"


@dataclass(frozen=True, slots=True)
class Link:
    """One way, the same in both directions. rate: megabits per second of a sender; 0: no limit."""

    delay_us: float
    rate_mbit: float = 0.0


def check_here(ranks: int) -> None:
    """Raises UsageError for what this machine lacks."""
    if not 2 <= ranks <= _MOST_RANKS:
        raise UsageError(f"--ranks ({ranks}) must be between 2 and {_MOST_RANKS}")
    if os.geteuid() != 0:
        raise UsageError("network namespaces need root: start this as root")
    if shutil.which("ip") is None:
        raise UsageError("`ip` is not here: apt-get install iproute2")
    if not Path("/dev/net/tun").exists() and shutil.which("tc") is None:
        raise UsageError("neither /dev/net/tun nor `tc` is here: load the kernel's tun module, or install iproute2")
    find_mpirun(MPI_OF_EMBEDDED)


class Links:
    """A namespace per rank while it is entered. `kind`: netem or tun."""

    def __init__(self, ranks: int, link: Link) -> None:
        self.ranks, self.link = ranks, link
        self.kind = ""
        self._names = [f"{_PREFIX}{os.getpid()}-{rank}" for rank in range(ranks)]
        self._scratch = Path(tempfile.mkdtemp(prefix="trtllm_pt-links-"))
        self._wire: subprocess.Popen[str] | None = None

    def __enter__(self) -> Links:
        _remove_those_of_the_dead()
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
        if self._wire is not None:
            assert self._wire.stdin is not None
            self._wire.stdin.close()  # its sign to end
            self._wire.wait()
            self._wire = None
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True, check=False)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def in_rank_0(self, *command: str) -> list[str]:
        """A command in the first namespace."""
        return self.in_rank(0, *command)

    def in_rank(self, rank: int, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self._names[rank], *command]

    def mpirun(self, *command: str) -> Launch:
        """A Python command on all ranks, one in each namespace, which MPI is told to take for machines of their own."""
        settings = {
            "MPIR_CVAR_NOLOCAL": "1",
            "MPIR_CVAR_CH4_NETMOD": "ucx",
            "UCX_TLS": "tcp,self",
            "UCX_NET_DEVICES": _DEVICE,
        }
        launcher = ["-launcher", "ssh", "-launcher-exec", str(self._launcher)]
        hosts = ",".join(self.address(rank) for rank in range(self.ranks))
        given = [word for name, value in settings.items() for word in ("-genv", name, value)]
        options = [*launcher, "-hosts", hosts, "-ppn", "1", *given]
        made = launch(find_mpirun(MPI_OF_EMBEDDED), (self.ranks, [sys.executable, *command]), options=options)
        return made._replace(command=self.in_rank_0(*made.command))

    @staticmethod
    def address(rank: int) -> str:
        return f"{_SUBNET}.{rank + 1}"

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
            _run("ip", "link", "add", outer, "type", "veth", "peer", "name", _DEVICE, "netns", name)
            _run("ip", "link", "set", outer, "master", self._bridge, "up")
            self._address(rank)
            _run("tc", "-n", name, "qdisc", "add", "dev", _DEVICE, "root", *delay, *rate)

    def _connect_by_wire(self) -> None:
        per_byte = 8e3 / self.link.rate_mbit if self.link.rate_mbit else 0.0
        numbers = [round(self.link.delay_us * 1e3), per_byte, _LATE_NANOSECONDS]
        program = _compiled(self._scratch)
        self._wire = subprocess.Popen(
            [str(program), *map(str, numbers), _DEVICE, *self._names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # an interruption is for the owner, who then closes
        )
        if _pipe(self._wire.stdout).readline() != "up\n":
            raise RunError(f"the wire did not come up: {_pipe(self._wire.stderr).read().strip()}")
        for rank in range(self.ranks):
            _run("ip", "-n", self._names[rank], "link", "set", _DEVICE, "mtu", str(_MTU), "txqueuelen", "2000")
            self._address(rank)

    def _address(self, rank: int) -> None:
        name = self._names[rank]
        _run("ip", "-n", name, "addr", "add", f"{self.address(rank)}/24", "dev", _DEVICE)
        _run("ip", "-n", name, "link", "set", _DEVICE, "up")

    def _write_launcher(self) -> None:
        """What mpirun takes for ssh: `enter [options] ADDRESS COMMAND…` runs it in the namespace of that address."""
        namespaces = self._names[0].rsplit("-", 1)[0]
        self._launcher.write_text(
            "#!/bin/sh\n"
            'while [ "${1#-}" != "$1" ]; do shift; done\n'
            "rank=$((${1##*.} - 1)); shift\n"
            f'exec ip netns exec {namespaces}-$rank /bin/sh -c "$*"\n'
        )
        self._launcher.chmod(0o755)


def _has_netem(name: str) -> bool:
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


def _remove_those_of_the_dead() -> None:
    """Namespaces of an owner that was killed."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    for line in listed.splitlines():
        name = line.split()[0]
        if name.startswith(_PREFIX) and not Path(f"/proc/{name.removeprefix(_PREFIX).split('-')[0]}").exists():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said: Sequence[str] = done.stderr.strip().splitlines()
        raise RunError(f"`{' '.join(command)}` failed: {said[0] if said else f'exit status {done.returncode}'}")


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
