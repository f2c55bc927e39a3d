#!/usr/bin/env bash
# torch 2.13.0, backend gloo: an all-reduce of equal bfloat16 or float16 elements gives unequal sums.
#
# Behaviour: four ranks add tensors whose elements are all 256, 1, 1 and 1 in bfloat16. Some elements of the result are
# 256, others 260 (the exact sum is 259, and bfloat16 has 258 and 260 beside it). 256 is what comes of adding each 1 to
# 256 and rounding, 260 what comes of adding the ones first: so partial sums are rounded to bfloat16, and the order of
# the additions depends on where in the tensor an element lies. All ranks get the same result. float16 does the same
# with 2048, 1, 1 and 1.
#
# Why one would guess otherwise: a sum of four numbers, however it is rounded, is expected to be the same for the same
# four numbers, and matrix products taught us that the sum of bfloat16 is kept in float32. Whole percents of error in
# the sums of a tensor-parallel layer then depend on the width of the layer and the number of tokens in the batch, and a
# prompt gives other logits when it is computed together with others.
#
# What to do instead: convert to float32, all-reduce, convert back; or gather the ranks' parts and add them in float32.
#
# Output seen:
#   bfloat16, 4096 elements of 256 + 1 + 1 + 1: [256.0, 260.0], the same on all ranks: True
#   float16, 4096 elements of 2048 + 1 + 1 + 1: [2048.0, 2052.0], the same on all ranks: True
#   float32, 4096 elements of 256 + 1 + 1 + 1: [259.0], the same on all ranks: True
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "torch==2.13.0" "numpy==1.26.4"

cat > "$work/sum.py" <<'EOF_PYTHON'
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

CASES = ((torch.bfloat16, 256), (torch.float16, 2048), (torch.float32, 256))
STATED = [[256.0, 260.0], [2048.0, 2052.0], [259.0]]


def rank_main(rank, meeting):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=4)
    seen = []
    for dtype, first in CASES:
        x = torch.full((4096,), first if rank == 0 else 1, dtype=dtype)
        dist.all_reduce(x)
        everyone = [torch.empty(4096) for _ in range(4)]
        dist.all_gather(everyone, x.float())
        seen.append(sorted(set(x.tolist())))
        if rank == 0:
            case = f"{str(dtype).removeprefix('torch.')}, 4096 elements of {first} + 1 + 1 + 1"
            alike = all(torch.equal(other, everyone[0]) for other in everyone)
            print(f"{case}: {seen[-1]}, the same on all ranks: {alike}", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    if seen != STATED:
        sys.exit("this is not the behaviour described at the head of this script")


if __name__ == "__main__":
    mp.spawn(rank_main, (sys.argv[1],), nprocs=4)
EOF_PYTHON
"$work/venv/bin/python" "$work/sum.py" "$work/meeting"
