"""TensorRT-LLM's Tensor and functions, run at once by PyTorch.

As in its strongly typed networks operands must have one dtype; Python's numbers become constants of it, rounded. While
a prompt runs, sizes that follow from the number of tokens are -1, as they are when an engine is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tests.backends.tensorrt_llm.standin.binding import implements
from tests.backends.tensorrt_llm.standin.trt import FLOATS, TORCH, TRT, DataType, dtype_of, held
from tests.backends.tensorrt_llm.standin.world import Collective, is_dynamic, state

HERE = "tensorrt_llm.functional"


@dataclass(frozen=True, slots=True)
class Value:
    """What a Tensor has for TensorRT's ITensor."""

    data: torch.Tensor
    dtype: DataType


@implements(HERE)
class Tensor:
    trt_tensor: Value

    @property
    def dtype(self) -> DataType:
        return self.trt_tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size()

    def size(self, dim: int | None) -> Any:
        sizes = tuple(-1 if is_dynamic(size) else size for size in self.trt_tensor.data.shape)
        return sizes if dim is None else sizes[dim]

    def ndim(self) -> int:
        return self.trt_tensor.data.dim()

    def rank(self) -> int:
        return self.trt_tensor.data.dim()

    def is_dynamic(self, dim: int | None) -> bool:
        return -1 in self.shape if dim is None else self.shape[dim] == -1

    def view(self, shape: Any, zero_is_placeholder: bool) -> Tensor:
        return view(self, shape, zero_is_placeholder)

    def permute(self, dims: Sequence[int]) -> Tensor:
        return permute(self, dims)

    def unsqueeze(self, dim: int) -> Tensor:
        return unsqueeze(self, dim)

    def split(self, split_size_or_sections: Any, dim: int) -> list[Tensor]:
        return split(self, split_size_or_sections, dim)

    def select(self, dim: int, index: Any) -> Tensor:
        return select(self, dim, index)

    def cast(self, dtype: str | DataType) -> Tensor:
        return cast(self, dtype)

    def mark_output(self, name: str | None, dtype: str | DataType | None) -> None:
        state().outputs[name] = self if dtype is None else cast(self, dtype)

    def __add__(self, b: Any) -> Tensor:
        return _binary("SUM", self, b)

    def __radd__(self, b: Any) -> Tensor:
        return _binary("SUM", b, self)

    def __sub__(self, b: Any) -> Tensor:
        return _binary("SUB", self, b)

    def __rsub__(self, b: Any) -> Tensor:
        return _binary("SUB", b, self)

    def __mul__(self, b: Any) -> Tensor:
        return _binary("PROD", self, b)

    def __rmul__(self, b: Any) -> Tensor:
        return _binary("PROD", b, self)

    def __truediv__(self, b: Any) -> Tensor:
        return _binary("DIV", self, b)


def tensor(data: torch.Tensor, dtype: DataType | None = None) -> Tensor:
    """A Tensor of these values; dtype: the values' own, where none is given."""
    made = Tensor.__new__(Tensor)
    dtype = TRT[data.dtype] if dtype is None else dtype
    made.trt_tensor = Value(held(data, dtype), dtype)
    return made


def data_of(x: Tensor) -> torch.Tensor:
    return x.trt_tensor.data


def _like(x: Tensor, data: torch.Tensor) -> Tensor:
    return tensor(data, x.dtype)


def _same_dtype(what: str, *tensors: Tensor) -> None:
    dtypes = [x.dtype.name for x in tensors]
    if len(set(dtypes)) > 1:
        raise TypeError(f"{what}: a strongly typed network has operands of one dtype, not {', '.join(dtypes)}")


# --- Constants, shapes ------------------------------------------------------------------------------------------------


@implements(HERE)
def constant(ndarray: np.ndarray[Any, Any], as_dtype: Any, as_shape: Any) -> Tensor:
    data = torch.from_numpy(np.ascontiguousarray(ndarray))
    if data.dtype not in TRT:
        raise TypeError(f"constant: TensorRT has no {ndarray.dtype}")
    made = tensor(data, as_dtype)
    return made if as_shape is None else _like(made, data_of(made).view(as_shape))


