"""The plugin registry, and the outputs of TensorRT-LLM's plugins."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tests.backends.tensorrt_llm.checkout.tensorrt.enums import DTYPE_OF_ID, DataType, LayerType, PluginFieldType
from tests.backends.tensorrt_llm.checkout.tensorrt.graph import ILayer, Inferred, NetworkError
from tests.backends.tensorrt_llm.checkout.tensorrt.shapes import rule

# Strategies without a workspace input: NCCL, UB, NCCL_SYMMETRIC.
PLAIN_STRATEGIES = (0, 2, 8)


class PluginField:
    def __init__(self, name: str = "", data: Any = None, type: Any = PluginFieldType.UNKNOWN) -> None:
        self.name, self.data, self.type = name, np.asarray(data), type


class PluginFieldCollection(list[PluginField]):
    pass


class Plugin:
    """A plugin's kind and its fields."""

    def __init__(self, creator: IPluginCreator, fields: Iterable[PluginField]) -> None:
        self.plugin_type, self.plugin_version = creator.name, creator.plugin_version
        self.plugin_namespace = creator.plugin_namespace
        self.fields = {field.name: field.data for field in fields}
        self.num_outputs = _OUTPUTS.get(self.plugin_type, lambda _: 1)(self)

    def scalar(self, name: str, default: Any = None) -> Any:
        """The first number in a field."""
        return self.fields[name].reshape(-1)[0].item() if name in self.fields else default

    def numbers(self, name: str) -> tuple[int, ...]:
        return tuple(self.fields[name].reshape(-1).tolist())


class IPluginCreator:
    def __init__(self, name: str, version: str, namespace: str) -> None:
        self.name, self.plugin_version, self.plugin_namespace = name, version, namespace

    def create_plugin(self, name: str, field_collection: Iterable[PluginField], *_: Any) -> Plugin:
        return Plugin(self, field_collection)


class IPluginRegistry:
    """Has a creator for every name: one that nothing here understands is refused when the network is checked."""

    def get_plugin_creator(self, type: str, version: str, plugin_namespace: str = "") -> IPluginCreator:
        return IPluginCreator(type, version, plugin_namespace)

    get_creator = get_plugin_creator


_REGISTRY = IPluginRegistry()


def get_plugin_registry() -> IPluginRegistry:
    return _REGISTRY


def init_libnvinfer_plugins(*_: Any) -> bool:
    return True


_OUTPUTS: dict[str, Callable[[Plugin], int]] = {
    "AllReduce": lambda plugin: 2 if plugin.scalar("fusion_op") else 1,
    "TopkLastDim": lambda _: 2,
    "GPTAttention": lambda plugin: 2 if plugin.scalar("use_cache") and not plugin.scalar("paged_kv_cache") else 1,
}


@rule(LayerType.PLUGIN_V2, LayerType.PLUGIN_V3)
def _plugin(layer: ILayer) -> list[Inferred]:
    kind = layer.plugin.plugin_type
    if kind not in _RESULTS:
        raise NetworkError(f"{layer.name}: nothing is known of the outputs of plugin {kind}")
    return _RESULTS[kind](layer, layer.plugin)


def _like_the_first(layer: ILayer, _: Plugin) -> list[Inferred]:
    return [layer.inputs[0].inferred._replace(content=None)]


def _attention(layer: ILayer, plugin: Plugin) -> list[Inferred]:
    qkv = layer.inputs[0]
    heads, kv_heads, size = (plugin.scalar(name) for name in ("num_heads", "num_kv_heads", "head_size"))
    if qkv.dims[-1] != (heads + 2 * kv_heads) * size:
        raise NetworkError(f"{layer.name}: qkv is {qkv.dims[-1]} wide, not ({heads} + 2 * {kv_heads}) * {size}")
    dtype = DataType.FP8 if plugin.scalar("use_fp8_context_fmha") else qkv.dtype
    context = Inferred([*qkv.dims[:-1], heads * size], dtype)
    return [context, *[layer.inputs[8].inferred] * (len(layer.outputs) - 1)]


def _all_reduce(layer: ILayer, plugin: Plugin) -> list[Inferred]:
    x, strategy = layer.inputs[0], plugin.scalar("strategy")
    inputs = 1 if strategy in PLAIN_STRATEGIES else 2
    if not plugin.scalar("fusion_op") and layer.num_inputs != inputs:
        raise NetworkError(f"{layer.name}: strategy {strategy} takes {inputs} inputs, not {layer.num_inputs}")
    if x.dtype != DTYPE_OF_ID[plugin.scalar("type_id")]:
        raise NetworkError(f"{layer.name}: type_id is {plugin.scalar('type_id')}, the operand {x.dtype.name}")
    return [Inferred(x.dims, x.dtype)] * len(layer.outputs)


def _all_gather(layer: ILayer, plugin: Plugin) -> list[Inferred]:
    x = layer.inputs[0]
    return [Inferred([x.dims[0] * len(plugin.numbers("group")), *x.dims[1:]], x.dtype)]


def _gemm(layer: ILayer, plugin: Plugin) -> list[Inferred]:
    left, right = layer.inputs[0].dims, layer.inputs[1].dims
    if plugin.scalar("transa"):
        left[-1], left[-2] = left[-2], left[-1]
    if plugin.scalar("transb"):
        right[-1], right[-2] = right[-2], right[-1]
    if left[-1] != right[-2]:
        raise NetworkError(f"{layer.name}: {left} cannot be multiplied by {right}")
    return [Inferred([*left[:-1], right[-1]], DTYPE_OF_ID[plugin.scalar("type_id")])]


def _weight_only(layer: ILayer, _: Plugin) -> list[Inferred]:
    x, weight, scale = layer.inputs
    if x.dims[-1] != weight.dims[0]:
        raise NetworkError(f"{layer.name}: {x.dims} cannot be multiplied by {weight.dims}")
    return [Inferred([*x.dims[:-1], scale.dims[-1]], x.dtype)]


def _experts(layer: ILayer, plugin: Plugin) -> list[Inferred]:
    return [Inferred(layer.inputs[0].dims, DTYPE_OF_ID[plugin.scalar("output_type_id")])]


def _topk(layer: ILayer, plugin: Plugin) -> list[Inferred]:
    x = layer.inputs[0]
    dims = [*x.dims[:-1], plugin.scalar("k")]
    return [Inferred(dims, x.dtype), Inferred(dims, DataType.INT32)]


def _lookup(layer: ILayer, plugin: Plugin) -> list[Inferred]:
    tokens, table = layer.inputs[:2]
    return [Inferred([*tokens.dims, table.dims[-1]], DTYPE_OF_ID[plugin.scalar("type_id")])]


_RESULTS: dict[str, Callable[[ILayer, Plugin], list[Inferred]]] = {
    "AllGather": _all_gather,
    "AllReduce": _all_reduce,
    "GPTAttention": _attention,
    "Gemm": _gemm,
    "Identity": _like_the_first,
    "Lookup": _lookup,
    "MixtureOfExperts": _experts,
    "TopkLastDim": _topk,
    "WeightOnlyQuantMatmul": _weight_only,
}
