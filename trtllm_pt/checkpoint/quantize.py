"""The arithmetic of quantised weights, forth and back.

[...] experts, where there are any   O outputs   I inputs
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FP8_MAX = 448.0  # of float8_e4m3fn
_SMALLEST_EXPONENT = -14  # of float16's normal numbers: TensorRT-LLM keeps a copy of a scale in the model's dtype


def quantize_rows(weight: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """float32 [..., O, I] -> int8 [..., O, I] of `bits` bits, and a scale per output [..., O] in `dtype`.

    Symmetric, as TensorRT-LLM's own weight-only quantisation: scale = amax / 2^(bits - 1), so that the largest
    positive value of a row loses one step. The integers are those nearest under the scale as `dtype` has it.
    """
    most = 1 << (bits - 1)
    low, high = weight.aminmax(dim=-1)
    scale = (torch.maximum(-low, high) / most).to(dtype)
    scale = scale.masked_fill(scale == 0, 1.0)  # a row of zeros
    values = weight / scale.float()[..., None]
    return values.round_().clamp_(-most, most - 1).to(torch.int8), scale


def quantize_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [..., O, I] -> float8_e4m3fn [..., O, I], and a scale per matrix, float32 [..., 1]."""
    low, high = weight.flatten(-2).aminmax(dim=-1)
    largest: list[float] = torch.maximum(-low, high).reshape(-1).tolist()
    scale = torch.tensor([fp8_scale(amax) for amax in largest]).view(*weight.shape[:-2], 1)
    return to_fp8(weight, scale[..., None]), scale


def fp8_scale(amax: float) -> float:
    """The least power of two under which `amax` does not exceed FP8_MAX; 1 for 0; NaN and infinity stay.

    A power of two, since TensorRT-LLM multiplies by one copy of a scale that is rounded to the model's dtype and
    divides by another that is not: both are exact then.
    """
    if amax == 0 or not math.isfinite(amax):
        return amax or 1.0
    mantissa, exponent = math.frexp(amax / FP8_MAX)
    return math.ldexp(1.0, max(exponent - (mantissa == 0.5), _SMALLEST_EXPONENT))


def to_fp8(x: Tensor, scale: Tensor | float) -> Tensor:
    """x / scale in float8_e4m3fn, to nearest even; what is beyond its range becomes its largest value."""
    return (x / scale).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def dequantize(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Any of the above [..., O, I] with its scale ([..., O], or [..., 1] of a matrix) -> the weight in `dtype`."""
    wide = torch.promote_types(dtype, torch.float32)
    return (weight.to(wide) * scale.to(wide)[..., None]).to(dtype)


def pack_int4(values: Tensor) -> Tensor:
    """int8 [..., I] of -8 to 7 -> int8 [..., I / 2], the even one of two in the low half of their byte."""
    even, odd = values[..., 0::2], values[..., 1::2]
    return (even & 15) | (odd << 4)


def unpack_int4(packed: Tensor) -> Tensor:
    """The inverse."""
    return torch.stack((packed << 4 >> 4, packed >> 4), -1).flatten(-2)
