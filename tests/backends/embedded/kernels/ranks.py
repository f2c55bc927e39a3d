"""Run by test_collective.py under mpirun: tracks over all ranks must give the bits of one rank.

python -m tests.backends.embedded.kernels.ranks LIBRARY memory|messages
"""

import sys
import time
from pathlib import Path

import torch
from mpi4py import MPI

from trtllm_pt.backends.embedded.kernels.library import load

# Elements: of a vector and not, around 32768 (from there on many ranks share the sum in memory), 65536 (a slot in
# memory; large as a message) and several slots.
SHAPES = ((1, 1), (3, 129), (1, 512), (127, 257), (128, 256), (255, 257), (256, 256), (300, 257), (512, 1024))
CALLS_OUT_OF_STEP = 60

load(Path(sys.argv[1]))
ops, world = torch.ops.trtllm_pt, MPI.COMM_WORLD
rank, ranks = world.rank, world.size
calls = sent = 0


def random(tracks: int, tokens: int, width: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(tracks, tokens, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check(x: torch.Tensor) -> None:
    """All ranks hold all tracks of x, and reduce each their own."""
    global calls, sent
    tracks, tokens, width = x.shape
    each = tracks // ranks
    got = ops.all_reduce(x[rank * each : (rank + 1) * each], ranks, 1 / tracks)
    calls += 2
    sent += tokens * width * 4
    assert got.shape == (1, tokens, width), got.shape
    assert torch.equal(got, ops.all_reduce(x, 1, 1 / tracks)), x.shape


def check_in_flight(tracks: int, tokens: int, width: int) -> None:
    """All-reduces that are on their way at the same time, finished in another order, with one that waits between."""
    global calls, sent
    each = tracks // ranks
    xs = [random(tracks, tokens, width, torch.bfloat16, seed) for seed in range(3)]
    started = [ops.start_all_reduce(x[rank * each : (rank + 1) * each], ranks, 1 / tracks) for x in xs]
    check(random(tracks, tokens, width, torch.float32))
    for number in (1, 2, 0):
        assert torch.equal(ops.finish_all_reduce(started[number]), ops.all_reduce(xs[number], 1, 1 / tracks)), number
    calls += 6
    sent += 3 * tokens * width * 4


def check_out_of_step() -> None:
    """One rank after the other is late: nobody may overwrite what it has not read, nor read what it has not written."""
    for call in range(CALLS_OUT_OF_STEP):
        x = random(ranks, 33, 97 + call % 3, torch.float32, seed=call)
        if call % ranks == rank:
            time.sleep(0.001)
        check(x)


memory = ops.set_communicator(world.py2f())
assert memory == (sys.argv[2] == "memory"), f"{sys.argv[2]} was expected"
for threads in (1, 2):
    torch.set_num_threads(threads)
    for dtype in (torch.float32, torch.bfloat16):
        for tracks in {8, ranks}:
            for tokens, width in SHAPES:
                check(random(tracks, tokens, width, dtype))
torch.set_num_threads(1)
for tokens, width in SHAPES:
    check_in_flight(8, tokens, width)
check_out_of_step()
assert ops.set_communicator(world.Dup().py2f()) == memory  # an engine that is opened after another
check_out_of_step()

assert ops.reduces_seen() == calls
assert ops.reduce_totals()[:2] == (calls, sent) and ops.reduce_totals()[2] > 0
try:
    ops.all_reduce(torch.ones(1, 1, 1), ranks + 1, 1.0)
except RuntimeError as error:
    assert f"{ranks + 1} ranks, but the communicator has {ranks}" in str(error)
else:
    raise AssertionError("a wrong number of ranks was accepted")
print(f"rank {rank} of {ranks}: equal")
