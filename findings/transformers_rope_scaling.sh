#!/usr/bin/env bash
# transformers 5.24.0: `rope_scaling` in a config.json replaces all of `rope_parameters`, also the rope_theta in it.
#
# Behaviour: transformers 5 writes RoPE's settings as `rope_parameters`, and still reads the older `rope_scaling`. If a
# config.json has both, the older one wins as a whole, without a warning. Since `rope_theta` is now inside of
# `rope_parameters`, it is lost, and becomes 10000.
#
# Why one would guess otherwise: the model cards of Qwen and others say how to extend the context: add a `rope_scaling` of
# type yarn to config.json. They were written for files of transformers 4, where `rope_theta` stood beside it and stayed
# in force. After the same edit of a file that transformers 5 has saved, the model loads and runs, with another base of
# its rotary positions, here 10000 in place of 1000000. One would expect the newer key to win, or both to be merged, or an
# error.
#
# What to do instead: in a file that has `rope_parameters`, add the keys of the scaling there. A reader of config.json
# should refuse a file whose two keys disagree.
#
# Output seen:
#   saved by transformers:   {'rope_theta': 1000000.0, 'rope_type': 'default'}
#   with rope_scaling added: {'factor': 4.0, 'original_max_position_embeddings': 32768, 'rope_theta': 10000.0, 'rope_type': 'yarn'}
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "transformers==5.24.0"

HF_HUB_OFFLINE=1 "$work/venv/bin/python" - "$work" <<'EOF_PYTHON'
import json
import sys
from pathlib import Path

from transformers import AutoConfig, Qwen3Config

folder = Path(sys.argv[1])
Qwen3Config(rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}).save_pretrained(folder)
saved = AutoConfig.from_pretrained(folder).rope_parameters
file = folder / "config.json"
yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_scaling": yarn}))
extended = AutoConfig.from_pretrained(folder).rope_parameters
print("saved by transformers:  ", dict(sorted(saved.items())))
print("with rope_scaling added:", dict(sorted(extended.items())))
as_stated = saved["rope_theta"] == 1e6 and extended == yarn | {"rope_theta": 10000.0}
sys.exit(0 if as_stated else "this is not the behaviour described at the head of this script")
EOF_PYTHON
