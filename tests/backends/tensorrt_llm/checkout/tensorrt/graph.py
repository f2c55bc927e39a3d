"""Tensors and layers of a recorded network. Names and properties are those of TensorRT's Python bindings."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tests.backends.tensorrt_llm.checkout.tensorrt.dimensions import Size, Symbolic
from tests.backends.tensorrt_llm.checkout.tensorrt.enums import DataType

if TYPE_CHECKING:
    from tests.backends.tensorrt_llm.checkout.tensorrt.network import INetworkDefinition

# The integers in a tensor, where they are known before the run: shapes are computed by layers too.
Content = Size | list[Size] | None


class NetworkError(RuntimeError):
    """The network breaks one of TensorRT's rules: shapes that do not fit, operands of two types."""


class Inferred(NamedTuple):
    """What is known of a layer's output."""

    dims: list[Size]
    dtype: DataType
    content: Content = None


class Weights:
    """Values of a constant: Weights(array), or Weights(dtype, address, count)."""

    def __init__(self, *given: Any) -> None:
        self.array, self.dtype, self.ptr, self.size = None, None, 0, 0
        if isinstance(given[0], np.ndarray):
            (self.array,) = given
        else:
            self.dtype, self.ptr, self.size = given

    def raw(self, nbytes: int) -> bytes:
        return ctypes.string_at(int(self.ptr), nbytes) if self.array is None else self.array.tobytes()


class Dims(tuple[int, ...]):
    MAX_DIMS = 8

    def __new__(cls, *sizes: Any) -> Dims:
        given = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
        return super().__new__(cls, (int(size) for size in given))


class ITensor:
    def __init__(
        self,
        name: str,
        producer: ILayer | None = None,
        index: int = 0,
        dims: list[Size] | None = None,
        dtype: DataType = None,
    ) -> None:
        self.name, self.producer, self.index = name, producer, index
        self._input = Inferred(dims or [], dtype)  # of a network input
        self.is_network_output = False
        self.location = None
        self.is_shape_tensor = False

    @property
    def inferred(self) -> Inferred:
        return self._input if self.producer is None else self.producer.results()[self.index]

    @property
    def dims(self) -> list[Size]:
        """The shape, with names for what is known only at run time."""
        return list(self.inferred.dims)

    @property
    def dtype(self) -> DataType:
        return self.inferred.dtype

    @dtype.setter
    def dtype(self, dtype: DataType) -> None:
        if self.producer is None:
            self._input = self._input._replace(dtype=dtype)

    @property
    def content(self) -> Content:
        return self.inferred.content

    @property
    def shape(self) -> Dims:
        """As the bindings give it: -1 where a size is known only at run time."""
        return Dims([size if isinstance(size, int) else -1 for size in self.inferred.dims])

    @shape.setter
    def shape(self, _: Any) -> None:
        """TensorRT-LLM gives an input the shape that it has."""

    @property
    def is_network_input(self) -> bool:
        return self.producer is None

    def set_dimension_name(self, axis: int, name: str) -> None:
        if not isinstance(self._input.dims[axis], int):
            self._input.dims[axis] = Symbolic.named(name)

    def set_dynamic_range(self, low: float, high: float) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<{self.name} {self.dims} {self.dtype.name}>"


class ILayer:
    """One layer: its inputs, its attributes by name, and what follows of its outputs, checked when it is added."""

    _UNCHECKED = ("_results", "name", "metadata", "precision", "__class__")

    def __init__(
        self,
        network: INetworkDefinition,
        kind: Any,
        inputs: Sequence[ITensor | None],
        outputs: int = 1,
        **attributes: Any,
    ) -> None:
        fields = self.__dict__
        fields.update(network=network, type=kind, inputs=list(inputs), metadata="", precision=None, _results=None)
        fields.update(attributes)
        fields["name"] = f"(Unnamed Layer* {len(network.layers)}) [{kind.name}]"
        fields["outputs"] = [ITensor(f"{self.name}_output", self, index) for index in range(outputs)]
        network.layers.append(self)
        self.results()

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name not in self._UNCHECKED:
            object.__setattr__(self, "_results", None)  # an attribute may change the output's shape

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, index: int) -> ITensor | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def get_output(self, index: int) -> ITensor | None:
        return self.outputs[index] if index < len(self.outputs) else None

    def set_input(self, index: int, tensor: ITensor) -> None:
        self.inputs += [None] * (int(index) + 1 - len(self.inputs))
        self.inputs[int(index)] = tensor
        self._results = None

    def get_output_type(self, index: int) -> DataType:
        return self.outputs[index].dtype

    def set_output_type(self, index: int, dtype: DataType) -> None:
        """Weak typing only; a strongly typed network does not ask for it."""

    def results(self) -> list[Inferred]:
        """One per output. Raises NetworkError."""
        if self._results is None:
            try:
                results = self.network.infer(self)
            except (AttributeError, IndexError, TypeError, ValueError) as error:
                raise NetworkError(f"{self.name}: {error}") from error
            object.__setattr__(self, "_results", results)
        return self._results
