#!/usr/bin/env bash
# tensorrt-rtx 1.7.1.116: packed attention queries are accepted by the network and compile for no GPU.
#
# Behaviour: attention with `query_form = AttentionIOForm.PACKED_NHD` (the tokens of all sequences one after the other,
# with `query_lengths`) passes every check of the network API. The build then ends with "no fused kernel is available on
# this target and no decomposition exists", for each of the GPUs that this package compiles for, although the layer is
# marked as decomposable. The same attention with padded queries compiles for all of them. (Seen on a computer without a
# GPU, where plans are built ahead of time.)
#
# Why one would guess otherwise: the form is a documented value of the attention layer, the packed form of the KV
# cache's update compiles, and packed tokens are how servers batch requests. The error names the target, so one looks
# for a GPU that has the kernel, and there is none among them.
#
# What to do instead: give attention padded queries. A step of one token per sequence needs no padding; a prompt can be
# computed alone in its step.
#
# Output seen:
#   SM80: padded queries compile; packed queries are accepted and do not compile
#   SM86: padded queries compile; packed queries are accepted and do not compile
#   SM89: padded queries compile; packed queries are accepted and do not compile
#   SM120: padded queries compile; packed queries are accepted and do not compile
#   SM121: padded queries compile; packed queries are accepted and do not compile
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "numpy==1.26.4" "tensorrt-rtx==1.7.1.116"

"$work/venv/bin/python" - <<'EOF_PYTHON'
import sys

import tensorrt_rtx as trt


class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.errors = []

    def log(self, severity, message):
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message)


HEADS, SIZE, MOST = 2, 64, 128
log = Log()
builder = trt.Builder(log)


def build(packed, target):
    """Build attention over keys and values [sequences, HEADS, MOST, SIZE], and return what is said of it."""
    log.errors.clear()
    network = builder.create_network(0)
    q = network.add_input("q", trt.float16, (-1, HEADS, SIZE) if packed else (-1, HEADS, -1, SIZE))
    k, v = (network.add_input(name, trt.float16, (-1, HEADS, MOST, SIZE)) for name in "kv")
    lengths = network.add_input("key_lengths", trt.int32, (-1,))
    kind = trt.CausalMaskKind.LOWER_RIGHT
    attention = network.add_attention_v2(q, k, v, trt.AttentionNormalizationOp.SOFTMAX, kind)
    attention.decomposable = True
    attention.key_value_lengths = lengths
    profile = builder.create_optimization_profile()
    for name in "kv":
        profile.set_shape(name, (1, HEADS, MOST, SIZE), (4, HEADS, MOST, SIZE), (8, HEADS, MOST, SIZE))
    profile.set_shape("key_lengths", (1,), (4,), (8,))
    if packed:
        attention.query_form = trt.AttentionIOForm.PACKED_NHD
        attention.query_lengths = network.add_input("query_lengths", trt.int32, (-1,))
        profile.set_shape("q", (1, HEADS, SIZE), (64, HEADS, SIZE), (256, HEADS, SIZE))
        profile.set_shape("query_lengths", (2,), (5,), (9,))
    else:
        profile.set_shape("q", (1, HEADS, 1, SIZE), (4, HEADS, 16, SIZE), (8, HEADS, 32, SIZE))
    network.mark_output(attention.get_output(0))
    if log.errors:
        return "are refused"
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    config.add_optimization_profile(profile)
    if builder.build_serialized_network(network, config):
        return "compile"
    reason = "no fused kernel is available on this target and no decomposition exists"
    return "are accepted and do not compile" if reason in " ".join(log.errors) else log.errors[0]


seen = []
for target in ("SM80", "SM86", "SM89", "SM120", "SM121"):
    seen.append((build(False, target), build(True, target)))
    print(f"{target}: padded queries {seen[-1][0]}; packed queries {seen[-1][1]}")
as_stated = set(seen) == {("compile", "are accepted and do not compile")}
sys.exit(0 if as_stated else "this is not the behaviour described at the head of this script")
EOF_PYTHON
