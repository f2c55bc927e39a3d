"""Quantised layers, and how a model gets them."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable
from typing import Any

from tests.backends.tensorrt_llm.standin.attention import fp8
from tests.backends.tensorrt_llm.standin.binding import evaluate, implements
from tests.backends.tensorrt_llm.standin.functional import Tensor, data_of, tensor
from tests.backends.tensorrt_llm.standin.layers import Attention, Linear, RowLinear
from tests.backends.tensorrt_llm.standin.module import Module, Parameter
from tests.backends.tensorrt_llm.standin.moe import MixtureOfExperts
from tests.backends.tensorrt_llm.standin.trt import TORCH, DataType, dtype_of
from tests.backends.tensorrt_llm.standin.weight_only import dequantised

LAYERS = "tensorrt_llm.quantization.layers"
QUANTIZE = "tensorrt_llm.quantization.quantize"
EXCLUDED = ("*lm_head", "*router", "*vocab_embedding", "*position_embedding", "*block_embedding", "*shared_expert_gate")


# --- Weight-only ------------------------------------------------------------------------------------------------------


class _WeightOnly(Module):
    def _quantise(self, quant_mode: Any, dtype: Any) -> None:
        packed = 2 if quant_mode.is_int4_weight_only() else 1
        self.weight_only_quant_mode, self.quant_mode = packed, quant_mode
        self.weight = Parameter(shape=(self.in_features, self.out_features // packed), dtype="int8")
        self.per_channel_scale = Parameter(shape=(self.out_features,), dtype=dtype)

    def _multiply(self, x: Tensor) -> Tensor:
        assert x.dtype == self.per_channel_scale.dtype, "the plugin's input and scales are of one dtype"
        return tensor(
            data_of(x) @ dequantised(data_of(self.weight.value), data_of(self.per_channel_scale.value)), x.dtype
        )


def _padded(features: int, tp_size: int) -> int:
    """The kernels' sizes are multiples of 64 on every rank; TensorRT-LLM makes larger layers of others."""
    return -(-features // (64 * tp_size)) * 64 * tp_size


@implements(LAYERS)
class WeightOnlyQuantLinear(_WeightOnly, Linear):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        dtype: Any,
        tp_group: Any,
        tp_size: int,
        tp_rank: int,
        gather_output: bool,
        quant_mode: Any,
        is_qkv: bool,
    ) -> None:
        columns, rows = _padded(in_features, tp_size), _padded(out_features, tp_size)
        Linear.__init__(self, columns, rows, bias, dtype, tp_group, tp_size, gather_output, is_qkv=is_qkv)
        self._quantise(quant_mode, dtype)

    def forward(self, x: Tensor, lora_runtime_params: None) -> Tensor:
        assert not self._meets, "a quantised layer divided over ranks is not covered"
        return self._biased(self._multiply(x))


@implements(LAYERS)
class WeightOnlyQuantRowLinear(_WeightOnly, RowLinear):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        dtype: Any,
        tp_group: Any,
        tp_size: int,
        tp_rank: int,
        quant_mode: Any,
    ) -> None:
        columns, rows = _padded(in_features, tp_size), _padded(out_features, tp_size)
        RowLinear.__init__(self, columns, rows, bias, dtype, tp_group, tp_size)
        self._quantise(quant_mode, dtype)

    def forward(self, x: Tensor, lora_runtime_params: None, all_reduce_params: Any) -> Tensor:
        assert not self._meets, "a quantised layer divided over ranks is not covered"
        return self._biased(self._multiply(x))


@implements("tensorrt_llm.quantization.functional")
def dequantize(input: Tensor, scale_factor: Tensor, output_type: Any) -> Tensor:
    dtype = dtype_of(output_type)
    assert input.dtype in (DataType.FP8, DataType.INT8) and scale_factor.dtype in (dtype, DataType.FLOAT)
    return tensor(data_of(input) * data_of(scale_factor), dtype)


# --- FP8 --------------------------------------------------------------------------------------------------------------


class _Fp8(Module):
    def _quantise(self) -> None:
        self.weight = Parameter(shape=(self.out_features, self.in_features), dtype="fp8")
        self.activation_scaling_factor = Parameter(shape=(1,), dtype="float32")
        self.weights_scaling_factor = Parameter(shape=(1,), dtype="float32")

    def _multiply(self, x: Tensor) -> Tensor:
        """Both scales are rounded to the layer's dtype on the way."""
        dtype = dtype_of(self.dtype)
        scale, weight_scale = (
            data_of(factor.value).to(TORCH[dtype]).float()
            for factor in (self.activation_scaling_factor, self.weights_scaling_factor)
        )
        assert self.weight.dtype == DataType.FP8
        if x.dtype == DataType.FP8:
            rounded = data_of(x) * scale
        else:
            assert x.dtype == dtype, f"an input of {x.dtype.name} for a layer of {dtype.name}"
            rounded = fp8(data_of(x) / scale) * scale
        return tensor(rounded @ (data_of(self.weight.value) * weight_scale).mT, dtype)


