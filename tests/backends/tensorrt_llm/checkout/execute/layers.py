"""TensorRT's own layers in PyTorch: `LAYERS[kind](layer, *inputs)` gives the output, or a tuple of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.backends.tensorrt_llm.checkout.execute.values import WORKING, ExecutionError, to_fp8
from tests.backends.tensorrt_llm.checkout.tensorrt.enums import FLOATS, DataType, LayerType
from tests.backends.tensorrt_llm.checkout.tensorrt.graph import ILayer

Operation = Callable[..., Any]
LAYERS: dict[LayerType, Operation] = {}


def operation(kind: LayerType) -> Callable[[Operation], Operation]:
    return lambda function: LAYERS.setdefault(kind, function)


def axes_of(mask: int, rank: int) -> list[int]:
    return [axis for axis in range(rank) if mask >> axis & 1]


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


_BINARY: dict[str, Operation] = {
    "SUM": torch.add,
    "PROD": torch.mul,
    "SUB": torch.sub,
    "DIV": _divide,
    "FLOOR_DIV": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "MAX": torch.maximum,
    "MIN": torch.minimum,
    "POW": torch.pow,
    "EQUAL": torch.eq,
    "GREATER": torch.gt,
    "LESS": torch.lt,
    "AND": torch.logical_and,
    "OR": torch.logical_or,
    "XOR": torch.logical_xor,
}
_UNARY: dict[str, Operation] = {
    "EXP": torch.exp,
    "LOG": torch.log,
    "SQRT": torch.sqrt,
    "RECIP": torch.reciprocal,
    "ABS": torch.abs,
    "NEG": torch.neg,
    "SIN": torch.sin,
    "COS": torch.cos,
    "ROUND": torch.round,
    "NOT": torch.logical_not,
}
_ACTIVATIONS: dict[str, Operation] = {"RELU": F.relu, "SIGMOID": torch.sigmoid, "TANH": torch.tanh, "GELU_ERF": F.gelu}


def _known(table: dict[str, Operation], member: Any, layer: ILayer) -> Operation:
    if member.name not in table:
        raise ExecutionError(f"{layer.name}: {member.name} is not known")
    return table[member.name]


@operation(LayerType.ELEMENTWISE)
def _elementwise(layer: ILayer, left: Tensor, right: Tensor) -> Tensor:
    return _known(_BINARY, layer.op, layer)(left, right)


@operation(LayerType.UNARY)
def _unary(layer: ILayer, x: Tensor) -> Tensor:
    return _known(_UNARY, layer.op, layer)(x)


@operation(LayerType.ACTIVATION)
def _activation(layer: ILayer, x: Tensor) -> Tensor:
    return _known(_ACTIVATIONS, layer.function, layer)(x)


@operation(LayerType.IDENTITY)
def _identity(_: ILayer, x: Tensor) -> Tensor:
    return x


@operation(LayerType.CAST)
def _cast(layer: ILayer, x: Tensor) -> Tensor:
    """To a float type nothing is rounded: the weights were, and the arithmetic is compared with exact arithmetic."""
    if layer.to_type in FLOATS:
        return x.to(WORKING)
    return x != 0 if layer.to_type == DataType.BOOL else x.to(torch.int64)


@operation(LayerType.SHAPE)
def _shape(_: ILayer, x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int64)


@operation(LayerType.SHUFFLE)
def _shuffle(layer: ILayer, x: Tensor, sizes: Tensor | None = None) -> Tensor:
    if layer.first_transpose is not None:
        x = x.permute(*layer.first_transpose)
    wanted = layer.reshape_dims if sizes is None else sizes.tolist()
    if wanted is not None:
        x = x.reshape(
            [x.shape[i] if size == 0 and layer.zero_is_placeholder else size for i, size in enumerate(wanted)]
        )
    return x if layer.second_transpose is None else x.permute(*layer.second_transpose)


@operation(LayerType.SOFTMAX)
def _softmax(layer: ILayer, x: Tensor) -> Tensor:
    (axis,) = axes_of(layer.axes, x.dim())
    return torch.softmax(x, axis)


@operation(LayerType.NORMALIZATION)
def _normalization(layer: ILayer, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    if layer.num_groups != 1:
        raise ExecutionError(f"{layer.name}: groups are not known")
    axes = axes_of(layer.axes, x.dim())
    centred = x - x.mean(axes, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(axes, keepdim=True) + layer.epsilon) * scale + bias


@operation(LayerType.REDUCE)
def _reduce(layer: ILayer, x: Tensor) -> Tensor:
    axes, keep = axes_of(layer.axes, x.dim()), bool(layer.keep_dims)
    match layer.op.name:
        case "SUM":
            return x.sum(axes, keepdim=keep)
        case "AVG":
            return _divide(x.sum(axes, keepdim=keep), torch.tensor(math.prod(x.shape[axis] for axis in axes)))
        case "MAX":
            return x.amax(axes, keepdim=keep)
        case "MIN":
            return x.amin(axes, keepdim=keep)
        case "PROD" if len(axes) == 1:
            return x.prod(axes[0], keepdim=keep)
    raise ExecutionError(f"{layer.name}: {layer.op.name} is not known")


@operation(LayerType.CONCATENATION)
def _concatenation(layer: ILayer, *parts: Tensor) -> Tensor:
    return torch.cat(parts, layer.axis)


@operation(LayerType.GATHER)
def _gather(layer: ILayer, data: Tensor, indices: Tensor) -> Tensor:
    match layer.mode.name:
        case "ELEMENT":
            return torch.gather(data, layer.axis, indices)
        case "ND" if layer.num_elementwise_dims == 0:
            return data[tuple(indices.unbind(-1))]
        case "DEFAULT":
            return _taken(layer, data, indices)
    raise ExecutionError(f"{layer.name}: gather {layer.mode.name} with batch axes is not known")


def _taken(layer: ILayer, data: Tensor, indices: Tensor) -> Tensor:
    axis, size = layer.axis, data.shape[layer.axis]
    if indices.numel() and not -size <= int(indices.min()) <= int(indices.max()) < size:
        raise ExecutionError(f"{layer.name}: an index is outside 0 … {size - 1}")
    rows = data.index_select(axis, indices.reshape(-1) % size)
    return rows.reshape([*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]])


@operation(LayerType.SLICE)
def _slice(
    layer: ILayer, x: Tensor, start: Tensor | None = None, sizes: Tensor | None = None, stride: Tensor | None = None
) -> Tensor:
    if layer.mode is not None and layer.mode.name != "STRICT_BOUNDS":
        raise ExecutionError(f"{layer.name}: slice mode {layer.mode.name} is not known")
    given = zip((start, sizes, stride), (layer.start, layer.sizes, layer.stride), strict=True)
    starts, counts, strides = (fixed if tensor is None else tensor.tolist() for tensor, fixed in given)
    for axis, (first, count, step) in enumerate(zip(starts, counts, strides, strict=True)):
        if count and not 0 <= first + step * (count - 1) < x.shape[axis]:
            raise ExecutionError(f"{layer.name}: {count} from {first} by {step} leave axis {axis} of {list(x.shape)}")
        x = x.index_select(axis, first + step * torch.arange(count))
    return x


@operation(LayerType.SELECT)
def _select(_: ILayer, condition: Tensor, then: Tensor, other: Tensor) -> Tensor:
    return torch.where(condition, then, other)


@operation(LayerType.MATRIX_MULTIPLY)
def _matrix_multiply(layer: ILayer, left: Tensor, right: Tensor) -> Tensor:
    factors = []
    for tensor, op in ((left, layer.op0), (right, layer.op1)):
        if op.name == "VECTOR":
            raise ExecutionError(f"{layer.name}: products with vectors are not known")
        factors.append(tensor.mT if op.name == "TRANSPOSE" else tensor)
    return factors[0] @ factors[1]


@operation(LayerType.TOPK)
def _topk(layer: ILayer, x: Tensor, count: Tensor | None = None) -> tuple[Tensor, Tensor]:
    (axis,) = axes_of(layer.axes, x.dim())
    values, indices = torch.topk(x, layer.k if count is None else int(count), axis, largest=layer.op.name == "MAX")
    return values, indices


@operation(LayerType.FILL)
def _fill(
    layer: ILayer, sizes: Tensor | None = None, first: Tensor | None = None, step: Tensor | None = None
) -> Tensor:
    (count,) = layer.sizes if sizes is None else sizes.tolist()
    if layer.op.name != "LINSPACE":
        raise ExecutionError(f"{layer.name}: {layer.op.name} is not known")
    first = torch.tensor(layer.alpha) if first is None else first
    step = torch.tensor(layer.beta) if step is None else step
    return first.reshape(()) + step.reshape(-1)[0] * torch.arange(count)


@operation(LayerType.NON_ZERO)
def _non_zero(_: ILayer, x: Tensor) -> Tensor:
    return torch.nonzero(x).t().contiguous()


@operation(LayerType.SCATTER)
def _scatter(layer: ILayer, data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    if layer.mode.name == "ELEMENT":
        return data.scatter(layer.axis, indices, updates)
    changed = data.clone()
    changed[tuple(indices.unbind(-1))] = updates
    return changed


def _per_channel(scale: Tensor, axis: int, x: Tensor) -> Tensor:
    if scale.numel() == 1:
        return scale.reshape(())
    return scale.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])


@operation(LayerType.QUANTIZE)
def _quantize(layer: ILayer, x: Tensor, scale: Tensor) -> Tensor:
    scaled = x / _per_channel(scale, layer.axis, x)
    if layer.to_type == DataType.FP8:
        return to_fp8(scaled)
    return torch.round(scaled).clamp(-128, 127).to(torch.int8)


@operation(LayerType.DEQUANTIZE)
def _dequantize(layer: ILayer, x: Tensor, scale: Tensor) -> Tensor:
    return x.to(WORKING) * _per_channel(scale, layer.axis, x)
