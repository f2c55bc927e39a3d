#!/usr/bin/env bash
# safetensors 0.8.0 with torch 2.13.0: tensors from load_file change when the file is written to afterwards.
#
# Behaviour: `safetensors.torch.load_file` returns tensors that are windows onto the file, mapped into memory. If
# another program writes into the file in place (rsync --inplace, dd, a download that resumes), the loaded weights
# change with it, until a page has been written to by this process. `safetensors.numpy.load_file` returns copies, which
# do not change. (`save_file` to the same path is safe: it makes a new file.)
#
# Why one would guess otherwise: a function named load_file that returns a plain dictionary of tensors, without a handle
# to keep open, looks like a copy; `safe_open` is the documented way to have the file mapped; the tensors can be written
# to without changing the file, which a mapped file normally does not allow; and the same function for NumPy copies.
#
# What to do instead: replace a checkpoint by writing a new file beside it and renaming it over the old one, never in
# place, or clone the tensors after loading where somebody else may write to the file.
#
# Output seen:
#   loaded: torch [1.0, 1.0, 1.0, 1.0], numpy [1.0, 1.0, 1.0, 1.0]
#   after another program wrote zeros into the file: torch [0.0, 0.0, 0.0, 0.0], numpy [1.0, 1.0, 1.0, 1.0]
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "torch==2.13.0" "safetensors==0.8.0" "numpy==1.26.4"

"$work/venv/bin/python" - "$work/weights.safetensors" <<'EOF_PYTHON'
import subprocess
import sys

import numpy as np
import safetensors.numpy
import safetensors.torch

WRITER = "import sys; f = open(sys.argv[1], 'r+b'); f.seek(-16, 2); f.write(bytes(16)); f.close()"

file = sys.argv[1]
safetensors.numpy.save_file({"w": np.ones(4, np.float32)}, file)
loaded = {"torch": safetensors.torch.load_file(file)["w"], "numpy": safetensors.numpy.load_file(file)["w"]}
before = {name: each.tolist() for name, each in loaded.items()}
subprocess.run([sys.executable, "-c", WRITER, file], check=True)
after = {name: each.tolist() for name, each in loaded.items()}
print(f"loaded: torch {before['torch']}, numpy {before['numpy']}")
print(f"after another program wrote zeros into the file: torch {after['torch']}, numpy {after['numpy']}")
as_stated = before["torch"] == before["numpy"] == after["numpy"] == [1.0] * 4 and after["torch"] == [0.0] * 4
sys.exit(0 if as_stated else "this is not the behaviour described at the head of this script")
EOF_PYTHON
