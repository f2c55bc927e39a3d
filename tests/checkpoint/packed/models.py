"""Models of the Llama family as other libraries quantise them, with random integers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.checkpoint import test_llama

SIZES = test_llama.SIZES | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
Pack = Callable[[Tensor, Tensor, Tensor, int], dict[str, Tensor]]


def words(values: Tensor, bits: int) -> Tensor:
    """Pack whole numbers from 0 [..., N] into int32 [..., N * bits / 32], the first into the lowest bits."""
    per_word = 32 // bits
    whole = sum(values[..., place::per_word].long() << bits * place for place in range(per_word))
    assert isinstance(whole, Tensor)
    return torch.where(whole < 2**31, whole, whole - 2**32).to(torch.int32).contiguous()


def gptq(codes: Tensor, scales: Tensor, zeros: Tensor, bits: int, less: int = 1) -> dict[str, Tensor]:
    most = 1 << (bits - 1)
    group = codes.shape[1] // scales.shape[1]
    return {
        "qweight": words(codes.long() + most, bits).mT.contiguous(),
        "qzeros": words((zeros.long() + most - less).mT, bits),
        "scales": scales.mT.contiguous(),
        "g_idx": (torch.arange(codes.shape[1]) // group).to(torch.int32),
    }


def gptq_v2(codes: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> dict[str, Tensor]:
    return gptq(codes, scales, zeros, bits, less=0)


def awq(codes: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> dict[str, Tensor]:
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])

    def interleaved(values: Tensor) -> Tensor:
        unsigned = values.long().mT + 8
        return words(unsigned.unflatten(1, (-1, 8))[..., order].flatten(1), bits)

    return {"qweight": interleaved(codes), "qzeros": interleaved(zeros), "scales": scales.mT.contiguous()}


def compressed_tensors(codes: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> dict[str, Tensor]:
    most = 1 << (bits - 1)
    packed_zeros = words((zeros.long() + most).mT, bits).mT.contiguous()
    shape = torch.tensor(codes.shape)
    packed = {"weight_packed": words(codes.long() + most, bits), "weight_scale": scales, "weight_shape": shape}
    return packed | ({"weight_zero_point": packed_zeros} if zeros.any() else {})


def config_of(pack: Pack, bits: int, group: int | None, symmetric: bool) -> dict[str, Any]:
    """Return the `quantization_config` with the keys that the library writes."""
    if pack is compressed_tensors:
        weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "group_size": group}
        weights |= {"strategy": "channel" if group is None else "group", "dynamic": False}
        groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
        return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    common = {"bits": bits, "group_size": group or -1}
    if pack is awq:
        return {"quant_method": "awq", "version": "gemm", "zero_point": True, **common}
    return {"quant_method": "gptq", "desc_act": False, "sym": symmetric, "checkpoint_format": pack.__name__, **common}


def integers(shape: tuple[int, int], bits: int, group: int | None, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return random codes [O, I], scales in float16 and zero points [O, G]."""
    outputs, inputs = shape
    most, groups = 1 << (bits - 1), inputs // (group or inputs)
    codes = torch.randint(-most, most, shape, dtype=torch.int8)
    zeros = torch.zeros(outputs, groups, dtype=torch.int8)
    if not symmetric:
        zeros = torch.randint(1 - most, most, zeros.shape, dtype=torch.int8)
    scales = (0.5 + torch.rand(outputs, groups)) / most / inputs**0.5
    return codes, scales.half(), zeros


def save(folder: Path, pack: Pack, bits: int, group: int | None, symmetric: bool, **options: Any) -> Any:
    """Write a quantised model, and return transformers' model with the numbers that it stands for, in float32."""
    model = test_llama.saved("Llama", options, folder, sizes=SIZES)
    stored = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in [name for name in stored if name.endswith("proj.weight")]:
            codes, scales, zeros = integers(tuple(stored.pop(name).shape), bits, group, symmetric)
            numbers = (codes.unflatten(1, (scales.shape[1], -1)) - zeros.float()[..., None]) * scales.float()[..., None]
            parameters[name].copy_(numbers.flatten(1))
            for end, tensor in pack(codes, scales, zeros, bits).items():
                stored[name.removesuffix("weight") + end] = tensor
        for name in set(stored) & set(parameters):
            parameters[name].copy_(stored[name])
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = config_of(pack, bits, group, symmetric)
    (folder / "config.json").write_text(json.dumps(config))
    return model
