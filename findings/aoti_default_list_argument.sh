#!/usr/bin/env bash
# torch 2.13.0: a custom op that takes `int[] factors=[]` gets None instead of [] in a model that AOTInductor compiled.
#
# Behaviour: where a call passes a value that equals the default in the op's schema, the compiled package leaves the
# argument out, and the op is called with None, although the schema says `int[]` and not `int[]?`. An op in Python
# fails when it iterates over None; one in C++ is refused with "Expected IntList but got None". With any other value,
# and in eager mode or torch.export's own module, the same op gets the list.
#
# Why one would guess otherwise: leaving out a value that equals the default is meant to change nothing, and None is not
# a value of the declared type.
#
# What to do instead: declare `int[]? factors=None` and treat None as the empty list, or give the argument no default.
#
# Output seen:
#   factors [2, 3]: exported [2, 3], compiled [2, 3]
#   factors []: exported [], compiled None
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "torch==2.13.0" "numpy==1.26.4" "setuptools==80.9.0"

export TORCHINDUCTOR_CACHE_DIR="$work/cache" OMP_NUM_THREADS=1
"$work/venv/bin/python" -W ignore - "$work" 2>"$work/errors" <<'EOF_PYTHON'
import sys

import torch
import torch._inductor

given = []
library = torch.library.Library("finding", "DEF")
library.define("scale(Tensor x, int[] factors=[]) -> Tensor")


def scale(x, factors=()):
    given.append(None if factors is None else list(factors))
    return x.clone()


library.impl("scale", scale, "CPU")
library.impl("scale", lambda x, factors=(): torch.empty_like(x), "Meta")


class Model(torch.nn.Module):
    def __init__(self, factors):
        super().__init__()
        self.factors = factors

    def forward(self, x):
        return torch.ops.finding.scale(x, self.factors)


x, found = torch.ones(2), []
for factors in ([2, 3], []):
    exported = torch.export.export(Model(factors), (x,))
    exported.module()(x)
    path = torch._inductor.aoti_compile_and_package(exported, package_path=f"{sys.argv[1]}/{len(factors)}.pt2")
    torch._inductor.aoti_load_package(path)(x)
    found.append(given[-2:])
    print(f"factors {factors}: exported {given[-2]}, compiled {given[-1]}")
as_stated = found == [[[2, 3], [2, 3]], [[], None]]
sys.exit(0 if as_stated else "this is not the behaviour described at the head of this script")
EOF_PYTHON
