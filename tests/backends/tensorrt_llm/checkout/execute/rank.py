"""One rank executing its program."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import NamedTuple

from torch import Tensor

from tests.backends.tensorrt_llm.checkout.execute.attention import attention
from tests.backends.tensorrt_llm.checkout.execute.cache import PagedCache
from tests.backends.tensorrt_llm.checkout.execute.layers import LAYERS
from tests.backends.tensorrt_llm.checkout.execute.plugins import PLUGINS
from tests.backends.tensorrt_llm.checkout.execute.program import Program, plugin_kind
from tests.backends.tensorrt_llm.checkout.execute.values import ExecutionError
from tests.backends.tensorrt_llm.checkout.tensorrt.dimensions import Size
from tests.backends.tensorrt_llm.checkout.tensorrt.enums import FLOATS, LayerType
from tests.backends.tensorrt_llm.checkout.tensorrt.graph import ILayer, ITensor


class Meeting(NamedTuple):
    """What a rank waits for: all ranks of `group` bring an operand to the same collective."""

    kind: str
    group: tuple[int, ...]
    operand: Tensor


Step = Generator[Meeting, Tensor, dict[str, Tensor]]


class Rank:
    def __init__(self, program: Program, cache: PagedCache) -> None:
        self.program, self.cache = program, cache

    def step(self, feeds: dict[str, Tensor]) -> Step:
        """Yields at every collective, gets its result, returns the outputs by name."""
        sizes: dict[str, int] = {}
        values: dict[ITensor, Tensor] = {}
        for tensor in self.program.network.inputs:
            if tensor.name not in feeds:
                raise ExecutionError(f"the runtime has no value for input {tensor.name}")
            values[tensor] = feeds[tensor.name]
            _learn_sizes(tensor, feeds[tensor.name], sizes)
        for layer in self.program.layers:
            inputs = [None if tensor is None else values[tensor] for tensor in layer.inputs]
            if plugin_kind(layer) in ("AllReduce", "AllGather"):
                result = yield Meeting(plugin_kind(layer), layer.plugin.numbers("group"), inputs[0])
            else:
                result = self._run(layer, inputs)
            for tensor, value in zip(layer.outputs, result if isinstance(result, tuple) else (result,), strict=True):
                _check(tensor, value, sizes)
                values[tensor] = value
        return {tensor.name: values[tensor] for tensor in self.program.network.outputs}

    def _run(self, layer: ILayer, inputs: list[Tensor | None]) -> Tensor | tuple[Tensor, ...]:
        if layer.type == LayerType.CONSTANT:
            return self.program.constants[layer]
        kind = plugin_kind(layer)
        try:
            if kind == "GPTAttention":
                return attention(layer, self.cache, *inputs)
            if kind in PLUGINS:
                return PLUGINS[kind](layer.plugin, *inputs)
            if layer.type in LAYERS:
                return LAYERS[layer.type](layer, *inputs)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ExecutionError(f"{layer.name}: {error}") from error
        raise ExecutionError(f"{layer.name}: {kind or layer.type.name} is not known")


def _learn_sizes(tensor: ITensor, value: Tensor, sizes: dict[str, int]) -> None:
    """What an input tells of the named sizes; where it disagrees with the network it is refused."""
    for size, found in zip(tensor.dims, value.shape, strict=True):
        if isinstance(size, int):
            if size != found:
                raise ExecutionError(f"input {tensor.name} is {list(value.shape)}, the network has {tensor.dims}")
        elif list(size.terms.values()) == [1] and len(*size.terms) == 1:
            sizes[next(iter(size.terms))[0]] = found


def _check(tensor: ITensor, value: Tensor, sizes: dict[str, int]) -> None:
    """Every value against the shape and the kind of type that were recorded."""
    wanted = [_known(size, sizes) for size in tensor.dims]
    if len(wanted) != value.dim() or any(w not in (None, found) for w, found in zip(wanted, value.shape, strict=True)):
        raise ExecutionError(f"{tensor.name} is {list(value.shape)}, it was recorded as {tensor.dims}")
    if (tensor.dtype in FLOATS) != value.is_floating_point():
        raise ExecutionError(f"{tensor.name} is {value.dtype}, it was recorded as {tensor.dtype.name}")


def _known(size: Size, sizes: dict[str, int]) -> int | None:
    if isinstance(size, int):
        return size
    if any(name not in sizes for names in size.terms for name in names):
        return None
    return sum(factor * math.prod(sizes[name] for name in names) for names, factor in size.terms.items())
