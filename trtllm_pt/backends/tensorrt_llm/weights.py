"""Convert a rank's file to the parameters of the TensorRT-LLM network.

Weights are split by track where each track has its own module, and quantised matrices are put into the order that
TensorRT-LLM's kernels read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from trtllm_pt.checkpoint.quantize import pack_int4, unpack_int4
from trtllm_pt.model.config import ModelConfig

_MATRIX = re.compile(r"(.*\.layers\.(\d+)\.(?:attention\.(?:qkv|dense)|mlp\.(?:fc|gate|proj|router)))\.(\w+)")
_PACKED = {"W8A16": torch.int8, "W4A16": torch.quint4x2}


def module_weights(stored: dict[str, Tensor], model: ModelConfig, tracks: int, algo: str | None) -> dict[str, Tensor]:
    """Return the network's parameters from the tensors of a rank's file.

    tracks: the number of tracks on this rank. algo: the quantisation of the layers' matrices, or None.
    """
    weights = dict(_split(stored, model, tracks, algo))
    if algo in _PACKED:
        for name, weight in weights.items():
            if weight.dtype == torch.int8:
                weights[name] = kernel_order(weight, algo, weights[name.replace(".weight", ".per_channel_scale")].dtype)
    return weights


def _split(
    stored: dict[str, Tensor], model: ModelConfig, tracks: int, algo: str | None
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in stored.items():
        found = _MATRIX.fullmatch(name)
        is_experts = found is not None and ".mlp." in name and model.is_moe(int(found[2]))
        if tracks == 1 or found is None or (algo is None and not is_experts):
            yield name, tensor
            continue
        for track in range(tracks):
            yield _track_name(found[1], found[3], track, is_experts), tensor[track].contiguous()


def _track_name(module: str, parameter: str, track: int, is_experts: bool) -> str:
    """Return the name of one track's parameter: mlp.2.fc.weight for experts, attention.qkv.2.weight for a matrix."""
    if is_experts:
        parent, child = module.rsplit(".", 1)
        return f"{parent}.{track}.{child}.{parameter}"
    return f"{module}.{track}.{parameter}"


def kernel_order(weight: Tensor, algo: str, dtype: torch.dtype) -> Tensor:
    """Reorder int8 [(E,) out, in] or int4 [(E,) out, in / 2] for the GPU's kernels.

    Of two int4 values in a byte, the even column is in the low half. The weight is transposed to [(E,) in, out] or
    [(E,) in, out / 2], as TensorRT-LLM's op expects, which then reorders it. dtype: of the activations.
    """
    transposed = pack_int4(unpack_int4(weight).mT) if algo == "W4A16" else weight.mT
    ordered: Tensor = torch.ops.trtllm.preprocess_weights_for_mixed_gemm(transposed.contiguous(), _PACKED[algo], dtype)
    return ordered
