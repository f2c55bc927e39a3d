"""Quantise and dequantise weights.

Shapes: [...] is the expert axis of a weight with experts, otherwise empty; O outputs, I inputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trtllm_pt.model.quantization import WeightOnly

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


def quantize_groups(weight: Tensor, kind: WeightOnly, dtype: torch.dtype) -> list[Tensor]:
    """Quantise float32 [..., O, I] to int8 [..., O, I], with a scale in `dtype` and, if the kind has them, an int8 zero
    point per group, [..., O, I / group].

    Without zero points it is that of `quantize_rows`, group by group. With them, a step is a fifteenth of the distance
    between the group's smallest and largest value, 0 included, and one of the sixteen values is exactly 0.
    """
    assert kind.group is not None
    groups = weight.reshape(*weight.shape[:-1], -1, kind.group)
    if not kind.zeros:
        values, scale = quantize_rows(groups, kind.bits, dtype)
        return [values.flatten(-2), scale]
    most = 1 << (kind.bits - 1)
    low, high = groups.aminmax(dim=-1)
    low, high = low.clamp_(max=0), high.clamp_(min=0)
    scale = ((high - low) / (2 * most - 1)).to(dtype)
    scale = scale.masked_fill(scale == 0, 1.0)
    zero = (-most - low / scale.float()).round_().clamp_(-most, most - 1)
    values = (groups / scale.float()[..., None]).round_().add_(zero[..., None]).clamp_(-most, most - 1)
    return [values.to(torch.int8).flatten(-2), scale, zero.to(torch.int8)]


def regrouped(scales: Tensor, groups: int) -> Tensor:
    """Return scales or zero points [..., G] of groups as [..., groups] of smaller ones, which divide them."""
    return scales.repeat_interleave(groups // scales.shape[-1], -1) if groups != scales.shape[-1] else scales


def dequantize(weight: Tensor, scale: Tensor, dtype: torch.dtype, zero: Tensor | None = None) -> Tensor:
    """Return quantised values [..., O, I] times their scale in `dtype`. Scales are [..., O] per output, [..., 1] per
    matrix, or [..., O, I / group] per group, whose zero points are subtracted before."""
    wide = torch.promote_types(dtype, torch.float32)
    values = weight.to(wide)
    if scale.dim() < weight.dim():
        return (values * scale.to(wide)[..., None]).to(dtype)
    values = values.view(*scale.shape, -1)
    if zero is not None:
        values = values - zero.to(wide)[..., None]
    return (values * scale.to(wide)[..., None]).to(dtype).flatten(-2)


def pack_int4(values: Tensor) -> Tensor:
    """Pack int8 [..., I] with values from -8 to 7 into int8 [..., I / 2]; even inputs are in the low half of a byte."""
    even, odd = values[..., 0::2], values[..., 1::2]
    return (even & 15) | (odd << 4)


def unpack_int4(packed: Tensor) -> Tensor:
    """Unpack int8 [..., I / 2] that `pack_int4` packed into int8 [..., I]."""
    return torch.stack((packed << 4 >> 4, packed >> 4), -1).flatten(-2)
