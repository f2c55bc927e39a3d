"""TensorRT's enums, as far as TensorRT-LLM's signatures and the network name them."""

from __future__ import annotations

from enum import IntEnum
from types import ModuleType

import torch

from tests.backends.tensorrt_llm.standin.catalogue import API

tensorrt = ModuleType("tensorrt")
for _name, _members in API["tensorrt"]["enums"].items():
    setattr(tensorrt, _name, IntEnum(_name, _members))
DataType = tensorrt.DataType
for _name, _member in API["tensorrt"]["dtypes"].items():
    setattr(tensorrt, _name, DataType[_member])

TORCH = {
    DataType.FLOAT: torch.float32,
    DataType.HALF: torch.float16,
    DataType.BF16: torch.bfloat16,
    DataType.FP8: torch.float8_e4m3fn,
    DataType.INT8: torch.int8,
    DataType.INT32: torch.int32,
    DataType.INT64: torch.int64,
    DataType.BOOL: torch.bool,
}
TRT = {value: key for key, value in TORCH.items()}
FLOATS = (DataType.FLOAT, DataType.HALF, DataType.BF16, DataType.FP8)


def dtype_of(dtype: str | DataType) -> DataType:
    return getattr(tensorrt, dtype) if isinstance(dtype, str) else DataType(dtype)


def held(data: torch.Tensor, dtype: DataType) -> torch.Tensor:
    """How the stand-in holds values: floats in float32, whatever their dtype in the engine; integers in int64.

    So nothing is rounded on the way but what quantising rounds, and logits can be compared to 1e-5.
    """
    if dtype in FLOATS:
        return data.float()
    return data if dtype == DataType.BOOL else data.long()
