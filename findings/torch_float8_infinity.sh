#!/usr/bin/env bash
# torch 2.13.0 beside ml_dtypes 0.5.4: infinity becomes 448 in float8_e4m3fn, and the two disagree from 465 on.
#
# Behaviour: `tensor.to(torch.float8_e4m3fn)` maps everything beyond the largest value, infinity too, to 448 with its
# sign. The same call with torch.float8_e5m2 maps what is too large to infinity. ml_dtypes, which NumPy and JAX use for
# the same type, maps what is too large, infinity too, to NaN.
#
# Why one would guess otherwise: e4m3fn has no infinity, but it has NaN, and ml_dtypes uses it; a conversion between
# floating-point types is expected to keep "this overflowed" visible, as the one to e5m2 does. A quantiser that relies
# on NaN to find an activation that has overflowed finds nothing: the weights look sound.
#
# What to do instead: check `torch.isfinite` before the conversion, and choose between clamping and refusing yourself.
#
# Output seen:
#   from:                     448, 464, 465, 1e+06, inf, -inf, nan
#   torch float8_e4m3fn:      448, 448, 448, 448, 448, -448, nan
#   ml_dtypes float8_e4m3fn:  448, 448, nan, nan, nan, nan, nan
#   torch float8_e5m2:        448, 448, 448, inf, inf, -inf, nan
#   ml_dtypes float8_e5m2:    448, 448, 448, inf, inf, -inf, nan
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "torch==2.13.0" "ml_dtypes==0.5.4" "numpy==1.26.4"

"$work/venv/bin/python" - <<'EOF_PYTHON'
import sys

import ml_dtypes
import numpy as np
import torch

np.seterr(all="ignore")
GIVEN = np.array([448, 464, 465, 1e6, np.inf, -np.inf, np.nan], np.float32)


def by_torch(dtype):
    return torch.from_numpy(GIVEN).to(dtype).float().numpy()


def by_ml_dtypes(dtype):
    return GIVEN.astype(dtype).astype(np.float32)


seen = {
    "from": GIVEN,
    "torch float8_e4m3fn": by_torch(torch.float8_e4m3fn),
    "ml_dtypes float8_e4m3fn": by_ml_dtypes(ml_dtypes.float8_e4m3fn),
    "torch float8_e5m2": by_torch(torch.float8_e5m2),
    "ml_dtypes float8_e5m2": by_ml_dtypes(ml_dtypes.float8_e5m2),
}
lines = [f"{name + ':':25} {', '.join(f'{value:g}' for value in values)}" for name, values in seen.items()]
print("\n".join(lines))
ends = [line.split(maxsplit=2)[-1] for line in lines[1:]]
as_stated = ends == [
    "448, 448, 448, 448, 448, -448, nan",
    "448, 448, nan, nan, nan, nan, nan",
    "448, 448, 448, inf, inf, -inf, nan",
    "448, 448, 448, inf, inf, -inf, nan",
]
sys.exit(0 if as_stated else "this is not the behaviour described at the head of this script")
EOF_PYTHON
