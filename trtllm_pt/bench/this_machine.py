"""This machine as the planner describes one: rates of one rank while all ranks are at work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from trtllm_pt.bench.percentiles import median
from trtllm_pt.bench.report import machine
from trtllm_pt.planner.machine import Machine, machine_from_json

if TYPE_CHECKING:
    from mpi4py import MPI

_SAMPLES = 5
_READ_BYTES = 256 << 20  # more than caches hold
_TOKENS, _INPUTS, _OUTPUTS = 512, 2048, 2048
_SMALL_CALLS = 2000


class Weights:
    """The engine's own product of one token with as many weights as no cache holds: how fast a rank reads."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        source = torch.randn(1, _OUTPUTS, _INPUTS).to(torch.bfloat16)
        self._packed = [torch.ops.trtllm_pt.pack(source) for _ in range(_READ_BYTES // source.nbytes)]
        self._token = torch.randn(1, 1, _INPUTS).to(torch.bfloat16)

    def bandwidths(self, samples: int) -> tuple[float, float]:
        """Bytes per second of the slowest rank: while all read, and while the others wait as in an all-reduce."""
        together = _READ_BYTES / _seconds(self._comm, self._read, samples)
        return together, max(together, _READ_BYTES / _seconds_alone(self._comm, self._read, samples))

    def _read(self) -> None:
        for weight in self._packed:
            torch.ops.trtllm_pt.linear(self._token, weight, None, _OUTPUTS)


def measure_machine(
    comm: MPI.Intracomm, all_reduce: Sequence[Mapping[str, Any]], weights: Weights | None = None
) -> Machine:
    """On all ranks at once, with their threads as they are; the ops library must be loaded.

    Memory bandwidth: see Weights. Matrix rate: the same product of 512 tokens. Launch overhead: a norm of 16 numbers,
    less what a call from Python costs.
    """
    with torch.no_grad():
        together, alone = (weights or Weights(comm)).bandwidths(_SAMPLES)
        flops = 2.0 * _TOKENS * _INPUTS * _OUTPUTS
        rates = {
            name: flops / _seconds(comm, _product(dtype))
            for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32))
        }
        launch = max(0.0, _seconds(comm, _norms) - _seconds(comm, _nothings)) / _SMALL_CALLS
    facts = machine()
    how = f"measured with {comm.size} ranks of {torch.get_num_threads()} threads at work"
    return machine_from_json(
        {
            "name": facts["name"],
            "devices": comm.size,
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / comm.size,
            "memory_bandwidth": together,
            "memory_bandwidth_alone": alone,
            "matrix_rate": rates,
            "launch_overhead": launch,
            "all_reduce": [{**row, "points": [list(point) for point in row["points"]]} for row in all_reduce],
            "sources": {
                "memory_bytes": "the machine's, shared out",
                "memory_bandwidth": f"{how}: the engine's own product of a token with {_READ_BYTES >> 20} MiB",
                "memory_bandwidth_alone": "the same, of one rank while the others wait",
                "matrix_rate": f"{how}: {_TOKENS} x {_INPUTS} x {_OUTPUTS}, the engine's own product",
                "launch_overhead": f"{how}: a norm of 16 numbers, without the call from Python",
            },
        },
        "this machine",
    )


def _product(dtype: torch.dtype) -> Callable[[], object]:
    weight = torch.ops.trtllm_pt.pack(torch.randn(1, _OUTPUTS, _INPUTS).to(dtype))
    x = torch.randn(1, _TOKENS, _INPUTS).to(dtype)
    return lambda: torch.ops.trtllm_pt.linear(x, weight, None, _OUTPUTS)


def _norms() -> None:
    one, weight = torch.ones(1, 1, 16), torch.ones(1, 16)
    for _ in range(_SMALL_CALLS):
        torch.ops.trtllm_pt.rms_norm(one, weight, 1e-5)


def _nothings() -> None:
    for _ in range(_SMALL_CALLS):
        torch.ops.trtllm_pt.reduces_seen()


def _seconds(comm: MPI.Intracomm, work: Callable[[], object], samples: int = _SAMPLES) -> float:
    """The median over samples of the slowest rank's time; the first call does not count."""
    taken = []
    work()
    for _ in range(samples):
        comm.Barrier()
        taken.append(max(comm.allgather(_timed(work))))
    return median(taken)


def _seconds_alone(comm: MPI.Intracomm, work: Callable[[], object], samples: int) -> float:
    """The same, of one rank after the other."""
    taken = []
    for _ in range(samples):
        for rank in range(comm.size):
            comm.Barrier()
            taken.append(max(comm.allgather(_timed(work) if comm.rank == rank else 0.0)))
    return median(taken)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
