"""Read an INetworkDefinition back through TensorRT's bindings: its layers, their parameters and their constants.

A Program has no reference to TensorRT, so it can be kept, sent to another process, and executed many times.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from types import ModuleType
from typing import Any

import torch

from trtllm_pt.checkpoint.quantize import unpack_int4


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the network. Dynamic axes have the size -1."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer: TensorRT's name of its kind, the names of its inputs, and its parameters as plain values."""

    kind: str
    name: str
    inputs: tuple[str | None, ...]  # None for an optional input that is not there
    outputs: tuple[Value, ...]
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Program:
    """A network, its layers in an order in which they can be executed."""

    inputs: tuple[Value, ...]
    outputs: tuple[str, ...]
    layers: tuple[Layer, ...]


def read(trt: ModuleType, network: Any, constants: Mapping[str, torch.Tensor]) -> Program:
    """Read a network definition.

    constants: the values of constant layers by name, for dtypes that the bindings do not give back, such as bfloat16.
    """
    layers = [_layer(trt, network.get_layer(number), constants) for number in range(network.num_layers)]
    maker = {value.name: layer for layer in layers for value in layer.outputs}
    # A layer may have got an input later than it was added, so TensorRT's order is not one of execution.
    reads = {layer.name: {maker[name].name for name in layer.inputs if name in maker} for layer in layers}
    by_name = {layer.name: layer for layer in layers}
    return Program(
        inputs=tuple(_value(trt, network.get_input(number)) for number in range(network.num_inputs)),
        outputs=tuple(network.get_output(number).name for number in range(network.num_outputs)),
        layers=tuple(by_name[name] for name in TopologicalSorter(reads).static_order()),
    )


def _layer(trt: ModuleType, layer: Any, constants: Mapping[str, torch.Tensor]) -> Layer:
    kind = layer.type.name
    inputs = [layer.get_input(number) for number in range(layer.num_inputs)]
    outputs = [layer.get_output(number) for number in range(layer.num_outputs)]
    parameters: dict[str, Any] = {}
    if kind in _CLASSES:  # the bindings return an ILayer, which has no parameters
        layer.__class__ = getattr(trt, _CLASSES[kind])
        parameters = dict(_PARAMETERS[kind](trt, layer))
    if kind == "CONSTANT":
        parameters["value"] = _constant(trt, layer, constants)
    if kind == "ATTENTION_INPUT":  # the mask and the lengths are inputs of the attention, not of its layers
        attention = layer.attention
        inputs = [*(attention.get_input(number) for number in range(3)), attention.mask, attention.key_value_lengths]
    if kind == "DIST_COLLECTIVE":
        parameters = json.loads(layer.metadata)
    return Layer(
        kind=kind,
        name=layer.name,
        inputs=tuple(None if tensor is None else tensor.name for tensor in inputs),
        outputs=tuple(_value(trt, tensor) for tensor in outputs),
        parameters=parameters,
    )


def _value(trt: ModuleType, tensor: Any) -> Value:
    return Value(tensor.name, _dtypes(trt)[tensor.dtype], tuple(tensor.shape))


def _dtypes(trt: ModuleType) -> dict[Any, torch.dtype]:
    names = ("float32", "float16", "bfloat16", "int32", "int64", "int8", "bool")
    return {
        trt.int4: torch.int8,
        trt.fp8: torch.float8_e4m3fn,
        **{getattr(trt, name): getattr(torch, name) for name in names},
    }


def _constant(trt: ModuleType, layer: Any, constants: Mapping[str, torch.Tensor]) -> torch.Tensor:
    weights, shape = layer.weights, tuple(layer.shape)
    if hasattr(weights, "ctypes"):  # an array of numpy, if that has the dtype
        return torch.from_numpy(weights.copy()).reshape(shape)
    value = constants[layer.name]
    return unpack_int4(value) if weights.dtype == trt.int4 else value.reshape(shape)


def _numbers(sizes: Any) -> list[int] | None:
    """Return Dims as a list, or None where a tensor gives them."""
    return None if sizes is None else list(sizes)


