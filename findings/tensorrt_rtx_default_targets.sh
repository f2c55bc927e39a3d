#!/usr/bin/env bash
# tensorrt-rtx 1.7.1.116: unless targets are named, GPUs that cannot run a network are silently dropped from its plan.
#
# Behaviour: a plan whose targets are not set is for every supported GPU from SM80 on. If the network has a type that
# some of them lack, such as FP8, the build succeeds, and the plan is for the others alone. That is said only in lines
# of severity VERBOSE. With the same GPU named by `set_compute_capability`, the build fails with an error that says why.
# (Seen on a computer without a GPU, where plans are built ahead of time.)
#
# Why one would guess otherwise: not to name targets looks like the most general choice, and a build without an error or
# a warning looks like one that kept it. Whoever has one of the dropped GPUs learns it last.
#
# What to do instead: always name the targets.
#
# Output seen:
#   SM80 named: no plan, and an error
#   SM86 named: no plan, and an error
#   SM89 named: a plan
#   SM120 named: a plan
#   none named: a plan, no error, no warning, and in a VERBOSE line: not able to run on target(s): sm80, sm86
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "numpy==1.26.4" "tensorrt-rtx==1.7.1.116"

"$work/venv/bin/python" - <<'EOF_PYTHON'
import re
import sys

import numpy as np
import tensorrt_rtx as trt


class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines = []

    def log(self, severity, message):
        self.lines.append((severity.name, message))

    def severities(self):
        return {severity for severity, _ in self.lines}


log = Log()
builder = trt.Builder(log)
kept = []  # TensorRT reads the memory of constants during the build


def build(target):
    """Build a product of x and constant weights, both rounded to FP8."""
    log.lines.clear()
    network = builder.create_network(0)
    kept.append(np.array(0.1, np.float16))
    scale = network.add_constant((), trt.Weights(kept[-1])).get_output(0)
    kept.append(np.full((64, 64), 0.5, np.float16))
    weight = network.add_constant((64, 64), trt.Weights(kept[-1])).get_output(0)
    rounded = []
    for tensor in (network.add_input("x", trt.float16, (16, 64)), weight):
        narrow = network.add_quantize(tensor, scale, trt.fp8).get_output(0)
        rounded.append(network.add_dequantize(narrow, scale, trt.float16).get_output(0))
    none = trt.MatrixOperation.NONE
    network.mark_output(network.add_matrix_multiply(rounded[0], none, rounded[1], none).get_output(0))
    config = builder.create_builder_config()
    if target:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    return builder.build_serialized_network(network, config) is not None


as_stated = True
for target, wanted in (("SM80", False), ("SM86", False), ("SM89", True), ("SM120", True)):
    built = build(target)
    as_stated &= built == wanted and ("ERROR" in log.severities()) != built
    print(f"{target} named: {'a plan' if built else 'no plan, and an error'}")
built = build(None)
silent = not log.severities() & {"WARNING", "ERROR", "INTERNAL_ERROR"}
text = "\n".join(message for _, message in log.lines)
found = re.search(r"not be able to run on target\(s\): ([^,]+(?:, sm\d+)*)", text)
dropped = found[1] if found else "nothing"
quiet = "no error, no warning" if silent else "with an error or a warning"
plan = "a plan" if built else "no plan"
print(f"none named: {plan}, {quiet}, and in a VERBOSE line: not able to run on target(s): {dropped}")
as_stated &= built and silent and dropped == "sm80, sm86"
sys.exit(0 if as_stated else "this is not the behaviour described at the head of this script")
EOF_PYTHON
