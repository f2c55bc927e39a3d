"""What each kind of layer makes of its inputs: shape, type, and contents where they are integers known beforehand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.backends.tensorrt_llm.checkout.tensorrt import dimensions
from tests.backends.tensorrt_llm.checkout.tensorrt.dimensions import Size, Symbolic, product
from tests.backends.tensorrt_llm.checkout.tensorrt.enums import DataType, LayerType
from tests.backends.tensorrt_llm.checkout.tensorrt.graph import Content, ILayer, Inferred, ITensor, NetworkError

Rule = Callable[[ILayer], list[Inferred]]
RULES: dict[LayerType, Rule] = {}

_NUMPY_TYPES = {np.float32: DataType.FLOAT, np.float16: DataType.HALF, np.int32: DataType.INT32}
_NUMPY_TYPES |= {np.int64: DataType.INT64, np.int8: DataType.INT8, np.bool_: DataType.BOOL}
_INTEGERS = {DataType.INT32: np.int32, DataType.INT64: np.int64}
_LONGEST_CONTENT = 64  # shapes are short; a longer integer constant is data


def rule(*kinds: LayerType) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return register


def unknown_size(layer: ILayer, what: str) -> Symbolic:
    return Symbolic.named(f"{layer.name}.{what}")


def broadcast(left: list[Size], right: list[Size], layer: ILayer) -> list[Size]:
    if len(left) != len(right):
        raise NetworkError(f"{layer.name}: operands {left} and {right} differ in rank")
    return [_broadcast_size(a, b, layer) for a, b in zip(left, right, strict=True)]


def _broadcast_size(a: Size, b: Size, layer: ILayer) -> Size:
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    if isinstance(a, int) and isinstance(b, int):
        raise NetworkError(f"{layer.name}: sizes {a} and {b} do not broadcast")
    return a if isinstance(a, int) else b  # the run will show whether they are equal


def same_type(layer: ILayer, tensors: list[ITensor]) -> None:
    found = {tensor.dtype.name for tensor in tensors}
    if layer.network.strongly_typed and len(found) > 1:
        raise NetworkError(f"{layer.name}: a strongly typed network cannot mix {' and '.join(sorted(found))}")


def as_list(content: Content) -> list[Size]:
    assert content is not None
    return content if isinstance(content, list) else [content]


@rule(LayerType.CONSTANT)
def _constant(layer: ILayer) -> list[Inferred]:
    weights, count = layer.weights, product(layer.sizes)
    dtype = weights.dtype or _NUMPY_TYPES[weights.array.dtype.type]
    content: Content = None
    if dtype in _INTEGERS and len(layer.sizes) <= 1 and count <= _LONGEST_CONTENT:
        numbers = np.frombuffer(weights.raw(count * np.dtype(_INTEGERS[dtype]).itemsize), _INTEGERS[dtype]).tolist()
        content = numbers if layer.sizes else numbers[0]
    return [Inferred(list(layer.sizes), dtype, content)]


@rule(LayerType.IDENTITY)
def _identity(layer: ILayer) -> list[Inferred]:
    return [layer.inputs[0].inferred]


@rule(LayerType.CAST)
def _cast(layer: ILayer) -> list[Inferred]:
    x = layer.inputs[0]
    return [Inferred(x.dims, layer.to_type, x.content if layer.to_type in _INTEGERS else None)]


@rule(LayerType.SHAPE)
def _shape(layer: ILayer) -> list[Inferred]:
    dims = layer.inputs[0].dims
    return [Inferred([len(dims)], DataType.INT64, dims)]


@rule(LayerType.UNARY, LayerType.ACTIVATION, LayerType.SOFTMAX, LayerType.NORMALIZATION, LayerType.SCATTER)
def _like_the_first(layer: ILayer) -> list[Inferred]:
    return [layer.inputs[0].inferred._replace(content=None)]


@rule(LayerType.SHUFFLE)
def _shuffle(layer: ILayer) -> list[Inferred]:
    x = layer.inputs[0]
    source = _permuted(x.dims, layer.first_transpose)
    wanted = _reshape_sizes(layer)
    dims = source if wanted is None else _reshaped(layer, source, wanted)
    dims = _permuted(dims, layer.second_transpose)
    content = None
    if x.content is not None and len(dims) <= 1:
        content = as_list(x.content) if dims else as_list(x.content)[0]
    return [Inferred(dims, x.dtype, content)]


def _permuted(dims: list[Size], order: list[int] | None) -> list[Size]:
    return dims if order is None else [dims[axis] for axis in order]


def _reshape_sizes(layer: ILayer) -> list[Size] | None:
    if layer.num_inputs < 2 or layer.inputs[1] is None:
        return None if layer.reshape_dims is None else list(layer.reshape_dims)
    if layer.inputs[1].content is not None:
        return as_list(layer.inputs[1].content)
    return [unknown_size(layer, f"size{axis}") for axis in range(layer.inputs[1].dims[0])]


def _reshaped(layer: ILayer, source: list[Size], wanted: list[Size]) -> list[Size]:
    dims = [source[axis] if size == 0 and layer.zero_is_placeholder else size for axis, size in enumerate(wanted)]
    if -1 in dims:
        known = product(size for size in dims if size != -1)
        dims = [dimensions.divide(product(source), known) if size == -1 else size for size in dims]
    before, after = product(source), product(dims)
    if isinstance(before, int) and isinstance(after, int) and before != after:
        raise NetworkError(f"{layer.name}: {source} cannot become {dims}")
    return dims


_ON_SIZES: dict[str, Callable[[Size, Size], Size]] = {
    "SUM": lambda a, b: a + b,
    "SUB": lambda a, b: a - b,
    "PROD": lambda a, b: a * b,
    "DIV": dimensions.divide,
    "FLOOR_DIV": dimensions.divide,
    "MIN": dimensions.smaller,
    "MAX": dimensions.larger,
}
_COMPARISONS = ("EQUAL", "GREATER", "LESS", "AND", "OR", "XOR")


@rule(LayerType.ELEMENTWISE)
def _elementwise(layer: ILayer) -> list[Inferred]:
    left, right = layer.inputs
    same_type(layer, [left, right])
    dims = broadcast(left.dims, right.dims, layer)
    dtype = DataType.BOOL if layer.op.name in _COMPARISONS else left.dtype
    content: Content = None
    if left.content is not None and right.content is not None and layer.op.name in _ON_SIZES:
        a, b = as_list(left.content), as_list(right.content)
        count = max(len(a), len(b))
        pairs = zip(a * (count // len(a)), b * (count // len(b)), strict=True)
        numbers = [_ON_SIZES[layer.op.name](x, y) for x, y in pairs]
        content = numbers if dims else numbers[0]
    return [Inferred(dims, dtype, content)]


@rule(LayerType.REDUCE)
def _reduce(layer: ILayer) -> list[Inferred]:
    x = layer.inputs[0]
    gone = [bool(layer.axes >> axis & 1) for axis in range(len(x.dims))]
    dims = [1 if out else size for size, out in zip(x.dims, gone, strict=True) if layer.keep_dims or not out]
    return [Inferred(dims, x.dtype)]


@rule(LayerType.CONCATENATION)
def _concatenation(layer: ILayer) -> list[Inferred]:
    same_type(layer, layer.inputs)
    dims = layer.inputs[0].dims
    dims[layer.axis] = sum((tensor.dims[layer.axis] for tensor in layer.inputs), start=0)
    contents = [tensor.content for tensor in layer.inputs]
    content = None
    if len(dims) == 1 and None not in contents:
        content = [size for part in contents for size in as_list(part)]
    return [Inferred(dims, layer.inputs[0].dtype, content)]


@rule(LayerType.GATHER)
def _gather(layer: ILayer) -> list[Inferred]:
    data, indices = layer.inputs
    match layer.mode.name:
        case "ELEMENT":
            dims = indices.dims
        case "ND":
            dims = indices.dims[:-1] + data.dims[indices.dims[-1] + layer.num_elementwise_dims :]
        case _:
            dims = data.dims[: layer.axis] + indices.dims + data.dims[layer.axis + 1 :]
    content = None
    if len(data.dims) == 1 and data.content is not None and indices.content is not None:
        numbers = [data.content[index] for index in as_list(indices.content)]
        content = numbers if isinstance(indices.content, list) else numbers[0]
    return [Inferred(dims, data.dtype, content)]


@rule(LayerType.SLICE)
def _slice(layer: ILayer) -> list[Inferred]:
    x = layer.inputs[0]
    start, sizes, stride = (
        _slice_argument(layer, number, fixed)
        for number, fixed in enumerate((layer.start, layer.sizes, layer.stride), start=1)
    )
    content = None
    if isinstance(x.content, list) and all(isinstance(part[0], int) for part in (start, sizes, stride)):
        content = [x.content[start[0] + step * stride[0]] for step in range(sizes[0])]
    return [Inferred(sizes, x.dtype, content)]


def _slice_argument(layer: ILayer, number: int, fixed: tuple[int, ...]) -> list[Size]:
    if layer.num_inputs <= number or layer.inputs[number] is None:
        return list(fixed)
    content = layer.inputs[number].content
    axes = range(len(layer.inputs[0].dims))
    return [unknown_size(layer, f"{number}.{axis}") for axis in axes] if content is None else as_list(content)


@rule(LayerType.SELECT)
def _select(layer: ILayer) -> list[Inferred]:
    condition, then, other = layer.inputs
    if condition.dtype != DataType.BOOL:
        raise NetworkError(f"{layer.name}: the condition is {condition.dtype.name}, not BOOL")
    same_type(layer, [then, other])
    return [Inferred(broadcast(broadcast(condition.dims, then.dims, layer), other.dims, layer), then.dtype)]


@rule(LayerType.MATRIX_MULTIPLY)
def _matrix_multiply(layer: ILayer) -> list[Inferred]:
    same_type(layer, layer.inputs)
    left, right = (
        _transposed(tensor.dims, op.name == "TRANSPOSE")
        for tensor, op in zip(layer.inputs, (layer.op0, layer.op1), strict=True)
    )
    if left[-1] != right[-2]:
        raise NetworkError(f"{layer.name}: {left} cannot be multiplied by {right}")
    return [Inferred(broadcast(left[:-2], right[:-2], layer) + [left[-2], right[-1]], layer.inputs[0].dtype)]


def _transposed(dims: list[Size], swap: bool) -> list[Size]:
    return [*dims[:-2], dims[-1], dims[-2]] if swap else dims


@rule(LayerType.TOPK)
def _topk(layer: ILayer) -> list[Inferred]:
    x = layer.inputs[0]
    dims = [layer.k if layer.axes >> axis & 1 else size for axis, size in enumerate(x.dims)]
    return [Inferred(dims, x.dtype), Inferred(dims, DataType.INT32)]


@rule(LayerType.FILL)
def _fill(layer: ILayer) -> list[Inferred]:
    dims: list[Size] = list(layer.sizes)
    if layer.num_inputs and layer.inputs[0] is not None:
        content = layer.inputs[0].content
        dims = [unknown_size(layer, "size")] if content is None else as_list(content)
    return [Inferred(dims, layer.to_type or DataType.FLOAT)]


@rule(LayerType.NON_ZERO)
def _non_zero(layer: ILayer) -> list[Inferred]:
    return [Inferred([len(layer.inputs[0].dims), unknown_size(layer, "count")], DataType.INT64)]


@rule(LayerType.QUANTIZE, LayerType.DEQUANTIZE)
def _quantize(layer: ILayer) -> list[Inferred]:
    return [Inferred(layer.inputs[0].dims, layer.to_type)]
