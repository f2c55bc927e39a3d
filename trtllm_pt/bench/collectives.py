"""Every all-reduce that this machine has, as a function to call again and again."""

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

NAMES = ("mpi", "mpi4py", "nccl", "gloo")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Prepared:
    """One collective for messages of one size."""

    call: Callable[[], object]
    finish: Callable[[], object]  # waits until the calls so far are done
    result: Callable[[], float]  # the first number of the first call's result


class Collective:
    """An all-reduce among all ranks of `comm`: the sum. `dtype`: of the elements on the wire."""

    name: str
    dtype: str

    def prepare(self, size: int) -> Prepared:
        """For messages of `size` bytes; every rank contributes ones."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to release, unless said otherwise."""


class EngineAllReduce(Collective):
    """The all-reduce of a backend whose native code is loaded."""

    name, dtype = "mpi", "float32"

    def __init__(self, comm: MPI.Intracomm, shared: SharedRanks) -> None:
        self._comm, self._shared = comm, shared

    def prepare(self, size: int) -> Prepared:
        call, result = self._shared.all_reduce(self._comm, max(1, size // 4))
        return Prepared(call, lambda: None, result)


class PlainMpi(Collective):
    """MPI_Allreduce, whose order of summation is the library's choice."""

    name, dtype = "mpi4py", "float32"

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm

    def prepare(self, size: int) -> Prepared:
        ones = np.ones(max(1, size // 4), np.float32)
        out = np.empty_like(ones)
        return Prepared(lambda: self._comm.Allreduce(ones, out), lambda: None, lambda: float(out[0]))


class Torch(Collective):
    """torch.distributed: NCCL on a GPU per rank, Gloo on processors."""

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
        # Reduced in place, so the sums grow with every call, up to infinity, which takes no longer to add.
        buffer = torch.ones(max(1, size // dtype.itemsize), dtype=dtype, device=self._device)
        finish = torch.cuda.synchronize if self._device.type == "cuda" else lambda: None
        return Prepared(lambda: self._dist.all_reduce(buffer), finish, lambda: float(buffer[0]))

    def close(self) -> None:
        self._dist.destroy_process_group()


def open_collectives(
    comm: MPI.Intracomm, shared: SharedRanks, names: tuple[str, ...] | None, dtype: str
) -> list[Collective]:
    """Those asked for; None: all that fit the machine, without Gloo, which no engine uses.

    shared: of a backend whose native code is loaded. Raises UsageError for one that is not there.
    """
    wanted = names or tuple(name for name in ("mpi", "mpi4py", "nccl") if missing(comm, name) is None)
    for name in wanted:
        if (why := missing(comm, name)) is not None:
            raise UsageError(f"--collectives ({name!r}): {why}")
    makers: dict[str, Callable[[], Collective]] = {
        "mpi": lambda: EngineAllReduce(comm, shared),
        "mpi4py": lambda: PlainMpi(comm),
        "nccl": lambda: Torch(comm, "nccl", dtype),
        "gloo": lambda: Torch(comm, "gloo", dtype),
    }
    return [makers[name]() for name in wanted]


def missing(comm: MPI.Intracomm, name: str) -> str | None:
    """What this machine lacks for a collective; None: nothing. All ranks get the same answer."""
    if name == "nccl":
        needed = _place_on_host(comm)[1]
        if torch.cuda.device_count() < needed:
            return f"NCCL needs a GPU per rank: {needed} here, there are {torch.cuda.device_count()}"
        if not torch.distributed.is_nccl_available():
            return "this torch was built without NCCL"
    if name == "gloo" and not torch.distributed.is_gloo_available():
        return "this torch was built without Gloo"
    return None


def check_sum(collective: Collective, comm: MPI.Intracomm, size: int) -> Prepared:
    """Prepared, called once, and right. Raises RunError where the sum is wrong."""
    prepared = collective.prepare(size)
    prepared.call()
    prepared.finish()
    if prepared.result() != comm.size:
        raise RunError(f"{collective.name}: {comm.size} ranks of ones were summed to {prepared.result():g}")
    return prepared


def _place_on_host(comm: MPI.Intracomm) -> tuple[int, int]:
    """This rank's number among those on its machine, and how many they are."""
    names = comm.allgather(socket.gethostname())
    own = [rank for rank, name in enumerate(names) if name == names[comm.rank]]
    return own.index(comm.rank), len(own)


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"{os.environ.get('MASTER_ADDR', socket.gethostname())}:{probe.getsockname()[1]}"