@implements(LAYERS)
class FP8Linear(_Fp8, Linear):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        dtype: Any,
        tp_group: Any,
        tp_size: int,
        gather_output: bool,
        is_qkv: bool,
    ) -> None:
        Linear.__init__(self, in_features, out_features, bias, dtype, tp_group, tp_size, gather_output, is_qkv=is_qkv)
        self._quantise()

    def forward(self, x: Tensor, lora_runtime_params: None) -> Tensor:
        assert not self._meets, "a quantised layer divided over ranks is not covered"
        return self._biased(self._multiply(x))


@implements(LAYERS)
class FP8RowLinear(_Fp8, RowLinear):
    def __init__(
        self, in_features: int, out_features: int, bias: bool, dtype: Any, tp_group: Any, tp_size: int
    ) -> None:
        RowLinear.__init__(self, in_features, out_features, bias, dtype, tp_group, tp_size)
        self._quantise()

    def forward(self, x: Tensor, lora_runtime_params: None, all_reduce_params: Any) -> Tensor:
        assert not self._meets, "a quantised layer divided over ranks is not covered"
        return self._biased(self._multiply(x))


# --- A whole model ----------------------------------------------------------------------------------------------------


@implements(QUANTIZE)
def quantize(model: Any, quant_config: Any) -> Any:
    """Replaces the model's layers, as the algorithm wants it; a mixture of experts makes itself anew."""
    mode = quant_config.quant_mode
    if mode.has_fp8_qdq():
        _replace(model, quant_config, {Linear: FP8Linear, RowLinear: FP8RowLinear})
    elif mode.is_weight_only():
        _replace(model, quant_config, {Linear: WeightOnlyQuantLinear, RowLinear: WeightOnlyQuantRowLinear})
    if mode.has_kv_cache_quant():
        for _, module in model.named_modules():
            if isinstance(module, Attention):
                module.kv_cache_scaling_factor = Parameter(shape=(1,), dtype="float32")
                module.kv_cache_rcp_scaling_factor = Parameter(shape=(1,), dtype="float32")
    model.quant_mode = mode
    return model


def _replace(model: Any, quant_config: Any, layers: dict[type, type]) -> None:
    for name, module, parent in model.named_modules_with_parent():
        excluded = any(fnmatch.fnmatchcase(name, pattern) for pattern in quant_config.exclude_modules or EXCLUDED)
        if isinstance(module, MixtureOfExperts):
            made = _again(module, type(module), quant_mode=_mode(excluded, quant_config))
        elif excluded or (replacement := _replacement(module, layers)) is None:
            continue
        else:
            made = _again(module, replacement, **_features(module), **_only(replacement, quant_config, model))
        setattr(parent, name.rpartition(".")[2], made)


def _replacement(module: Any, layers: dict[type, type]) -> type | None:
    return next((made for kind, made in layers.items() if isinstance(module, kind)), None)


def _mode(excluded: bool, quant_config: Any) -> Any:
    return evaluate(LAYERS, "QuantMode(0)") if excluded else quant_config.quant_mode


def _features(module: Any) -> dict[str, Any]:
    """The whole layer's sizes, of which the module holds a rank's part."""
    if isinstance(module, Linear):
        return {"out_features": module.out_features * module.tp_size, "bias": module.bias is not None}
    return {"in_features": module.in_features * module.tp_size, "bias": module.bias is not None}


def _only(replacement: type, quant_config: Any, model: Any) -> dict[str, Any]:
    if issubclass(replacement, _WeightOnly):
        return {"quant_mode": quant_config.quant_mode, "tp_rank": model.config.mapping.tp_rank}
    return {}


def _again(module: Any, replacement: Callable[..., Any], **changes: Any) -> Any:
    """The module made anew, its arguments read from its attributes."""
    own, wanted = (list(inspect.signature(c.__init__).parameters)[1:] for c in (type(module), replacement))
    arguments = {name: getattr(module, name) for name in own if name in wanted and name not in changes}
    return replacement(**arguments, **changes)
