"""How the interpreter holds values: numbers of every float type as float64, never narrower than they are."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.backends.tensorrt_llm.checkout.tensorrt.enums import FLOATS, DataType

# In float64 what is left of an error is the network's own, and a value that is rounded to FP8 on both sides of a
# comparison is rounded alike.
WORKING = torch.float64
FP8_MAX = 448.0

STORED = {
    DataType.FLOAT: torch.float32,
    DataType.HALF: torch.float16,
    DataType.BF16: torch.bfloat16,
    DataType.FP8: torch.float8_e4m3fn,
    DataType.INT8: torch.int8,
    DataType.UINT8: torch.uint8,
    DataType.INT32: torch.int32,
    DataType.INT64: torch.int64,
    DataType.BOOL: torch.bool,
}


class ExecutionError(RuntimeError):
    """The network asks for what the interpreter does not know, or for what its plugins would refuse."""


def held(values: Tensor, dtype: DataType) -> Tensor:
    """Stored values in the interpreter's form; int8 stays as it is, since it may hold two values of 4 bits."""
    if dtype in FLOATS:
        return values.to(WORKING)
    return values if dtype in (DataType.BOOL, DataType.INT8) else values.to(torch.int64)


def to_fp8(values: Tensor) -> Tensor:
    """Rounded to FP8 E4M3, saturating. By way of float32: a double rounding, alike wherever this is used."""
    return values.clamp(-FP8_MAX, FP8_MAX).to(torch.float32).to(torch.float8_e4m3fn).to(WORKING)
