"""Add layers to an INetworkDefinition. Each method adds one layer and returns its output tensor.

TensorRT returns None for some layers that it refuses, and for others a layer whose output has no shape; both raise
RunError here. A shape tensor is an int64 vector that TensorRT computes on the host.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from trtllm_pt.backends.tensorrt.log import Log
from trtllm_pt.errors import RunError

Tensor = Any  # tensorrt.ITensor; the bindings have no types
Reduce = Literal["sum", "mean"]


class Graph:
    """The network of one rank while it is defined.

    `constants` has every constant by the name of its layer. TensorRT reads their memory until the network is compiled.
    """

    def __init__(self, trt: Any, network: Any, log: Log) -> None:
        self.trt, self.network, self.log = trt, network, log
        self.constants: dict[str, torch.Tensor] = {}
        self.dtypes = {
            torch.float32: trt.float32,
            torch.float16: trt.float16,
            torch.bfloat16: trt.bfloat16,
            torch.int32: trt.int32,
            torch.int64: trt.int64,
            torch.int8: trt.int8,
            torch.float8_e4m3fn: trt.fp8,
        }
        self._scope = ""
        self._vectors: dict[tuple[int, ...], Tensor] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Begin the names of the layers that the block adds with `name`, so that errors say where they belong."""
        outer, self._scope = self._scope, name
        try:
            yield
        finally:
            self._scope = outer

    # Inputs, outputs and constants

    def input(self, name: str, dtype: torch.dtype, shape: Sequence[int], dimensions: Sequence[str] = ()) -> Tensor:
        """Add an input. Its axes of size -1 get the names `dimensions`; axes of one name have equal sizes."""
        tensor = self.network.add_input(name, self.dtypes[dtype], tuple(shape))
        if tensor is None:
            raise self._refused(name)
        dynamic = [axis for axis, size in enumerate(shape) if size == -1]
        for axis, dimension in zip(dynamic, dimensions, strict=True):
            tensor.set_dimension_name(axis, dimension)
        return tensor

    def output(self, name: str, tensor: Tensor) -> None:
        tensor.name = name
        self.network.mark_output(tensor)

    def constant(self, value: torch.Tensor, name: str) -> Tensor:
        return self._constant(value.contiguous(), self.dtypes[value.dtype], value.shape, name)

    def int4_constant(self, packed: torch.Tensor, name: str) -> Tensor:
        """Add a constant of two values per byte, of which the even one is in the low half."""
        *rows, columns = packed.shape
        return self._constant(packed.contiguous(), self.trt.int4, (*rows, 2 * columns), name)

    def scalar(self, value: float, dtype: torch.dtype, rank: int, name: str) -> Tensor:
        """Add a constant of shape [1, …, 1] with `rank` axes, which broadcasts to any tensor of that rank."""
        return self.constant(torch.full((1,) * rank, value, dtype=dtype), name)

    def _constant(self, value: torch.Tensor, dtype: Any, shape: Sequence[int], name: str) -> Tensor:
        size = 1
        for length in shape:
            size *= length
        layer = self.network.add_constant(tuple(shape), self.trt.Weights(dtype, value.data_ptr(), size))
        tensor = self._out(layer, name)
        self.constants[layer.name] = value
        return tensor

    # Element by element

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return self._binary("SUM", a, b)

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        return self._binary("PROD", a, b)

    def divide(self, a: Tensor, b: Tensor) -> Tensor:
        return self._binary("DIV", a, b)

    def greater(self, a: Tensor, b: Tensor) -> Tensor:
        return self._binary("GREATER", a, b)

    def both(self, a: Tensor, b: Tensor) -> Tensor:
        return self._binary("AND", a, b)

    def _binary(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        operation = getattr(self.trt.ElementWiseOperation, name)
        return self._out(self.network.add_elementwise(a, b, operation), name.lower())

    def negate(self, x: Tensor) -> Tensor:
        """Return the logical negation of a bool tensor."""
        return self._out(self.network.add_unary(x, self.trt.UnaryOperation.NOT), "not")

    def square_root(self, x: Tensor) -> Tensor:
        return self._out(self.network.add_unary(x, self.trt.UnaryOperation.SQRT), "sqrt")

    def sigmoid(self, x: Tensor) -> Tensor:
        return self._out(self.network.add_activation(x, self.trt.ActivationType.SIGMOID), "sigmoid")

    def tanh(self, x: Tensor) -> Tensor:
        return self._out(self.network.add_activation(x, self.trt.ActivationType.TANH), "tanh")

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if x.dtype == self.dtypes[dtype]:
            return x
        return self._out(self.network.add_cast(x, self.dtypes[dtype]), "cast")

    def select(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return a where the condition is true, and b elsewhere."""
        return self._out(self.network.add_select(condition, a, b), "select")

    # Shapes

    def sizes(self, x: Tensor) -> Tensor:
        """Return the shape of x as a shape tensor."""
        return self._out(self.network.add_shape(x), "shape")

    def shape(self, *sizes: int | Tensor) -> Tensor:
        """Return a shape tensor of numbers and of shape tensors."""
        parts = [self._vector((size,)) if isinstance(size, int) else size for size in sizes]
        return self._out(self.network.add_concatenation(parts), "shape")

    def _vector(self, values: tuple[int, ...]) -> Tensor:
        if values not in self._vectors:
            self._vectors[values] = self.constant(torch.tensor(values), "size")
        return self._vectors[values]

    def reshape(
        self,
        x: Tensor,
        shape: Sequence[int] | Tensor,
        after: Sequence[int] | None = None,
        before: Sequence[int] | None = None,
    ) -> Tensor:
        """Return x in another shape: numbers, of which one may be -1, or a shape tensor.

        before, after: the orders in which the axes are transposed before and after the reshape.
        """
        layer = self.network.add_shuffle(x)
        if layer is not None:
            if before is not None:
                layer.first_transpose = tuple(before)
            if isinstance(shape, Sequence):
                layer.reshape_dims = tuple(shape)
            else:
                layer.set_input(1, shape)
            if after is not None:
                layer.second_transpose = tuple(after)
        return self._out(layer, "reshape")

    def transpose(self, x: Tensor, order: Sequence[int]) -> Tensor:
        layer = self.network.add_shuffle(x)
        if layer is not None:
            layer.first_transpose = tuple(order)
        return self._out(layer, "transpose")

    def slice(self, x: Tensor, start: Sequence[int], sizes: Sequence[int] | Tensor) -> Tensor:
        """Return the part of x that begins at `start` and has the shape `sizes`, numbers or a shape tensor."""
        ones, given = (1,) * len(start), isinstance(sizes, Sequence)
        layer = self.network.add_slice(x, tuple(start), tuple(sizes) if given else ones, ones)
        if layer is not None and not given:
            layer.set_input(2, sizes)
        return self._out(layer, "slice")

    def rows(self, table: Tensor, indices: Tensor) -> Tensor:
        """Return the rows of `table` at `indices`, along axis 0."""
        return self._out(self.network.add_gather(table, indices, 0), "rows")

    # Products and reductions

    def product(self, a: Tensor, b: Tensor, *, transposed: bool = False) -> Tensor:
        """Return the batched matrix product a b, or a bᵀ if `transposed`. Axes before the last two broadcast."""
        plain, turned = self.trt.MatrixOperation.NONE, self.trt.MatrixOperation.TRANSPOSE
        return self._out(self.network.add_matrix_multiply(a, plain, b, turned if transposed else plain), "product")

    def reduce(self, x: Tensor, op: Reduce, axis: int, keep: bool = True) -> Tensor:
        operation = self.trt.ReduceOperation.AVG if op == "mean" else self.trt.ReduceOperation.SUM
        return self._out(self.network.add_reduce(x, operation, 1 << axis, keep), op)

    def largest(self, x: Tensor, count: int, axis: int) -> tuple[Tensor, Tensor]:
        """Return the `count` largest elements along an axis and their int32 indices."""
        layer = self.network.add_topk(x, self.trt.TopKOperation.MAX, count, 1 << axis)
        values = self._out(layer, "topk")
        return values, layer.get_output(1)

    def softmax(self, x: Tensor, axis: int) -> Tensor:
        layer = self.network.add_softmax(x)
        if layer is not None:
            layer.axes = 1 << axis
        return self._out(layer, "softmax")

    def one_hot(self, indices: Tensor, depth: int, dtype: torch.dtype) -> Tensor:
        """Return a new last axis of `depth` elements, 1 at each index and 0 elsewhere."""
        values = self.constant(torch.tensor([0, 1], dtype=dtype), "off_on")
        count = self.constant(torch.tensor(depth, dtype=torch.int32), "depth")
        return self._out(self.network.add_one_hot(indices, values, count, -1), "one_hot")

    def quantize(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return x divided by a scalar scale, in FP8."""
        return self._out(self.network.add_quantize(x, scale, self.trt.fp8), "quantize")

    def dequantize(self, weight: Tensor, scale: Tensor, axis: int | None = None) -> Tensor:
        """Return weight times scale in the scale's dtype.

        axis: the axis with one scale per element. Without it, the scale is a scalar, or its shape gives the number of
        blocks that have a scale each.
        """
        layer = self.network.add_dequantize(weight, scale, scale.dtype)
        if layer is not None and axis is not None:
            layer.axis = axis
        return self._out(layer, "dequantize")

    # The layers of a decoder: B sequences, N heads, G KV heads, S tokens, D head_size, M positions of the cache

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
        """Apply RoPE to x [B, N, S, D] at positions [B, S], with tables [M, D/2] (GPT-NeoX order)."""
        layer = self.network.add_rotary_embedding(x, cos, sin, False, 0)
        if layer is not None:
            layer.set_input(3, positions)
        return self._out(layer, "rope")

    def update_cache(self, cache: Tensor, new: Tensor, starts: Tensor) -> Tensor:
        """Return the cache [B, G, M, D] after `new` [B, G, S, D] was written at positions `starts` [B].

        The cache must be an input of the network, and the result an output in the same memory.
        """
        layer = self.network.add_kv_cache_update(cache, new, starts, self.trt.KVCacheMode.LINEAR)
        return self._out(layer, "kv_cache")

    def attention(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        """Return the attention [B, N, S, D] of q [B, N, S, D], already scaled, over k and v [B, G, M, D].

        lengths [B]: the number of keys of each sequence; what is in the cache beyond is not read. mask: bool
        [B, 1, S, M], true where a query sees a key.

        The mask also says what is causal. TensorRT has a causal kind that needs no mask, but its documentation leaves
        open whether that counts from the end of the cache or from the end of the sequence.
        """
        kinds = self.trt.CausalMaskKind
        layer = self.network.add_attention_v2(q, k, v, self.trt.AttentionNormalizationOp.SOFTMAX, kinds.NONE)
        if layer is None:
            raise self._refused("attention")
        layer.decomposable = True
        layer.mask = mask
        layer.key_value_lengths = lengths
        return self._out(layer, "attention")

    # Collectives. TensorRT does not give back a collective's operation, so it is also in the layer's metadata.

    def all_reduce(self, x: Tensor, op: Reduce, ranks: int, name: str) -> Tensor:
        """Return the sum or mean of x over all ranks."""
        return self._collective(x, "ALL_REDUCE", "AVG" if op == "mean" else "SUM", ranks, name)

    def all_gather(self, x: Tensor, ranks: int, name: str) -> Tensor:
        """Return the ranks' x one after the other, along axis 0."""
        return self._collective(x, "ALL_GATHER", "NONE", ranks, name)

    def _collective(self, x: Tensor, kind: str, op: str, ranks: int, name: str) -> Tensor:
        operations = getattr(self.trt.CollectiveOperation, kind), getattr(self.trt.ReduceOperation, op)
        layer = self.network.add_dist_collective(x, *operations, -1, None)
        tensor = self._out(layer, name)
        layer.num_ranks = ranks
        layer.metadata = json.dumps({"collective": kind, "op": op, "ranks": ranks})
        return tensor

    # Names and errors

    def _out(self, layer: Any, kind: str) -> Tensor:
        """Name a new layer and return its output. Raises RunError if TensorRT has refused the layer."""
        if layer is None:
            raise self._refused(kind)
        layer.name = f"{self._name(kind)}.{self.network.num_layers}"
        tensor = layer.get_output(0)
        try:
            tuple(tensor.shape)
        except (ValueError, RuntimeError):  # TensorRT could not compute the shape
            raise self._refused(kind) from None
        return tensor

    def _name(self, kind: str) -> str:
        return f"{self._scope}.{kind}" if self._scope else kind

    def _refused(self, kind: str) -> RunError:
        return RunError(f"TensorRT refuses the layer {self._name(kind)}: {self.log.reason()}")
