#!/usr/bin/env bash
# nvidia-pytriton 0.7.0 (Triton Inference Server 2.51): Python models ignore PYTHONPATH, and search the server's working
# directory before everything else.
#
# Behaviour: the program that runs a Python model starts its interpreter without PYTHONPATH, although the variable is in
# its environment (os.environ has it). The model's sys.path begins with '', the working directory of tritonserver.
#
# Why one would guess otherwise: the variable is how one shows an interpreter further packages, it reaches the model's
# process unchanged, and the same environment's own `python` honours it. So an import works in every test that starts
# Python, and fails in the server; and a file in the folder where the server happens to be started can replace a package.
#
# What to do instead: install what models import into the environment whose python3 is first on PATH (or name folders in
# a .pth file there), and start tritonserver from an empty folder.
#
# Output seen:
#   python: environment True, import True
#   model: environment True, import False, sys.path begins with ''
set -euo pipefail

work=$(mktemp -d)
# shellcheck source=findings/triton_server.bash
source "$(dirname "$(realpath "$0")")/triton_server.bash"
trap stop_triton EXIT

mkdir -p "$work/models/look/1" "$work/further" "$work/empty"
echo > "$work/further/further_package.py"
cat > "$work/models/look/config.pbtxt" <<'EOF_CONFIG'
backend: "python"
max_batch_size: 0
input [ { name: "NUMBER" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "NUMBER" data_type: TYPE_INT32 dims: [ 1 ] } ]
parameters { key: "notes" value: { string_value: "@NOTES@" } }
EOF_CONFIG
sed -i "s|@NOTES@|$work/notes|" "$work/models/look/config.pbtxt"
cat > "$work/models/look/1/model.py" <<'EOF_PYTHON'
import importlib.util
import json
import os
import sys
from pathlib import Path


class TritonPythonModel:
    def initialize(self, args):
        notes = Path(json.loads(args["model_config"])["parameters"]["notes"]["string_value"])
        known = "further" in os.environ.get("PYTHONPATH", "")
        found = importlib.util.find_spec("further_package") is not None
        notes.write_text(f"model: environment {known}, import {found}, sys.path begins with {sys.path[0]!r}\n")

    def execute(self, requests):
        return []
EOF_PYTHON

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --no-deps "nvidia-pytriton==0.7.0" "numpy==1.26.4"
export PYTHONPATH=$work/further
cd "$work/empty"
"$work/venv/bin/python" - > "$work/seen" <<'EOF_PYTHON'
import importlib.util
import os

known = "further" in os.environ.get("PYTHONPATH", "")
print(f"python: environment {known}, import {importlib.util.find_spec('further_package') is not None}")
EOF_PYTHON
start_triton "$work/venv"
cat "$work/notes" >> "$work/seen"
cat "$work/seen"
cat > "$work/stated" <<'EOF_STATED'
python: environment True, import True
model: environment True, import False, sys.path begins with ''
EOF_STATED
if ! cmp --quiet "$work/seen" "$work/stated"; then
    echo "this is not the behaviour described at the head of this script" >&2
    exit 1
fi
