"""Quantised weights in the order in which the ops read them, which kernels/paths.h describes.

Shapes: [...] is any number of leading axes; N outputs, I inputs, G groups of inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trtllm_pt.backends.embedded.constants import TILE
from trtllm_pt.backends.embedded.form import Form
from trtllm_pt.checkpoint.quantize import pack_int4


def pack(codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int) -> Tensor:
    """Pack int8 codes [..., N, I] with scales, and zero points if there are any, [..., N, G] of the model's dtype.

    Outputs that fill the last tile have the scale 0.
    """
    *lead, rows, _ = codes.shape
    form = Form(bits, scales.shape[-1], zeros is not None)
    tiles = -(-rows // TILE)
    header = torch.zeros(*lead, tiles, form.header_bytes(scales.dtype), dtype=torch.uint8)
    begin = 0
    for values in [scales] if zeros is None else [scales, zeros.to(scales.dtype)]:
        part = _tiled(values).mT.reshape(*lead, tiles, -1).contiguous().view(torch.uint8)
        header[..., begin : begin + part.shape[-1]] = part
        begin += part.shape[-1]
    tiled = _tiled(codes)
    lines = tiled.view(*tiled.shape[:-1], -1, 4, 2) if bits == 4 else tiled
    # In int4, a word has the even inputs and then the odd ones of a line.
    ordered = tiled.mT if bits == 8 else pack_int4(lines.mT.transpose(-4, -3).flatten(-2))
    return torch.cat((header, ordered.reshape(*lead, tiles, -1).contiguous().view(torch.uint8)), -1)


def _tiled(x: Tensor) -> Tensor:
    """Return [..., N, X] as [..., tiles, 16, X], with zeros behind the last of N."""
    padding = -x.shape[-2] % TILE
    padded = torch.nn.functional.pad(x, (0, 0, 0, padding))
    return padded.view(*x.shape[:-2], -1, TILE, x.shape[-1])
