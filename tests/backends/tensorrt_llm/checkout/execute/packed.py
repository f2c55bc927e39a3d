"""Weight-only matrices, in the order that a checkpoint stores; and the op that would bring them into the kernels'.

TensorRT-LLM's compiled op interleaves rows and columns for the GPU at hand, which only such a GPU's kernels can read.
Here it does nothing, and the plugins' stand-ins read the plain order.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LIBRARIES: list[torch.library.Library] = []  # an op is there as long as its library


def define_reordering() -> None:
    """Puts `torch.ops.trtllm.preprocess_weights_for_mixed_gemm` there, with the arguments of the compiled one."""
    name, library = "preprocess_weights_for_mixed_gemm", torch.library.Library("trtllm", "FRAGMENT")
    library.define(f"{name}(Tensor weight, ScalarType quant_type, ScalarType activation_type) -> Tensor")
    library.impl(name, _unchanged, "CPU")
    _LIBRARIES.append(library)


def _unchanged(weight: Tensor, quant_type: torch.dtype, activation_type: torch.dtype) -> Tensor:
    """weight int8 [(experts,) in, out], or two values of 4 bits a byte for quint4x2."""
    if weight.dtype != torch.int8 or weight.dim() not in (2, 3) or not weight.is_contiguous():
        raise RuntimeError(
            f"the op takes contiguous int8 of two or three axes, not {weight.dtype} {list(weight.shape)}"
        )
    if quant_type not in (torch.int8, torch.quint4x2) or activation_type not in (torch.bfloat16, torch.float16):
        raise RuntimeError(f"there is no kernel for {quant_type} weights and {activation_type} activations")
    return weight.clone()


def plain_weight(stored: Tensor, columns: int) -> Tensor:
    """int8 [..., in, columns] from as many bytes, or from half as many with the even column in a byte's low half."""
    if stored.shape[-1] == columns:
        return stored
    low, high = stored << 4 >> 4, stored >> 4  # of int8: the shift to the right keeps the sign
    return torch.stack((low, high), -1).flatten(-2)
