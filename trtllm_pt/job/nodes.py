"""Compares the machines of a job: what must be the same on all of them, and which one differs."""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from trtllm_pt.errors import MachineError
from trtllm_pt.job.world import World

_WHOLE_BYTES = 1 << 26  # files up to this size are read as a whole
_SAMPLES, _SAMPLE_BYTES = 256, 1 << 16  # of larger files, which take long to read, this many places are compared
_OF_ONE_RANK = re.compile(r"rank\d+\.\w+")  # files that only the machine of one rank needs
_MISSING = "nothing"


def check_same(world: World, nodes: Sequence[Sequence[int]], facts: Mapping[str, str]) -> None:
    """Raise MachineError on every rank if a node's facts differ from those of rank 0's node; it names the node.

    nodes: the ranks of each node. facts: values of this node by what they are; those of a node's first rank count. A
    fact whose name is the path of one rank's file may be missing.
    """
    found = world.gather_all((socket.gethostname(), dict(facts)))
    (first, wanted), *others = (found[ranks[0]] for ranks in nodes)
    for host, its in others:
        for name in {**wanted, **its}:
            here, there = wanted.get(name, _MISSING), its.get(name, _MISSING)
            optional = _OF_ONE_RANK.fullmatch(Path(name).name) and _MISSING in (here, there)
            if here != there and not optional:
                raise MachineError(
                    f"{host} has {there} for {name}, but {first} has {here}: all machines of a job need the same"
                )


def ranks_beside(rank: int, nodes: Sequence[Sequence[int]]) -> Sequence[int]:
    """Return the ranks of the node of `rank`, which is one of them. nodes: the ranks of each node."""
    return next(ranks for ranks in nodes if rank in ranks)


def file_digests(folder: Path) -> dict[str, str]:
    """Return a digest of each file of an engine directory. Of large files it covers the size and samples."""
    return {str(path): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _digest(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=8)
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            digest.update(file.read())
        else:
            for sample in range(_SAMPLES):
                file.seek(sample * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return f"a file of {size} bytes ({digest.hexdigest()})"
