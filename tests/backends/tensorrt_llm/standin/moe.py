"""The mixture of experts, its plugin included."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor as Data

from tests.backends.tensorrt_llm.standin.attention import fp8
from tests.backends.tensorrt_llm.standin.binding import evaluate, implements
from tests.backends.tensorrt_llm.standin.functional import Tensor, cast, data_of, tensor
from tests.backends.tensorrt_llm.standin.layers import RowLinear
from tests.backends.tensorrt_llm.standin.module import Module, Parameter
from tests.backends.tensorrt_llm.standin.trt import DataType
from tests.backends.tensorrt_llm.standin.weight_only import dequantised

HERE = "tensorrt_llm.layers.moe"


@implements(HERE)
class MoeConfig:
    def __init__(self, num_experts: int, top_k: int, normalization_mode: Any) -> None:
        self.num_experts, self.top_k, self.normalization_mode = num_experts, top_k, normalization_mode


class _Experts(Module):
    """All experts' matrices of one place, in the layout of the quantisation."""

    def __init__(self, columns: int, rows: int, experts: int, quant_mode: Any, dtype: Any) -> None:
        Module.__init__(self)
        self.quant_mode, shape, stored = quant_mode, (experts, rows, columns), dtype
        self.register_parameter("per_channel_scale", None)
        if quant_mode.is_weight_only():
            shape = (experts, columns, rows // (2 if quant_mode.is_int4_weight_only() else 1))
            stored = "int8"
            self.per_channel_scale = Parameter(shape=(experts, rows), dtype=dtype)
        elif quant_mode.has_fp8_qdq():
            stored = "fp8"
            self.activation_scaling_factor = Parameter(shape=(1,), dtype="float32")
            self.weights_scaling_factor = Parameter(shape=(experts, 1), dtype="float32")
        self.weight = Parameter(shape=shape, dtype=stored)

    def multiply(self, expert: int, x: Data) -> Data:
        """x [T, columns] -> [T, rows]."""
        weight = data_of(self.weight.value)[expert]
        if self.quant_mode.is_weight_only():
            scale = data_of(self.per_channel_scale.value)[expert]
            return x @ dequantised(weight, scale)
        if self.quant_mode.has_fp8_qdq():
            scale = data_of(self.activation_scaling_factor.value)
            x, weight = fp8(x / scale) * scale, weight * data_of(self.weights_scaling_factor.value)[expert]
        return x @ weight.mT


@implements(HERE)
class MixtureOfExperts(Module):
    def __init__(
        self,
        moe_config: MoeConfig,
        hidden_size: int,
        ffn_hidden_size: int,
        hidden_act: str,
        mapping: Any,
        bias: bool,
        dtype: Any,
        tp_group: Any,
        tp_size: int,
        quant_mode: Any,
        use_all_reduce: bool,
        pre_quant_scale: bool,
        zero: bool,
        use_w4a8_awq: bool,
        use_int8_weight: bool,
        group_size: int,
        static_routing: bool,
    ) -> None:
        Module.__init__(self)
        assert hidden_act == "swiglu", f"activation {hidden_act} is not covered"
        assert not bias and tp_group is None and tp_size == 1, "only experts without bias, local to a rank, are covered"
        assert mapping.moe_tp_size == mapping.moe_ep_size == 1, "experts divided over ranks are not covered"
        self.moe_config, self.num_experts, self.top_k = moe_config, moe_config.num_experts, moe_config.top_k
        self.hidden_size, self.ffn_hidden_size, self.hidden_act = hidden_size, ffn_hidden_size, hidden_act
        self.mapping, self.bias, self.dtype, self.quant_mode = mapping, bias, dtype, quant_mode
        self.tp_group, self.tp_size, self.use_all_reduce = tp_group, tp_size, use_all_reduce
        self.pre_quant_scale, self.zero, self.use_w4a8_awq = pre_quant_scale, zero, use_w4a8_awq
        self.use_int8_weight, self.group_size, self.static_routing = use_int8_weight, group_size, static_routing
        self.router = RowLinear(hidden_size, self.num_experts, bias=False, dtype="float32", strict_dtype=True)
        self.fc = _Experts(hidden_size, 2 * ffn_hidden_size, self.num_experts, quant_mode, dtype)
        self.proj = _Experts(ffn_hidden_size, hidden_size, self.num_experts, quant_mode, dtype)

    def renormalize(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Chosen experts, and their weights, which sum to one."""
        scores, experts = data_of(cast(logits, "float32")).topk(self.top_k, -1)
        return tensor(experts, DataType.INT32), tensor(scores.softmax(-1))

    def forward(self, hidden_states: Tensor) -> Tensor:
        mode = self.moe_config.normalization_mode
        assert mode == evaluate(HERE, "MoeConfig.ExpertScaleNormalizationMode.RENORMALIZE"), f"{mode!r} is not covered"
        chosen, weights = self.renormalize(self.router(cast(hidden_states, "float32")))
        x = data_of(hidden_states)
        out = x.new_zeros(x.shape)
        for expert in range(self.num_experts):
            rows, place = (data_of(chosen) == expert).nonzero(as_tuple=True)
            if len(rows):
                out.index_add_(0, rows, self._expert(expert, x[rows]) * data_of(weights)[rows, place, None])
        return tensor(out, hidden_states.dtype)

    def _expert(self, expert: int, x: Data) -> Data:
        """The first half of fc's rows is linear, the second goes through the activation."""
        linear, gate = self.fc.multiply(expert, x).chunk(2, -1)
        return self.proj.multiply(expert, F.silu(gate) * linear)
