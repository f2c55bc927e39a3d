#!/usr/bin/env bash
# nvidia-pytriton 0.7.0 (Triton Inference Server 2.51): the HTTP status of `generate` does not say what happened.
#
# Behaviour, of `POST /v2/models/MODEL/generate`:
#   - A decoupled model that answers with two responses makes the request fail: the body is {"error": ...}. The status
#     is 200.
#   - A model that answers with an error of the code UNAVAILABLE gives the status 400, as for a mistake of the client.
#     The same model gives 503 over `POST /v2/models/MODEL/infer`.
#
# Why one would guess otherwise: `infer`, of the same server, maps the codes of errors to statuses correctly, and a
# client that retries on 503 and calls `raise_for_status()` on everything else works there. With `generate` that client
# takes an error for an answer, and gives up on a server that was only busy.
#
# What to do instead: look for "error" in the body whatever the status is, ask decoupled models through
# `generate_stream`, and decide by the text of an error whether to retry; or put a proxy in front that does so.
#
# Output seen:
#   generate, one response: 200 {"OUT":0,"model_name":"several","model_version":"1"}
#   generate, two responses: 200 {"error":"generate expects model to produce exactly 1 response, use generate stream for model that generates various number of responses"}
#   generate, model unavailable: 400 {"error":"try again later"}
#   infer, model unavailable: 503 {"error":"try again later"}
set -euo pipefail

work=$(mktemp -d)
# shellcheck source=findings/triton_server.bash
source "$(dirname "$0")/triton_server.bash"
trap stop_triton EXIT

mkdir -p "$work/models/several/1" "$work/models/busy/1"
tee "$work/models/several/config.pbtxt" > "$work/models/busy/config.pbtxt" <<'EOF_CONFIG'
backend: "python"
max_batch_size: 0
input [ { name: "N" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
EOF_CONFIG
echo 'model_transaction_policy { decoupled: true }' >> "$work/models/several/config.pbtxt"
cat > "$work/models/several/1/model.py" <<'EOF_PYTHON'
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for number in range(pb_utils.get_input_tensor_by_name(request, "N").as_numpy()[0]):
                out = pb_utils.Tensor("OUT", np.array([number], np.int32))
                sender.send(pb_utils.InferenceResponse([out]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
EOF_PYTHON
cat > "$work/models/busy/1/model.py" <<'EOF_PYTHON'
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        error = pb_utils.TritonError("try again later", pb_utils.TritonError.UNAVAILABLE)
        return [pb_utils.InferenceResponse(error=error) for _ in requests]
EOF_PYTHON

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --no-deps "nvidia-pytriton==0.7.0" "numpy==1.26.4"
start_triton "$work/venv"
"$work/venv/bin/python" - "$url" <<'EOF_PYTHON'
import json
import sys
import urllib.error
import urllib.request


def ask(label, path, body):
    try:
        with urllib.request.urlopen(f"{sys.argv[1]}/v2/models/{path}", json.dumps(body).encode()) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    print(f"{label}: {status} {text}")
    return status, "error" in json.loads(text)


tensor = {"name": "N", "datatype": "INT32", "shape": [1], "data": [1]}
seen = [
    ask("generate, one response", "several/generate", {"N": 1}),
    ask("generate, two responses", "several/generate", {"N": 2}),
    ask("generate, model unavailable", "busy/generate", {"N": 1}),
    ask("infer, model unavailable", "busy/infer", {"inputs": [tensor]}),
]
as_stated = seen == [(200, False), (200, True), (400, True), (503, True)]
sys.exit(0 if as_stated else "this is not the behaviour described at the head of this script")
EOF_PYTHON
