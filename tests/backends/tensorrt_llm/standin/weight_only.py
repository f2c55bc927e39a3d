"""What the compiled library does with int8 and int4 weights.

Its kernels read weights in an order of their own, made by a compiled op. The stand-in's op reverses the rows, and its
product reverses them back: a weight that did not pass through the op, or passed twice, shows in the logits.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor as Data


def preprocess_weights_for_mixed_gemm(weight: Data, weight_type: torch.dtype, activation_dtype: torch.dtype) -> Data:
    """Row-major int8 [(E,) in, out], or int4 [(E,) in, out/2], even outputs in the low halves."""
    assert weight.dtype == torch.int8 and weight.is_contiguous() and weight.dim() in (2, 3)
    assert weight_type in (torch.int8, torch.quint4x2) and activation_dtype in (torch.float16, torch.bfloat16)
    return weight.flip(-2).contiguous()


OPS = SimpleNamespace(preprocess_weights_for_mixed_gemm=preprocess_weights_for_mixed_gemm)  # torch.ops.trtllm


def dequantised(weight: Data, scale: Data) -> Data:
    """[in, out] from the kernels' order; scale [out]."""
    values = weight.flip(-2)
    if values.shape[-1] != scale.shape[-1]:
        packed = values.to(torch.int8)
        values = torch.stack((packed << 4 >> 4, packed >> 4), -1).flatten(-2)
    return values.float() * scale