@implements(HERE)
def cast(input: Tensor, dtype: str | DataType) -> Tensor:
    return input if input.dtype == dtype_of(dtype) else tensor(data_of(input), dtype_of(dtype))


@implements(HERE)
def view(input: Tensor, shape: Any, zero_is_placeholder: bool) -> Tensor:
    sizes = data_of(shape).tolist() if isinstance(shape, Tensor) else list(shape)
    if sizes.count(-1) > 1:
        raise ValueError(f"view: at most one size may be inferred, not those of {sizes}")
    data = data_of(input)
    if zero_is_placeholder:
        sizes = [data.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return _like(input, data.reshape(sizes))


@implements(HERE)
def permute(input: Tensor, dims: Sequence[int]) -> Tensor:
    return _like(input, data_of(input).permute(*dims))


@implements(HERE)
def unsqueeze(input: Tensor, axis: int) -> Tensor:
    return _like(input, data_of(input).unsqueeze(axis))


@implements(HERE)
def concat(inputs: Sequence[Any], dim: int) -> Tensor:
    made = [x if isinstance(x, Tensor) else tensor(torch.tensor([x]), DataType.INT32) for x in inputs]
    _same_dtype("concat", *made)
    return _like(made[0], torch.cat([data_of(x).view(1) if x.ndim() == 0 else data_of(x) for x in made], dim))


@implements(HERE)
def stack(inputs: Sequence[Tensor], dim: int) -> Tensor:
    _same_dtype("stack", *inputs)
    return _like(inputs[0], torch.stack([data_of(x) for x in inputs], dim))


@implements(HERE)
def split(tensor: Tensor, split_size_or_sections: Any, dim: int) -> list[Tensor]:
    size, sections = tensor.size(dim), split_size_or_sections
    assert size != -1, "split: the divided axis must be of known size"
    if isinstance(sections, int):
        assert size % sections == 0, f"split: {size} is no multiple of {sections}"
    else:
        assert size == sum_of(sections), f"split: {sections} are not {size}"
    return [_like(tensor, part) for part in data_of(tensor).split(sections, dim)]


sum_of = sum  # Python's, which TensorRT-LLM's hides below


@implements(HERE)
def select(input: Tensor, dim: int, index: Any) -> Tensor:
    return _like(input, data_of(input).select(dim, index if isinstance(index, int) else int(data_of(index))))


@implements(HERE)
def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    assert index.ndim() == 1, f"index_select: an index of one axis, not {index.ndim()}"
    return _like(input, data_of(input).index_select(dim, data_of(index)))


# --- Arithmetic -------------------------------------------------------------------------------------------------------

_ELEMENTWISE = {
    "SUM": torch.add,
    "SUB": torch.sub,
    "PROD": torch.mul,
    "DIV": torch.div,
    "MAX": torch.maximum,
    "MIN": torch.minimum,
    "POW": torch.pow,
}
_COMPARISONS = {"GREATER": torch.gt, "LESS": torch.lt, "EQUAL": torch.eq}
_UNARY = {"SQRT": torch.sqrt, "EXP": torch.exp, "SIN": torch.sin, "COS": torch.cos, "ABS": torch.abs}
_ACTIVATIONS = {"RELU": torch.relu, "TANH": torch.tanh, "SIGMOID": torch.sigmoid}


def _binary(op: str, left: Any, right: Any) -> Tensor:
    dtype = left.dtype if isinstance(left, Tensor) else right.dtype
    left, right = (_number(x, dtype) for x in (left, right))
    if {left.dtype, right.dtype} == {DataType.INT32, DataType.INT64}:
        left, right = cast(left, DataType.INT64), cast(right, DataType.INT64)
    _same_dtype(op, left, right)
    if op in _COMPARISONS:
        return tensor(_COMPARISONS[op](data_of(left), data_of(right)), DataType.BOOL)
    if op == "DIV" and left.dtype not in FLOATS:
        return _like(left, torch.div(data_of(left), data_of(right), rounding_mode="trunc"))
    return _like(left, _ELEMENTWISE[op](data_of(left), data_of(right)))


def _number(x: Any, dtype: DataType) -> Tensor:
    return x if isinstance(x, Tensor) else tensor(torch.tensor([x], dtype=TORCH[dtype]), dtype)


@implements(HERE)
def elementwise_binary(left: Any, right: Any, op: Any) -> Tensor:
    return _binary(op.name, left, right)


@implements(HERE)
def where(condition: Tensor, left: Tensor, right: Tensor) -> Tensor:
    assert condition.dtype == DataType.BOOL and condition.ndim() == left.ndim() == right.ndim()
    _same_dtype("where", left, right)
    return _like(left, torch.where(data_of(condition), data_of(left), data_of(right)))


@implements(HERE)
def unary(input: Tensor, op: Any) -> Tensor:
    return _like(input, _UNARY[op.name](data_of(input)))


@implements(HERE)
def activation(input: Tensor, act_type: Any) -> Tensor:
    return _like(input, _ACTIVATIONS[act_type.name](data_of(input)))


@implements(HERE)
def silu(input: Tensor) -> Tensor:
    return _like(input, F.silu(data_of(input)))


@implements(HERE, "sum")
def sum_(input: Tensor, dim: int, keepdim: bool) -> Tensor:
    return _like(input, data_of(input).sum(dim, keepdim))


@implements(HERE)
def matmul(input: Tensor, mat2: Tensor, transa: bool, transb: bool, use_fp32_acc: bool) -> Tensor:
    _same_dtype("matmul", input, mat2)
    a, b = data_of(input), data_of(mat2)
    return _like(input, (a.mT if transa else a) @ (b.mT if transb else b))


@implements(HERE)
def rms_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None, eps: float) -> Tensor:
    axes = [normalized_shape] if isinstance(normalized_shape, int) else list(normalized_shape)
    data = data_of(input)
    assert list(data.shape[-len(axes) :]) == axes, f"rms_norm over {axes} of {list(data.shape)}"
    dims = tuple(range(-len(axes), 0))
    normed = _like(input, data / (data.square().mean(dims, keepdim=True) + eps).sqrt())
    return normed if weight is None else normed * weight


