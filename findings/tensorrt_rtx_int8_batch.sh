#!/usr/bin/env bash
# tensorrt-rtx 1.7.1.116: int8 weights stay int8 in one product, and are unpacked for two batched ones.
#
# Behaviour: a matrix of int8 weights with a scale per output, dequantised and then multiplied, becomes one kernel that
# reads int8. A batch of two such matrices becomes two kernels: the first writes all weights in float16 or bfloat16, and
# the second is a plain product that reads them, so that a step moves more memory than with weights that were not
# quantised. int4 weights in blocks of 64 or 128 inputs become one kernel in both cases. Nothing warns of it; only the
# log of a build with DETAILED verbosity shows the kernels. (Seen on a computer without a GPU, where plans are built
# ahead of time.)
#
# Why one would guess otherwise: a batch changes nothing in the arithmetic of a product, the harder format of the two is
# fused, and the plan's size is that of int8 weights in both cases.
#
# What to do instead: use int4 in blocks for batched products, or one product per matrix, and look at the log.
#
# Output seen:
#   int8, 1 matrix: 1 kernel
#   int8, 2 matrices: 2 kernels
#   int4, 1 matrix: 1 kernel
#   int4, 2 matrices: 1 kernel
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
        self.text = ""

    def log(self, severity, message):
        self.text += message + "\n"


OUTPUTS, INPUTS, BLOCK = 512, 256, 64
log = Log()
builder = trt.Builder(log)
kept = []  # TensorRT reads the memory of constants during the build


def kernels(bits, matrices):
    """Build x [matrices, tokens, INPUTS] times weights [matrices, OUTPUTS, INPUTS], and count the kernels."""
    log.text = ""
    network = builder.create_network(0)
    x = network.add_input("x", trt.float16, (matrices, -1, INPUTS))
    rows = matrices * OUTPUTS
    kept.append(np.ones(rows * INPUTS * bits // 8, np.int8))
    dtype = trt.int8 if bits == 8 else trt.int4
    weights = trt.Weights(dtype, kept[-1].ctypes.data, rows * INPUTS)
    weight = network.add_constant((rows, INPUTS), weights).get_output(0)
    shape = (rows,) if bits == 8 else (rows, INPUTS // BLOCK)
    kept.append(np.full(shape, 0.01, np.float16))
    scale = network.add_constant(shape, trt.Weights(kept[-1])).get_output(0)
    dequantized = network.add_dequantize(weight, scale, trt.float16)
    if bits == 8:
        dequantized.axis = 0
    batched = network.add_shuffle(dequantized.get_output(0))
    batched.reshape_dims = (matrices, OUTPUTS, INPUTS)
    none, transpose = trt.MatrixOperation.NONE, trt.MatrixOperation.TRANSPOSE
    network.mark_output(network.add_matrix_multiply(x, none, batched.get_output(0), transpose).get_output(0))
    profile = builder.create_optimization_profile()
    profile.set_shape("x", *[(matrices, tokens, INPUTS) for tokens in (1, 16, 64)])
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config)
    return len(re.findall(r"^Name: .*, LayerType: (?:kgen|gemm|runtime_fusion),", log.text, re.MULTILINE))


seen = {}
for bits in (8, 4):
    for matrices in (1, 2):
        count = seen[bits, matrices] = kernels(bits, matrices)
        noun, ending = "matrix" if matrices == 1 else "matrices", "s" if count > 1 else ""
        print(f"int{bits}, {matrices} {noun}: {count} kernel{ending}")
as_stated = seen == {(8, 1): 1, (8, 2): 2, (4, 1): 1, (4, 2): 1}
sys.exit(0 if as_stated else "this is not the behaviour described at the head of this script")
EOF_PYTHON
