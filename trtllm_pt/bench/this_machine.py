"""Measure this machine as the planner describes one: the rates of one rank while all ranks work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from trtllm_pt.bench.facts import machine_facts
from trtllm_pt.bench.results import median
from trtllm_pt.planner.machine import Machine, machine_from_json

if TYPE_CHECKING:
    from mpi4py import MPI

_SAMPLES = 5
_READ_BYTES = 256 << 20  # more than the caches hold
_TOKENS, _INPUTS, _OUTPUTS = 512, 2048, 2048
_SMALL_CALLS = 2000


class Weights:
    """The engine's product of one token with more weights than caches hold. It shows how fast a rank reads memory."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        source = torch.randn(1, _OUTPUTS, _INPUTS).to(torch.bfloat16)
        self._packed = [torch.ops.trtllm_pt.pack(source) for _ in range(_READ_BYTES // source.nbytes)]
        self._token = torch.randn(1, 1, _INPUTS).to(torch.bfloat16)

    def bandwidths(self, samples: int) -> tuple[float, float]:
        """Return the slowest rank's bytes per second while all ranks read, and while the others wait for it."""
        together = _READ_BYTES / _seconds(self._comm, self._read, samples)
        return together, max(together, _READ_BYTES / _seconds_alone(self._comm, self._read, samples))

    def _read(self) -> None:
        for weight in self._packed:
            torch.ops.trtllm_pt.linear(self._token, weight, None, _OUTPUTS)


def measure_machine(
    comm: MPI.Intracomm, all_reduce: Sequence[Mapping[str, Any]], weights: Weights | None = None
) -> Machine:
    """Measure the machine on all ranks at once, with the current number of threads. The op library must be loaded.

    The memory bandwidth is that of `Weights`. The matrix rate is that of the same product with 512 tokens. The launch
    overhead is the time of a norm of 16 numbers, without the time that a call from Python takes.
    """
    with torch.no_grad():
        together, alone = (weights or Weights(comm)).bandwidths(_SAMPLES)
        flops = 2.0 * _TOKENS * _INPUTS * _OUTPUTS
        rates = {
            name: flops / _seconds(comm, _product(dtype))
            for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32))
        }
        launch = max(0.0, _seconds(comm, _small_norms) - _seconds(comm, _empty_calls)) / _SMALL_CALLS
    facts = machine_facts()
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
                "memory_bytes": "the machine's memory / ranks",
                "memory_bandwidth": f"{how}: the engine's matrix product of a token with {_READ_BYTES >> 20} MiB",
                "memory_bandwidth_alone": "the same, measured on one rank while the others wait",
                "matrix_rate": f"{how}: the engine's matrix product of {_TOKENS} x {_INPUTS} x {_OUTPUTS}",
                "launch_overhead": f"{how}: a norm of 16 numbers, without the time of the call from Python",
            },
        },
        "this machine",
    )


def _product(dtype: torch.dtype) -> Callable[[], object]:
    weight = torch.ops.trtllm_pt.pack(torch.randn(1, _OUTPUTS, _INPUTS).to(dtype))
    x = torch.randn(1, _TOKENS, _INPUTS).to(dtype)
    return lambda: torch.ops.trtllm_pt.linear(x, weight, None, _OUTPUTS)


def _small_norms() -> None:
    one, weight = torch.ones(1, 1, 16), torch.ones(1, 16)
    for _ in range(_SMALL_CALLS):
        torch.ops.trtllm_pt.rms_norm(one, weight, 1e-5)


def _empty_calls() -> None:
    """Call an op that does nothing, as often as _small_norms calls one that does little."""
    for _ in range(_SMALL_CALLS):
        torch.ops.trtllm_pt.reduces_seen()


def _seconds(comm: MPI.Intracomm, work: Callable[[], object], samples: int = _SAMPLES) -> float:
    """Return the median of the slowest rank's seconds. The first call is a warm-up."""
    taken = []
    work()
    for _ in range(samples):
        comm.Barrier()
        taken.append(max(comm.allgather(_timed(work))))
    return median(taken)


def _seconds_alone(comm: MPI.Intracomm, work: Callable[[], object], samples: int) -> float:
    """Return the median of a rank's seconds while the other ranks wait. All ranks take turns."""
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