@implements(HERE)
def embedding(input: Tensor, weight: Tensor, padding: Any) -> Tensor:
    return _like(weight, F.embedding(data_of(input), data_of(weight)))


@implements(HERE)
def gather_last_token_logits(hidden_states: Tensor, last_token_ids: Tensor, remove_input_padding: bool) -> Tensor:
    assert remove_input_padding, "only packed input is covered"
    return index_select(hidden_states, 0, last_token_ids - 1)


# --- Where ranks meet -------------------------------------------------------------------------------------------------


@implements(HERE)
class AllReduceParams:
    def __init__(self, strategy: Any, fusion_op: Any, eps: float) -> None:
        self.strategy, self.fusion_op, self.eps = strategy, fusion_op, eps
        assert fusion_op == 0, "only the plain all-reduce is covered"


@implements(HERE)
def allreduce(tensor: Tensor, group: list[int], all_reduce_params: AllReduceParams) -> Tensor:
    """The NCCL plugin's sum, in the plugin's dtype."""
    moved = _moved(tensor)
    brought = meet("AllReduce", group, moved, all_reduce_params.strategy.name)
    return _like(tensor, torch.stack(brought).sum(0))


@implements(HERE)
def allgather(tensor: Tensor, group: list[int], gather_dim: int) -> Tensor:
    return _like(tensor, torch.cat(meet("AllGather", group, _moved(tensor)), gather_dim))


def _moved(x: Tensor) -> Tensor:
    """As the plugin takes it: a wider dtype is rounded to the plugin's."""
    dtype = dtype_of(state().plugin_config.nccl_plugin)
    return x if x.dtype == dtype else tensor(data_of(x).to(TORCH[dtype]), dtype)


def meet(kind: str, group: list[int], x: Tensor, strategy: str | None = None) -> list[torch.Tensor]:
    here = state()
    collective = Collective(kind, tuple(group), x.dtype, tuple(data_of(x).shape), strategy)
    if collective.group != tuple(range(here.world.ranks)):
        raise ValueError(f"{kind}: the group {group} is not all {here.world.ranks} ranks")
    here.collectives.append(collective)
    return here.world.exchange(here.rank, collective, data_of(x))
