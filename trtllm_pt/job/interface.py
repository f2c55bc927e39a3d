"""The network interface over which a job's machines talk: its address, and MPI's settings for it."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from trtllm_pt.errors import MachineError
from trtllm_pt.job.launchers import several_machines

INTERFACE = "TRTLLM_PT_INTERFACE"  # the option --interface, for the processes that a command starts
_SIOCGIFADDR = 0x8915
_SOMEWHERE = ("192.0.2.1", 9)  # an address for documentation, to which nothing is sent
_OF_MPI = ("UCX_NET_DEVICES", "FI_TCP_IFACE")  # of the libraries below MPICH; Open MPI may use UCX, too


def bind_mpi() -> None:
    """Let MPI listen on the interface that was asked for, or on loopback if all ranks are on this machine.

    MPI reads these settings when it starts. Users' own settings win.
    """
    name = os.environ.get(INTERFACE) if several_machines() else "lo"
    for variable in _OF_MPI if name else ():
        os.environ.setdefault(variable, str(name))


def own_address() -> str:
    """Return this machine's IPv4 address on the interface that was asked for, or else on that of the default route.

    Raises MachineError if there is none.
    """
    here = socket.gethostname()
    found = {name: _address_of(name) for _, name in socket.if_nameindex() if name != "lo"}
    if name := os.environ.get(INTERFACE):
        address = found.get(name)
        if address is None:
            others = ", ".join(other for other, its in found.items() if its) or "none"
            raise MachineError(
                f"--interface ({name}): {here} has no such interface with an IPv4 address, only {others}"
            )
        return address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_SOMEWHERE)
            return str(probe.getsockname()[0])
        except OSError:
            address = next(filter(None, found.values()), None)
    if address is None:
        raise MachineError(f"{here} has no network interface with an IPv4 address")
    return address


def _address_of(interface: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])