def _order(permutation: Any, rank: int) -> list[int]:
    return [permutation[axis] for axis in range(rank)]


def _shuffle(trt: ModuleType, layer: Any) -> Iterator[tuple[str, Any]]:
    before = len(layer.get_input(0).shape)
    after = len(layer.get_output(0).shape)
    yield "before", _order(layer.first_transpose, before)
    yield "after", _order(layer.second_transpose, after)
    yield "zero_copies", layer.zero_is_placeholder
    if layer.num_inputs == 1:
        yield "shape", _numbers(layer.reshape_dims)


def _attention(trt: ModuleType, layer: Any) -> Iterator[tuple[str, Any]]:
    attention = layer.attention
    yield "causal", attention.causal_kind.name
    yield "norm", attention.norm_op.name
    yield "forms", (attention.query_form.name, attention.key_value_form.name)


# The class of each kind of layer in the bindings, and its parameters.
_CLASSES = {
    "ACTIVATION": "IActivationLayer",
    "ATTENTION_INPUT": "IAttentionInputLayer",
    "CAST": "ICastLayer",
    "CONCATENATION": "IConcatenationLayer",
    "CONSTANT": "IConstantLayer",
    "DEQUANTIZE": "IDequantizeLayer",
    "ELEMENTWISE": "IElementWiseLayer",
    "GATHER": "IGatherLayer",
    "KV_CACHE_UPDATE": "IKVCacheUpdateLayer",
    "MATRIX_MULTIPLY": "IMatrixMultiplyLayer",
    "ONE_HOT": "IOneHotLayer",
    "QUANTIZE": "IQuantizeLayer",
    "REDUCE": "IReduceLayer",
    "ROTARY_EMBEDDING": "IRotaryEmbeddingLayer",
    "SHUFFLE": "IShuffleLayer",
    "SLICE": "ISliceLayer",
    "SOFTMAX": "ISoftMaxLayer",
    "TOPK": "ITopKLayer",
    "UNARY": "IUnaryLayer",
}
_PARAMETERS: dict[str, Callable[[ModuleType, Any], Any]] = {
    "ACTIVATION": lambda trt, layer: {"op": trt.IActivationLayer.type.__get__(layer).name},  # ILayer has a `type` too
    "ATTENTION_INPUT": _attention,
    "CAST": lambda trt, layer: {"dtype": _dtypes(trt)[layer.to_type]},
    "CONCATENATION": lambda trt, layer: {"axis": layer.axis},
    "CONSTANT": lambda trt, layer: {},
    "DEQUANTIZE": lambda trt, layer: {"axis": layer.axis},
    "ELEMENTWISE": lambda trt, layer: {"op": layer.op.name},
    "GATHER": lambda trt, layer: {
        "axis": layer.axis,
        "mode": layer.mode.name,
        "batch_axes": layer.num_elementwise_dims,
    },
    "KV_CACHE_UPDATE": lambda trt, layer: {"mode": layer.cache_mode.name, "form": layer.update_form.name},
    "MATRIX_MULTIPLY": lambda trt, layer: {"ops": (layer.op0.name, layer.op1.name)},
    "ONE_HOT": lambda trt, layer: {"axis": layer.axis},
    "QUANTIZE": lambda trt, layer: {"dtype": _dtypes(trt)[layer.get_output(0).dtype]},
    "REDUCE": lambda trt, layer: {"op": layer.op.name, "axes": layer.axes, "keep": layer.keep_dims},
    "ROTARY_EMBEDDING": lambda trt, layer: {"interleaved": layer.interleaved, "size": layer.rotary_embedding_dim},
    "SHUFFLE": _shuffle,
    "SLICE": lambda trt, layer: {
        "start": _numbers(layer.start),
        "sizes": _numbers(layer.shape),
        "stride": _numbers(layer.stride),
        "mode": layer.mode.name,
    },
    "SOFTMAX": lambda trt, layer: {"axes": layer.axes},
    "TOPK": lambda trt, layer: {"op": layer.op.name, "count": layer.k, "axes": layer.axes},
    "UNARY": lambda trt, layer: {"op": layer.op.name},
}
