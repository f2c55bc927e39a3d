#!/usr/bin/env bash
# nvidia-pytriton 0.7.0 (Triton Inference Server 2.51): with NumPy 2, a Python model silently reads wrong numbers.
#
# Behaviour: the program that runs Python models was made for NumPy 1. With NumPy 2 in the model's environment it still
# starts and the model loads, but every element of a numeric input has the value of the first one, so [1.5, 2.5, 3.5]
# arrives as [1.5, 1.5, 1.5]. Scalars are right, so a smoke test with one number passes. (Outputs and other kinds of
# tensors fail in ways of their own, which are not part of this script.)
#
# Why one would guess otherwise: since the release of NumPy 2, an extension that was compiled for NumPy 1 is known to
# fail when it is imported, with a message that says so. The wheel itself asks for NumPy below 2, but a model's
# environment is usually made from the model's own requirements, or with `pip install --no-deps`, or NumPy is upgraded
# by the next install, where pip prints one line and goes on.
#
# What to do instead: pin `numpy<2` in the environment that runs models of Triton 2.51, and let a model check
# `numpy.__version__` when it is initialised.
#
# Output seen:
#   NumPy 1.26.4: [1.5, 2.5, 3.5] arrives as [1.5, 2.5, 3.5]
#   NumPy 2.2.6: [1.5, 2.5, 3.5] arrives as [1.5, 1.5, 1.5]
set -euo pipefail

work=$(mktemp -d)
# shellcheck source=findings/triton_server.bash
source "$(dirname "$0")/triton_server.bash"
trap stop_triton EXIT

mkdir -p "$work/models/look/1"
cat > "$work/models/look/config.pbtxt" <<'EOF_CONFIG'
backend: "python"
max_batch_size: 0
input [ { name: "NUMBERS" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "SUM" data_type: TYPE_UINT8 dims: [ 1 ] } ]
parameters { key: "notes" value: { string_value: "@NOTES@" } }
EOF_CONFIG
sed -i "s|@NOTES@|$work/notes|" "$work/models/look/config.pbtxt"
cat > "$work/models/look/1/model.py" <<'EOF_PYTHON'
import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.notes = Path(json.loads(args["model_config"])["parameters"]["notes"]["string_value"])

    def execute(self, requests):
        answers = []
        for request in requests:
            numbers = pb_utils.get_input_tensor_by_name(request, "NUMBERS").as_numpy()
            self.notes.write_text(f"NumPy {np.__version__}: [1.5, 2.5, 3.5] arrives as {numbers.tolist()}\n")
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("SUM", np.zeros(1, np.uint8))]))
        return answers
EOF_PYTHON

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --no-deps "nvidia-pytriton==0.7.0"
for numpy in 1.26.4 2.2.6; do
    "$work/venv/bin/pip" install --quiet --no-compile --no-deps "numpy==$numpy"
    rm -rf "$work/backends"
    start_triton "$work/venv"
    "$work/venv/bin/python" - "$url" <<'EOF_PYTHON'
import sys
import urllib.error
import urllib.request

try:
    urllib.request.urlopen(sys.argv[1] + "/v2/models/look/generate", b'{"NUMBERS": [1.5, 2.5, 3.5]}').read()
except urllib.error.HTTPError as error:  # the answer may be refused; what the model saw is in its notes
    error.read()
EOF_PYTHON
    cat "$work/notes"
    cat "$work/notes" >> "$work/seen"
    kill "$triton_pid"
    wait "$triton_pid" || true
    triton_pid=
done
cat > "$work/stated" <<'EOF_STATED'
NumPy 1.26.4: [1.5, 2.5, 3.5] arrives as [1.5, 2.5, 3.5]
NumPy 2.2.6: [1.5, 2.5, 3.5] arrives as [1.5, 1.5, 1.5]
EOF_STATED
if ! cmp --quiet "$work/seen" "$work/stated"; then
    echo "this is not the behaviour described at the head of this script" >&2
    exit 1
fi
