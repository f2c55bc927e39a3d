"""Run by test_collective.py under mpirun: K tracks over all ranks must give the bits of one rank."""

import sys
from pathlib import Path

import torch
from mpi4py import MPI

from trtllm_pt.kernels.library import load

load(Path(sys.argv[1]))
torch.set_num_threads(1)
ops, world = torch.ops.trtllm_pt, MPI.COMM_WORLD
ops.set_communicator(world.py2f())
rank, ranks, tracks, calls, sent = world.rank, world.size, 8, 0, 0
each = tracks // ranks
for dtype in (torch.float32, torch.bfloat16):
    for tokens, width in ((1, 1), (3, 129), (1, 512), (255, 257), (300, 256), (512, 1024)):
        x = torch.randn(tracks, tokens, width, generator=torch.Generator().manual_seed(tokens)).to(dtype)
        got = ops.all_reduce(x[rank * each : (rank + 1) * each], ranks, 1 / tracks)
        calls += 1
        sent += tokens * width * 4
        assert got.shape == (1, tokens, width) and torch.equal(got, ops.all_reduce(x, 1, 1 / tracks)), (tokens, width)
        calls += 1
assert ops.reduces_seen() == calls
assert ops.reduce_totals()[:2] == (calls, sent) and ops.reduce_totals()[2] > 0
try:
    ops.all_reduce(x, ranks + 1, 1.0)
except RuntimeError as error:
    assert f"{ranks + 1} ranks, but the communicator has {ranks}" in str(error)
else:
    raise AssertionError("a wrong number of ranks was accepted")
print(f"rank {rank} of {ranks}: equal")
