#!/usr/bin/env bash
# tensorrt-rtx 1.7.1.116: the bytes of a plan depend on how many networks the process has made before.
#
# Behaviour: a network without a name is called "Unnamed Network N", where N counts the networks of the process, and the
# name is written into the plan. The same network, built twice in one process by the same builder, therefore gives two
# different plans, and another process gives the same two in the same order. With `network.name` set, all are equal.
# (Seen on a computer without a GPU, where plans are built ahead of time for all supported GPUs.)
#
# Why one would guess otherwise: builds on a GPU are known to differ, because kernels are timed there, so the difference
# looks like noise of the builder that nobody can remove. Without a GPU nothing is timed, and nothing in the two builds
# differs that the caller could see, so a cache keyed by the checksum of the plan is expected to work.
#
# What to do instead: give every network a name before it is built; then compare or cache plans by their bytes.
#
# Output seen:
#   unnamed networks, one process: 3 plans, 3 different
#   unnamed networks, two processes: their plans are equal
#   the names in those plans: Unnamed Network 0, Unnamed Network 1, Unnamed Network 2
#   named networks, one process: 3 plans, 1 different
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "numpy==1.26.4" "tensorrt-rtx==1.7.1.116"

cat > "$work/build.py" <<'EOF_PYTHON'
import hashlib
import re
import sys

import numpy as np
import tensorrt_rtx as trt

builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
for _ in range(3):
    network = builder.create_network(0)
    if len(sys.argv) > 1:
        network.name = sys.argv[1]
    x = network.add_input("x", trt.float16, (4, 64))
    for layer in range(4):
        weights = np.full((64, 64), 0.01 * layer, np.float16)
        constant = network.add_constant((64, 64), weights).get_output(0)
        none = trt.MatrixOperation.NONE
        x = network.add_matrix_multiply(x, none, constant, none).get_output(0)
    network.mark_output(x)
    plan = bytes(builder.build_serialized_network(network, builder.create_builder_config()))
    name = re.search(rb"Unnamed Network \d+", plan)
    print(hashlib.sha256(plan).hexdigest(), name[0].decode() if name else "-")
EOF_PYTHON

"$work/venv/bin/python" "$work/build.py" > "$work/first"
"$work/venv/bin/python" "$work/build.py" > "$work/second"
"$work/venv/bin/python" "$work/build.py" decoder > "$work/named"
unnamed=$(cut -d' ' -f1 "$work/first" | sort -u | wc -l)
named=$(cut -d' ' -f1 "$work/named" | sort -u | wc -l)
again=$(if cmp --quiet "$work/first" "$work/second"; then echo equal; else echo different; fi)
names=$(cut -d' ' -f2- "$work/first" | paste -sd, | sed 's/,/, /g')
echo "unnamed networks, one process: 3 plans, $unnamed different"
echo "unnamed networks, two processes: their plans are $again"
echo "the names in those plans: $names"
echo "named networks, one process: 3 plans, $named different"
if [[ "$unnamed $again $named" != "3 equal 1" ]]; then
    echo "this is not the behaviour described at the head of this script" >&2
    exit 1
fi
