"""Models whose matrices are stored quantised, as the tools of compressed-tensors store them, with our track axis."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.quantization import is_quantized
from trtllm_pt.model.tensors import tensors

_TOKEN = {"strategy": "token", "dynamic": True, "symmetric": True}
# name: the format, and the weights' and activations' types
SCHEMES: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "int8 w8a8": (
        "int-quantized",
        {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False},
        {"num_bits": 8, "type": "int", **_TOKEN},
    ),
    "fp8 w8a8": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False},
        {"num_bits": 8, "type": "float", **_TOKEN},
    ),
    "int4 w4a16": (
        "pack-quantized",
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True, "dynamic": False},
        None,
    ),
}
_LARGEST = {"int8 w8a8": 127.0, "fp8 w8a8": 448.0, "int4 w4a16": 7.0}


def quantized(model: Path, scheme: str, stored: Path, rounded: Path) -> None:
    """Write the model with quantised matrices to `stored`, and to `rounded` the same values in float32."""
    weights = load_file(model / "model.safetensors")
    plain, packed = dict(weights), dict(weights)
    for spec in filter(is_quantized, tensors(ModelConfig.from_file(model / "config.json"))):
        stem = spec.name.removesuffix("weight")
        plain[spec.name], named = _matrix(packed.pop(spec.name), scheme)
        packed |= {f"{stem}{leaf}": tensor.contiguous() for leaf, tensor in named.items()}
    for folder, content in ((stored, packed), (rounded, plain)):
        shutil.copytree(model, folder)
        save_file(content, folder / "model.safetensors", {"format": "pt"})
    form, weight, activation = SCHEMES[scheme]
    group = {"targets": ["Linear"], "weights": weight, "input_activations": activation}
    described = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
    config = json.loads((model / "config.json").read_text())
    described |= {"ignore": ["lm_head"], "quantization_status": "compressed"}
    (stored / "config.json").write_text(json.dumps(config | {"quantization_config": described}))


def _matrix(whole: Tensor, scheme: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The rounded values of matrices [n, O, I], and the tensors that store them."""
    grouped = whole.view(*whole.shape[:2], -1, 32) if scheme == "int4 w4a16" else whole[:, :, None]
    scale = (grouped.abs().amax(-1, keepdim=True) / _LARGEST[scheme]).clamp(min=1e-8).bfloat16().float()
    levels = grouped / scale
    levels = levels.to(torch.float8_e4m3fn).float() if scheme == "fp8 w8a8" else levels.round()
    rounded, scales = (levels * scale).view(whole.shape), scale.squeeze(-1).bfloat16()
    levels = levels.view(whole.shape)
    if scheme != "int4 w4a16":
        kind = torch.float8_e4m3fn if scheme == "fp8 w8a8" else torch.int8
        return rounded, {"weight": levels.to(kind), "weight_scale": scales}
    nibbles = (levels.to(torch.int64) + 8).view(*whole.shape[:2], -1, 8)  # the first input is in the lowest bits
    words = sum(nibbles[..., place] << (4 * place) for place in range(8))
    assert isinstance(words, Tensor)
    shape = torch.tensor(whole.shape[1:]).expand(len(whole), 2)
    signed = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    return rounded, {"weight_packed": signed, "weight_scale": scales, "weight_shape": shape}
