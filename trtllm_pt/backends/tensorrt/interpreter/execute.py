"""Execute a Program on PyTorch, layer by layer, as the documentation of each TensorRT layer says.

Products and reductions accumulate in a wider dtype than the network's, and round once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trtllm_pt.backends.tensorrt.interpreter.program import Layer, Program


@dataclass(frozen=True, slots=True)
class Meeting:
    """A collective that a rank has reached: what it contributes."""

    collective: str  # ALL_REDUCE or ALL_GATHER
    op: str  # SUM, AVG or NONE
    ranks: int
    value: Tensor


Execution = Generator[Meeting, Tensor, dict[str, Tensor]]


def execute(program: Program, inputs: Mapping[str, Tensor]) -> Execution:
    """Execute a network: yield each collective, receive its result, and return the outputs by name."""
    values: dict[str, Tensor] = {}
    for wanted in program.inputs:
        values[wanted.name] = _checked(inputs[wanted.name], wanted.name, wanted.dtype, wanted.shape)
    for layer in program.layers:
        read = [None if name is None else values[name] for name in layer.inputs]
        if layer.kind == "DIST_COLLECTIVE":
            assert read[0] is not None
            found = yield Meeting(**layer.parameters, value=read[0])
        else:
            found = LAYERS[layer.kind](layer, *read)
        made = found if isinstance(found, tuple) else (found,)
        for value, tensor in zip(layer.outputs, made, strict=True):
            values[value.name] = _checked(tensor, layer.name, value.dtype, value.shape)
    return {name: values[name] for name in program.outputs}


def _checked(tensor: Tensor, name: str, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """Return the tensor. Raises AssertionError if it is not what TensorRT says of it."""
    fits = tensor.dim() == len(shape) and all(a in (-1, b) for a, b in zip(shape, tensor.shape, strict=True))
    assert fits and tensor.dtype == dtype, f"{name}: {tensor.dtype} {list(tensor.shape)} for {dtype} {list(shape)}"
    return tensor


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor in the dtype in which it is summed: float64 for float32, and float32 for half precision."""
    return tensor.double() if tensor.dtype == torch.float32 else tensor.float()


def _axes(mask: int, tensor: Tensor) -> list[int]:
    return [axis for axis in range(tensor.dim()) if mask >> axis & 1]


def _product(layer: Layer, a: Tensor, b: Tensor) -> Tensor:
    assert a.dtype == b.dtype, layer.name
    left, right = (x.mT if op == "TRANSPOSE" else x for x, op in zip((a, b), layer.parameters["ops"], strict=True))
    return (_wide(left) @ _wide(right)).to(a.dtype)


def _reduce(layer: Layer, x: Tensor) -> Tensor:
    reduced = {"AVG": torch.mean, "SUM": torch.sum}[layer.parameters["op"]](
        _wide(x), _axes(layer.parameters["axes"], x), keepdim=layer.parameters["keep"]
    )
    return reduced.to(x.dtype)


def _elementwise(layer: Layer, a: Tensor, b: Tensor) -> Tensor:
    assert a.dtype == b.dtype and a.dim() == b.dim(), f"{layer.name}: {a.dtype} and {b.dtype}"
    ops: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "SUM": torch.add,
        "PROD": torch.mul,
        "DIV": torch.div,
        "GREATER": torch.gt,
        "AND": torch.logical_and,
    }
    return ops[layer.parameters["op"]](a, b)


