#!/usr/bin/env bash
# tensorrt-rtx 1.7.1.116: attention with key lengths compiles only for head sizes that are multiples of 8.
#
# Behaviour: attention in float16 or bfloat16 compiles for any head size. With the optional input `key_value_lengths`
# and more than one query per sequence, a head size up to 256 that is not a multiple of 8 ends the build with an
# internal error, "CHECK(op->input_layouts().size() > idx) failed". Larger head sizes, float32, and a single query
# compile. (Seen on a computer without a GPU, where plans are built ahead of time.)
#
# Why one would guess otherwise: the lengths only say how many keys count. Neither the shapes nor the types of the layer
# change with them, and the message names neither the lengths nor the head size.
#
# What to do instead: pad heads to a multiple of 8, or give attention a mask instead of the lengths.
#
# Output seen:
#   without key lengths, 16 queries: plans for head sizes 20, 24, 36, 64, 100, 260
#   with key lengths, 16 queries: plans for head sizes 24, 64, 260
#   with key lengths, 1 query: plans for head sizes 20, 24, 36, 64, 100, 260
#   with key lengths, 16 queries, float32: plans for head sizes 20, 24, 36, 64, 100, 260
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "numpy==1.26.4" "tensorrt-rtx==1.7.1.116"

"$work/venv/bin/python" - 2> "$work/printed" <<'EOF_PYTHON'
import sys

import tensorrt_rtx as trt


class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.errors = []

    def log(self, severity, message):
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message)


log = Log()
builder = trt.Builder(log)


def build(size, queries, lengths, dtype):
    log.errors.clear()
    network = builder.create_network(0)
    q = network.add_input("q", dtype, (2, 2, queries, size))
    k, v = (network.add_input(name, dtype, (2, 2, 128, size)) for name in "kv")
    kind = trt.CausalMaskKind.LOWER_RIGHT
    attention = network.add_attention_v2(q, k, v, trt.AttentionNormalizationOp.SOFTMAX, kind)
    attention.decomposable = True
    if lengths:
        attention.key_value_lengths = network.add_input("key_lengths", trt.int32, (2,))
    network.mark_output(attention.get_output(0))
    assert not log.errors, log.errors
    return builder.build_serialized_network(network, builder.create_builder_config()) is not None


SIZES = (20, 24, 36, 64, 100, 260)
seen = []
for name, queries, lengths, dtype in (
    ("without key lengths, 16 queries", 16, False, trt.float16),
    ("with key lengths, 16 queries", 16, True, trt.float16),
    ("with key lengths, 1 query", 1, True, trt.float16),
    ("with key lengths, 16 queries, float32", 16, True, trt.float32),
):
    seen.append([size for size in SIZES if build(size, queries, lengths, dtype)])
    print(f"{name}: plans for head sizes {', '.join(map(str, seen[-1]))}")
as_stated = seen == [list(SIZES), [24, 64, 260], list(SIZES), list(SIZES)]
sys.exit(0 if as_stated else "this is not the behaviour described at the head of this script")
EOF_PYTHON
