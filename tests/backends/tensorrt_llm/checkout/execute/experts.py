"""The MixtureOfExperts plugin: plain, weight-only and FP8 experts with a gated SiLU, chosen by the network's router.

Rows of the first matrix are [linear | gate]; the activation is the gate's (moe_kernels.cu, doGatedActivation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.backends.tensorrt_llm.checkout.execute.packed import plain_weight
from tests.backends.tensorrt_llm.checkout.execute.values import WORKING, ExecutionError, to_fp8
from tests.backends.tensorrt_llm.checkout.tensorrt.plugins import Plugin

# Bits of TensorRT-LLM's QuantMode.
INT4_WEIGHTS, INT8_WEIGHTS, FP8_QDQ = 1, 2, 256
_SWIGLU = 5


@dataclass(frozen=True)
class Expert:
    """x -> up(x), and the hidden values -> down(hidden)."""

    up: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]


def experts(plugin: Plugin, x: Tensor, up: Tensor, down: Tensor, chosen: Tensor, *rest: Tensor) -> Tensor:
    """x [T, W]; up [E, 2 F, W], down [E, W, F], transposed where weight-only; chosen [T, k]; then scales."""
    _check(plugin)
    weights, *scales = rest if plugin.scalar("use_final_scales") else (torch.ones(chosen.shape, dtype=WORKING), *rest)
    hidden_size = plugin.scalar("expert_hidden_size")
    out = torch.zeros(x.shape[0], hidden_size, dtype=WORKING)
    for number in range(up.shape[0]):
        tokens, choice = torch.nonzero(chosen == number, as_tuple=True)
        expert = _expert(plugin, number, up, down, scales)
        linear, gate = expert.up(x[tokens]).chunk(2, -1)
        y = expert.down(linear * F.silu(gate))
        out.index_add_(0, tokens, y * weights[tokens, choice][:, None])
    return out


def _check(plugin: Plugin) -> None:
    if plugin.scalar("activation_type") != _SWIGLU:
        raise ExecutionError(f"MixtureOfExperts with activation {plugin.scalar('activation_type')} is not known")
    for name, only in (("ep_size", 1), ("use_bias", 0), ("use_lora", 0), ("groupwise_quant_algo", 0)):
        if plugin.scalar(name) != only:
            raise ExecutionError(f"MixtureOfExperts with {name} {plugin.scalar(name)} is not known")


def _expert(plugin: Plugin, number: int, up: Tensor, down: Tensor, scales: list[Tensor]) -> Expert:
    mode = plugin.scalar("quant_mode")
    if mode & (INT4_WEIGHTS | INT8_WEIGHTS):
        up_scale, down_scale = (scale[number] for scale in scales)
        w_up = plain_weight(up[number], len(up_scale)).to(WORKING) * up_scale
        w_down = plain_weight(down[number], len(down_scale)).to(WORKING) * down_scale
        return Expert(lambda x: x @ w_up, lambda hidden: hidden @ w_down)
    if mode & FP8_QDQ:
        up_scale, to_hidden, down_scale = scales
        return Expert(
            lambda x: x @ up[number].mT * up_scale[number],
            lambda hidden: to_fp8(hidden * to_hidden) @ down[number].mT * down_scale[number],
        )
    if scales:
        raise ExecutionError(f"MixtureOfExperts has {len(scales)} inputs too many for quant_mode {mode}")
    return Expert(lambda x: x @ up[number].mT, lambda hidden: hidden @ down[number].mT)
