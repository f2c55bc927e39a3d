#!/usr/bin/env bash
# tensorrt-rtx 1.7.1.116: a layer of experts is accepted by the network and compiles for no GPU.
#
# Behaviour: `add_moe` takes its inputs and gated weights without an error, and its output has the right shape. The
# build then ends with an internal error, "Cannot decompose operation … moe_fc1", for each of the GPUs that this package
# compiles for. (Seen on a computer without a GPU, where plans are built ahead of time.)
#
# Why one would guess otherwise: the builder knows the targets, and refuses a GPU or a type that it does not support
# with a message that says so. An internal error looks like a mistake in the weights' shapes instead, which are right.
#
# What to do instead: compute experts as batched products. All experts at once, with weights of zero for those that were
# not chosen, compiles everywhere; so does gathering the chosen experts' weights.
#
# Output seen:
#   default targets: add_moe is accepted and does not compile (Cannot decompose operation)
#   SM80: add_moe is accepted and does not compile (Cannot decompose operation)
#   SM89: add_moe is accepted and does not compile (Cannot decompose operation)
#   SM120: add_moe is accepted and does not compile (Cannot decompose operation)
#   SM121: add_moe is accepted and does not compile (Cannot decompose operation)
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "numpy==1.26.4" "tensorrt-rtx==1.7.1.116"

"$work/venv/bin/python" - 2> "$work/printed" <<'EOF_PYTHON'
import sys

import numpy as np
import tensorrt_rtx as trt


class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.errors = []

    def log(self, severity, message):
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message)


EXPERTS, CHOSEN, WIDTH, ROWS, TOKENS = 8, 2, 256, 512, 16
log = Log()
builder = trt.Builder(log)
kept = []  # TensorRT reads the memory of constants during the build


def build(target):
    log.errors.clear()
    network = builder.create_network(0)

    def constant(*shape):
        kept.append(np.full(shape, 0.01, np.float16))
        return network.add_constant(shape, trt.Weights(kept[-1])).get_output(0)

    x = network.add_input("x", trt.float16, (1, TOKENS, WIDTH))
    chosen = network.add_input("chosen", trt.int32, (1, TOKENS, CHOSEN))
    weights = network.add_input("weights", trt.float16, (1, TOKENS, CHOSEN))
    layer = network.add_moe(x, chosen, weights)
    gate, up, down = constant(EXPERTS, WIDTH, ROWS), constant(EXPERTS, WIDTH, ROWS), constant(EXPERTS, ROWS, WIDTH)
    layer.set_gated_weights(gate, up, down, trt.MoEActType.SILU)
    output = layer.get_output(0)
    network.mark_output(output)
    if log.errors or tuple(output.shape) != (1, TOKENS, WIDTH):
        return "is refused"
    config = builder.create_builder_config()
    if target:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    if builder.build_serialized_network(network, config):
        return "compiles"
    reason = "Cannot decompose operation"
    return f"is accepted and does not compile ({reason if reason in log.errors[0] else log.errors[0]})"


seen = []
for target in (None, "SM80", "SM89", "SM120", "SM121"):
    seen.append(build(target))
    print(f"{target or 'default targets'}: add_moe {seen[-1]}")
as_stated = set(seen) == {"is accepted and does not compile (Cannot decompose operation)"}
sys.exit(0 if as_stated else "this is not the behaviour described at the head of this script")
EOF_PYTHON
