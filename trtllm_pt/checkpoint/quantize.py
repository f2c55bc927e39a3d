"""Quantise and dequantise weights.

Shapes: [...] is the expert axis of a weight with experts, otherwise empty; O outputs, I inputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FP8_MAX = 448.0  # the largest value of float8_e4m3fn
# The smallest exponent of float16's normal numbers. TensorRT-LLM keeps a copy of a scale in the model's dtype.
_SMALLEST_EXPONENT = -14


def quantize_rows(weight: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantise float32 [..., O, I] to int8 [..., O, I] of `bits` bits, with a scale per output [..., O] in `dtype`.

    Quantisation is symmetric with scale = amax / 2^(bits - 1), as in TensorRT-LLM's weight-only quantisation, so a
    positive amax is rounded down by one step. The integers are the nearest ones for the scale as rounded to `dtype`.
    """
    most = 1 << (bits - 1)
    low, high = weight.aminmax(dim=-1)
    scale = (torch.maximum(-low, high) / most).to(dtype)
    scale = scale.masked_fill(scale == 0, 1.0)  # avoids 0 / 0 in a row of zeros
    values = weight / scale.float()[..., None]
    return values.round_().clamp_(-most, most - 1).to(torch.int8), scale


def quantize_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise float32 [..., O, I] to float8_e4m3fn [..., O, I], with a scale per matrix, float32 [..., 1]."""
    low, high = weight.flatten(-2).aminmax(dim=-1)
    largest: list[float] = torch.maximum(-low, high).reshape(-1).tolist()
    scale = torch.tensor([fp8_scale(amax) for amax in largest]).view(*weight.shape[:-2], 1)
    return to_fp8(weight, scale[..., None]), scale


def fp8_scale(amax: float) -> float:
    """Return the smallest power of two s with amax / s <= FP8_MAX, 1 if `amax` is 0, or `amax` if it is not finite.

    TensorRT-LLM multiplies by a copy of the scale that is rounded to the model's dtype, and divides by one that is not.
    A power of two is exact in both.
    """
    if amax == 0 or not math.isfinite(amax):
        return amax or 1.0
    mantissa, exponent = math.frexp(amax / FP8_MAX)
    return math.ldexp(1.0, max(exponent - (mantissa == 0.5), _SMALLEST_EXPONENT))


def to_fp8(x: Tensor, scale: Tensor | float) -> Tensor:
    """Return x / scale in float8_e4m3fn, rounded to nearest even and clamped to its largest values."""
    return (x / scale).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def dequantize(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return quantised values [..., O, I] times their scale, [..., O] per output or [..., 1] per matrix, in `dtype`."""
    wide = torch.promote_types(dtype, torch.float32)
    return (weight.to(wide) * scale.to(wide)[..., None]).to(dtype)


def pack_int4(values: Tensor) -> Tensor:
    """Pack int8 [..., I] with values from -8 to 7 into int8 [..., I / 2]; even inputs are in the low half of a byte."""
    even, odd = values[..., 0::2], values[..., 1::2]
    return (even & 15) | (odd << 4)


def unpack_int4(packed: Tensor) -> Tensor:
    """Unpack int8 [..., I / 2] that `pack_int4` packed into int8 [..., I]."""
    return torch.stack((packed << 4 >> 4, packed >> 4), -1).flatten(-2)
