"""Starts the heartbeat between the machines of a job: a datagram socket between each two of their first ranks."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import torch

from trtllm_pt.job.interface import own_address
from trtllm_pt.job.world import World

_sockets: list[socket.socket] = []  # open as long as this process runs


def watch_machines(world: World, nodes: Sequence[Sequence[int]], seconds: float) -> None:
    """Make all ranks abort when a machine has not been heard of for this long. Every rank calls this.

    nodes: the ranks of each machine. Raises UsageError if a machine has no address on the network.
    """
    leaders = [ranks[0] for ranks in nodes]
    others = [leader for leader in leaders if leader != world.rank] if world.rank in leaders else []
    open_ones = {leader: _open() for leader in others}
    addresses = world.gather_all((socket.gethostname(), {peer: one.getsockname() for peer, one in open_ones.items()}))
    names = []
    for leader, one in open_ones.items():
        host, its = addresses[leader]
        one.connect(its[world.rank])
        ranks = nodes[leaders.index(leader)]
        names.append(f"{host} (rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))})")
    _sockets.extend(open_ones.values())
    if open_ones:
        torch.ops.trtllm_pt.watch_machines(names, [one.fileno() for one in open_ones.values()], seconds)


def _open() -> socket.socket:
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind((own_address(), 0))
    return one
