#!/usr/bin/env bash
# torch 2.13.0: Inductor moves a custom op that waits for a transfer right behind the op that has started it.
#
# Behaviour: a model starts a transfer with one custom op, works, and waits for the transfer with another one, as is
# usual where a network is to be hidden behind work. Compiled by torch.compile or AOTInductor, it waits before it works:
# the passes `reorder_for_locality` and `reorder_for_peak_memory` move what produces a value next to its user. Without
# them a wait may still come too early: two additions of results are fused into one kernel, so that work which needs only
# the first result waits for the second one, too. Values are right in each case; only the overlap is gone, and nothing
# says so.
#
# Why one would guess otherwise: ops that the compiler cannot look into seem to stay in their order, and the same
# pattern with torch.distributed's own collectives does, since `reorder_for_locality` leaves their wait alone.
#
# What to do instead: compile with "reorder_for_locality" and "reorder_for_peak_memory" off and "max_fusion_size" 1, and
# check the order of the ops in what was compiled.
#
# Output seen:
#   one transfer
#     written       work start work wait
#     compiled      work start wait work
#     not reordered work start work wait
#     nor fused     work start work wait
#   two transfers
#     written       work start work start wait work wait work
#     compiled      work start wait work start wait work work
#     not reordered work start work start wait wait work work
#     nor fused     work start work start wait work wait work
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "torch==2.13.0" "numpy==1.26.4" "setuptools==80.9.0"

export TORCHINDUCTOR_CACHE_DIR="$work/cache" OMP_NUM_THREADS=1
"$work/venv/bin/python" -W ignore - <<'EOF_PYTHON' >"$work/found"
import torch
import torch._inductor.config as settings

called = []
library = torch.library.Library("finding", "DEF")
for name in ("work", "start", "wait"):

    def run(x, name=name):
        called.append(name)
        return x.clone()

    library.define(f"{name}(Tensor x) -> Tensor")
    library.impl(name, run, "CPU")
    library.impl(name, lambda x: torch.empty_like(x), "Meta")
ops = torch.ops.finding


def one(x):
    started = ops.start(ops.work(x))
    result = ops.work(x + 1)
    return ops.wait(started) + result


def two(x):
    first = ops.start(ops.work(x))
    second = ops.start(ops.work(x))
    stream = x + ops.wait(first)
    result = ops.work(stream)
    stream = stream + ops.wait(second)
    return ops.work(stream) + result


not_reordered = {"reorder_for_locality": False, "reorder_for_peak_memory": False}
for name, model in (("one transfer", one), ("two transfers", two)):
    print(name)
    called.clear()
    want = model(torch.ones(4))
    print("  written      ", *called)
    ways = {"compiled": {}, "not reordered": not_reordered, "nor fused": not_reordered | {"max_fusion_size": 1}}
    for way, changes in ways.items():
        torch._dynamo.reset()
        with settings.patch(**changes):
            compiled = torch.compile(model, fullgraph=True)
            called.clear()
            assert torch.equal(compiled(torch.ones(4)), want)
        print(f"  {way:<13}", *called)
EOF_PYTHON

cat "$work/found"
diff "$work/found" - <<'EOF_WANTED'
one transfer
  written       work start work wait
  compiled      work start wait work
  not reordered work start work wait
  nor fused     work start work wait
two transfers
  written       work start work start wait work wait work
  compiled      work start wait work start wait work work
  not reordered work start work start wait wait work work
  nor fused     work start work start wait work wait work
EOF_WANTED
