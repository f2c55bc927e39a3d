"""The all-reduces that this machine has, each as a function that can be timed."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from trtllm_pt.backends.backend import SharedRanks
from trtllm_pt.errors import RunError, UsageError

if TYPE_CHECKING:
    from mpi4py import MPI

NAMES = ("mpi", "mpi4py", "gathered", "nccl", "gloo")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A collective that is ready for messages of one size."""

    call: Callable[[], object]
    finish: Callable[[], object]  # waits until all calls so far have completed
    result: Callable[[], float]  # returns the first element of the first call's result


class Collective:
    """A sum over all ranks of a communicator. `dtype` is the type of the elements that are sent."""

    name: str
    dtype: str

    def prepare(self, size: int) -> Prepared:
        """Allocate buffers for messages of `size` bytes. Every rank contributes ones."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what the collective holds. Most hold nothing."""


class EngineAllReduce(Collective):
    """The all-reduce of a backend. Its native code must be loaded."""

    name, dtype = "mpi", "float32"

    def __init__(self, comm: MPI.Intracomm, shared: SharedRanks) -> None:
        self._comm, self._shared = comm, shared

    def prepare(self, size: int) -> Prepared:
        call, result = self._shared.all_reduce(self._comm, max(1, size // 4))
        return Prepared(call, lambda: None, result)


class PlainMpi(Collective):
    """MPI_Allreduce. The MPI library chooses the order of summation."""

    name, dtype = "mpi4py", "float32"

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm

    def prepare(self, size: int) -> Prepared:
        ones = np.ones(max(1, size // 4), np.float32)
        out = np.empty_like(ones)
        return Prepared(lambda: self._comm.Allreduce(ones, out), lambda: None, lambda: float(out[0]))


class Gathered(Collective):
    """An all-gather between all ranks, each of which adds the parts along the tree of the engine's all-reduce.

    That is the engine's own method between machines with one rank each. Where machines have several ranks, it shows
    what is saved by adding on each machine first.
    """

    name, dtype = "gathered", "float32"

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm

    def prepare(self, size: int) -> Prepared:
        ones = np.ones(max(1, size // 4), np.float32)
        parts = np.empty((self._comm.size, ones.size), np.float32)

        def call() -> None:
            self._comm.Allgather(ones, parts)
            width = 1
            while width < len(parts):
                for first in range(0, len(parts) - width, 2 * width):
                    parts[first] += parts[first + width]
                width *= 2

        return Prepared(call, lambda: None, lambda: float(parts[0, 0]))


class Torch(Collective):
    """The all-reduce of torch.distributed, through NCCL with a GPU per rank, or through Gloo on CPUs."""

    def __init__(self, comm: MPI.Intracomm, backend: str, dtype: str) -> None:
        import torch.distributed as dist

        self.name, self.dtype, self._dist = backend, dtype, dist
        self._device = torch.device("cuda", _place_on_host(comm)[0]) if backend == "nccl" else torch.device("cpu")
        address = comm.bcast(_free_address() if comm.rank == 0 else None)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        dist.init_process_group(backend, init_method=f"tcp://{address}", rank=comm.rank, world_size=comm.size)

    def prepare(self, size: int) -> Prepared:
        dtype = DTYPES[self.dtype]
        # The sums are in place and grow with every call up to infinity, which does not take longer to add.
        buffer = torch.ones(max(1, size // dtype.itemsize), dtype=dtype, device=self._device)
        finish = torch.cuda.synchronize if self._device.type == "cuda" else lambda: None
        return Prepared(lambda: self._dist.all_reduce(buffer), finish, lambda: float(buffer[0]))

    def close(self) -> None:
        self._dist.destroy_process_group()


def open_collectives(
    comm: MPI.Intracomm, shared: SharedRanks, names: tuple[str, ...] | None, dtype: str
) -> list[Collective]:
    """Open the collectives with these names.

    Without names, open all that the machine has except those that no engine uses, `gathered` and Gloo. `shared` belongs
    to a backend whose native code is loaded. Raises UsageError if the machine lacks a collective.
    """
    wanted = names or tuple(name for name in ("mpi", "mpi4py", "nccl") if missing(comm, name) is None)
    for name in wanted:
        if (why := missing(comm, name)) is not None:
            raise UsageError(f"--collectives ({name!r}): {why}")
    makers: dict[str, Callable[[], Collective]] = {
        "mpi": lambda: EngineAllReduce(comm, shared),
        "mpi4py": lambda: PlainMpi(comm),
        "gathered": lambda: Gathered(comm),
        "nccl": lambda: Torch(comm, "nccl", dtype),
        "gloo": lambda: Torch(comm, "gloo", dtype),
    }
    return [makers[name]() for name in wanted]


def missing(comm: MPI.Intracomm, name: str) -> str | None:
    """Say what the machine lacks for a collective, or return None. All ranks get the same answer."""
    if name == "nccl":
        needed = _place_on_host(comm)[1]
        if torch.cuda.device_count() < needed:
            return f"NCCL needs a GPU per rank: {needed} on this machine, which has {torch.cuda.device_count()}"
        if not torch.distributed.is_nccl_available():
            return "this torch was built without NCCL"
    if name == "gloo" and not torch.distributed.is_gloo_available():
        return "this torch was built without Gloo"
    return None


def check_sum(collective: Collective, comm: MPI.Intracomm, size: int) -> Prepared:
    """Prepare a collective and call it once. Raises RunError if the sum is wrong."""
    prepared = collective.prepare(size)
    prepared.call()
    prepared.finish()
    if prepared.result() != comm.size:
        raise RunError(f"{collective.name}: the sum of ones over {comm.size} ranks was {prepared.result():g}")
    return prepared


def _place_on_host(comm: MPI.Intracomm) -> tuple[int, int]:
    """Return this rank's number among the ranks on its machine, and the number of these ranks."""
    names = comm.allgather(socket.gethostname())
    own = [rank for rank, name in enumerate(names) if name == names[comm.rank]]
    return own.index(comm.rank), len(own)


def _free_address() -> str:
    """Return host:port with a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"{os.environ.get('MASTER_ADDR', socket.gethostname())}:{probe.getsockname()[1]}"