def _dequantize(layer: Layer, x: Tensor, scale: Tensor) -> Tensor:
    """x times a scalar, or x [O, I] times a scale per row, or without an axis a scale per block of a row."""
    if scale.dim() == 1:
        assert layer.parameters["axis"] == 0
        scale = scale[:, None]
    elif scale.dim() == 2:
        assert x.shape[0] == scale.shape[0] and x.shape[1] % scale.shape[1] == 0
        scale = scale.repeat_interleave(x.shape[1] // scale.shape[1], 1)
    return (x.float() * scale.float()).to(scale.dtype)


def _quantize(layer: Layer, x: Tensor, scale: Tensor) -> Tensor:
    """x over a scalar, in FP8: to nearest even, and clamped to its largest values."""
    assert layer.parameters["dtype"] == torch.float8_e4m3fn and scale.dim() == 0
    most = torch.finfo(torch.float8_e4m3fn).max
    return (x.float() / scale.float()).clamp(-most, most).to(torch.float8_e4m3fn)


def _gather(layer: Layer, x: Tensor, indices: Tensor) -> Tensor:
    assert layer.parameters["mode"] == "DEFAULT" and layer.parameters["batch_axes"] == 0
    axis = layer.parameters["axis"]
    rows = x.index_select(axis, indices.flatten().long())
    return rows.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _slice(layer: Layer, x: Tensor, *given: Tensor | None) -> Tensor:
    assert layer.parameters["mode"] in ("DEFAULT", "STRICT_BOUNDS")
    own = [layer.parameters[name] for name in ("start", "sizes", "stride")]
    late = [*given, None, None, None][:3]
    start, sizes, stride = (own[k] if late[k] is None else late[k].tolist() for k in range(3))  # type: ignore[union-attr]
    for axis, (first, count, step) in enumerate(zip(start, sizes, stride, strict=True)):
        assert first >= 0 and first + step * (count - 1) < x.shape[axis], layer.name
        x = x.index_select(axis, first + step * torch.arange(count))
    return x


def _shuffle(layer: Layer, x: Tensor, given: Tensor | None = None) -> Tensor:
    x = x.permute(layer.parameters["before"])
    shape = layer.parameters["shape"] if given is None else given.tolist()
    if shape is not None:
        if layer.parameters["zero_copies"]:
            shape = [x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
        x = x.reshape(shape)
    return x.permute(layer.parameters["after"])


def _rotary(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
    """x [B, N, S, D], tables [M, D/2], positions [B, S]."""
    assert not layer.parameters["interleaved"] and layer.parameters["size"] == 0
    cos, sin = (table[positions.long()][:, None] for table in (cos, sin))
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def _update_cache(layer: Layer, cache: Tensor, new: Tensor, starts: Tensor) -> Tensor:
    """cache [B, G, M, D], new [B, G, S, D], starts [B]."""
    assert layer.parameters == {"mode": "LINEAR", "form": "PADDED_BHND"}
    cache = cache.clone()
    for slot, start in enumerate(starts.tolist()):
        assert start + new.shape[2] <= cache.shape[2], f"{layer.name}: slot {slot} is full"
        cache[slot, :, start : start + new.shape[2]] = new[slot]
    return cache


def _attention(layer: Layer, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
    """q [B, N, S, D], already scaled; k and v [B, G, M, D]; mask bool [B, 1, S, M]; lengths [B] of k and v."""
    wanted = {"causal": "NONE", "norm": "SOFTMAX", "forms": ("PADDED_BHND", "PADDED_BHND")}
    assert layer.parameters == wanted and mask.dtype == torch.bool
    repeat = q.shape[1] // k.shape[1]
    outputs = []
    for slot, most in enumerate(lengths.tolist()):
        keys, values = (_wide(x[slot, :, :most]).repeat_interleave(repeat, 0) for x in (k, v))
        scores = (_wide(q[slot]) @ keys.mT).masked_fill(~mask[slot, :, :, :most], -math.inf)
        outputs.append(scores.softmax(-1) @ values)
    return torch.stack(outputs).to(q.dtype)


def _topk(layer: Layer, x: Tensor) -> tuple[Tensor, Tensor]:
    assert layer.parameters["op"] == "MAX"
    (axis,) = _axes(layer.parameters["axes"], x)
    values, indices = x.topk(layer.parameters["count"], axis)
    return values, indices.int()


def _softmax(layer: Layer, x: Tensor) -> Tensor:
    (axis,) = _axes(layer.parameters["axes"], x)
    return _wide(x).softmax(axis).to(x.dtype)


def _one_hot(layer: Layer, indices: Tensor, values: Tensor, depth: Tensor) -> Tensor:
    assert layer.parameters["axis"] in (-1, indices.dim())
    hot = torch.nn.functional.one_hot(indices.long(), int(depth))
    return values[hot]


def _sizes(layer: Layer, x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int64)


# The function of each kind of layer, of the layer and its inputs.
LAYERS: dict[str, Callable[..., Any]] = {
    "ACTIVATION": lambda layer, x: {"SIGMOID": torch.sigmoid, "TANH": torch.tanh}[layer.parameters["op"]](x),
    "ATTENTION_INPUT": _attention,
    "ATTENTION_OUTPUT": lambda layer, x: x,
    "CAST": lambda layer, x: x.to(layer.parameters["dtype"]),
    "CONCATENATION": lambda layer, *parts: torch.cat(parts, layer.parameters["axis"]),
    "CONSTANT": lambda layer: layer.parameters["value"],
    "DEQUANTIZE": _dequantize,
    "ELEMENTWISE": _elementwise,
    "GATHER": _gather,
    "KV_CACHE_UPDATE": _update_cache,
    "MATRIX_MULTIPLY": _product,
    "ONE_HOT": _one_hot,
    "QUANTIZE": _quantize,
    "REDUCE": _reduce,
    "ROTARY_EMBEDDING": _rotary,
    "SELECT": lambda layer, condition, a, b: torch.where(condition, a, b),
    "SHAPE": _sizes,
    "SHUFFLE": _shuffle,
    "SLICE": _slice,
    "SOFTMAX": _softmax,
    "TOPK": _topk,
    "UNARY": lambda layer, x: {"SQRT": torch.sqrt, "NOT": torch.logical_not}[layer.parameters["op"]](x),
}
