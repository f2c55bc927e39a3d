"""Pack small matrices with other libraries' own functions, for test_packed_words.py.

    python make.py gptq                  # auto-gptq 0.7.1
    python make.py awq                   # autoawq 0.2.9
    python make.py compressed-tensors    # compressed-tensors 0.20.1

Each is run in an environment with the library, which the tests do not need, and writes FORMAT-BITS.safetensors beside
this file: the tensors of the layout, and what they were packed from, signed `codes` [O, I] and `zeros` [O, G].
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

OUTPUTS, INPUTS, GROUP = 64, 128, 32


def integers(bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return all codes and zero points of so many bits, at random places, and scales [O, G] that are powers of two."""
    generator = torch.Generator().manual_seed(bits)
    most = 1 << (bits - 1)
    codes = torch.randint(-most, most, (OUTPUTS, INPUTS), generator=generator)
    zeros = torch.randint(1 - most, most, (OUTPUTS, INPUTS // GROUP), generator=generator)
    scales = 2.0 ** -torch.randint(1, 5, zeros.shape, generator=generator)
    return codes, zeros, scales


def linear(bits: int) -> tuple[nn.Linear, Tensor, Tensor]:
    """Return a layer whose weights are exact in this quantisation, its unsigned zero points and its scales [O, G]."""
    codes, zeros, scales = integers(bits)
    layer = nn.Linear(INPUTS, OUTPUTS, bias=False)
    numbers = (codes.unflatten(1, (-1, GROUP)) - zeros[..., None]) * scales[..., None]
    layer.weight.data = numbers.flatten(1)
    return layer, zeros + (1 << (bits - 1)), scales


def gptq(bits: int) -> dict[str, Tensor]:
    from auto_gptq.nn_modules.qlinear.qlinear_cuda_old import QuantLinear

    layer, zeros, scales = linear(bits)
    packed = QuantLinear(bits, GROUP, INPUTS, OUTPUTS, bias=False, weight_dtype=torch.float32)
    packed.pack(layer, scales, zeros.float(), None)
    return {name: getattr(packed, name) for name in ("qweight", "qzeros", "scales", "g_idx")}


def awq(bits: int) -> dict[str, Tensor]:
    from awq.modules.linear.gemm import WQLinear_GEMM

    layer, zeros, scales = linear(bits)
    packed = WQLinear_GEMM.from_linear(layer, bits, GROUP, scales=scales.mT, zeros=zeros.mT)
    return {name: getattr(packed, name) for name in ("qweight", "qzeros", "scales")}


def compressed_tensors(bits: int) -> dict[str, Tensor]:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    codes, zeros, scales = (part.to(torch.int8) if i < 2 else part for i, part in enumerate(integers(bits)))
    packed, packed_zeros = pack_to_int32(codes, bits), pack_to_int32(zeros, bits, packed_dim=0)
    return {"weight_packed": packed, "weight_scale": scales, "weight_zero_point": packed_zeros}


def main() -> None:
    name = sys.argv[1]
    makers = {"gptq": (gptq, (4, 8)), "awq": (awq, (4,)), "compressed-tensors": (compressed_tensors, (4, 8))}
    make, widths = makers[name]
    for bits in widths:
        codes, zeros, _ = integers(bits)
        made_from = {"codes": codes.to(torch.int8), "zeros": zeros.to(torch.int8)}
        found = {end: tensor.contiguous() for end, tensor in make(bits).items()}
        save_file(found | made_from, Path(__file__).parent / f"{name}-{bits}.safetensors")


if __name__ == "__main__":
    main()
