"""Modules and parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from tests.backends.tensorrt_llm.standin.binding import implements
from tests.backends.tensorrt_llm.standin.functional import Tensor, tensor
from tests.backends.tensorrt_llm.standin.trt import TORCH, TRT, DataType, dtype_of


@implements("tensorrt_llm.parameter")
class Parameter:
    def __init__(self, value: Any, shape: Any, dtype: Any, is_buffer: bool, prefer_managed: Any) -> None:
        self._dtype = dtype_of(dtype)
        self._value = None if value is None else torch.as_tensor(value)
        self._shape = tuple(shape if value is None else self._value.shape)  # type: ignore[union-attr]
        self.is_buffer = is_buffer

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> DataType:
        return self._dtype

    def is_inited(self) -> bool:
        return self._value is not None

    @property
    def raw_value(self) -> np.ndarray[Any, Any]:
        assert self._value is not None
        return self._value.numpy()

    @property
    def value(self) -> Tensor:
        assert self._value is not None, "a parameter without a value"
        return tensor(self._value, self._dtype)

    @value.setter
    def value(self, value: torch.Tensor) -> None:
        """Another shape is refused; another dtype only changes the parameter's, with a warning."""
        value = torch.as_tensor(value)
        assert tuple(value.shape) == self._shape, f"value {list(value.shape)} for a parameter {list(self._shape)}"
        if TORCH[self._dtype] != value.dtype:
            warnings.warn(f"Parameter was initialized as {self._dtype.name} but set to {value.dtype}", stacklevel=2)
            self._dtype = TRT[value.dtype]
        self._value = value


@implements("tensorrt_llm.module")
class Module:
    def __init__(self) -> None:
        self._modules: dict[str, Any] = {}
        self._parameters: dict[str, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        for kind in ("_parameters", "_modules"):
            if name in self.__dict__.get(kind, ()):
                return self.__dict__[kind][name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Parameters and modules are kept apart; a plain attribute of that name gives way."""
        kind = "_parameters" if isinstance(value, Parameter) else "_modules" if isinstance(value, Module) else None
        if kind is None:
            object.__setattr__(self, name, value)
        else:
            self.__dict__.pop(name, None)
            self.__dict__[kind][name] = value

    def register_parameter(self, name: str, param: Any) -> None:
        self._parameters[name] = param

    def named_modules(self, prefix: str) -> Iterator[tuple[str, Any]]:
        for name, module, _ in self.named_modules_with_parent(prefix=prefix):
            yield name, module

    def named_modules_with_parent(self, prefix: str, parent: Any) -> Iterator[tuple[str, Any, Any]]:
        """A module may be replaced while it is its turn; then its successor's children follow."""
        yield prefix, self, parent
        module = self if parent is None else getattr(parent, prefix.rpartition(".")[2])
        for name, child in list(module._modules.items()):
            if child is not None:
                yield from child.named_modules_with_parent(prefix=f"{prefix}.{name}" if prefix else name, parent=module)

    def named_parameters(self, prefix: str) -> Iterator[tuple[str, Parameter]]:
        seen: set[int] = set()
        for path, module in self.named_modules(prefix=prefix):
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{path}.{name}" if path else name, parameter

    def parameters(self) -> Iterator[Parameter]:
        for _, parameter in self.named_parameters():
            yield parameter

    forward: Callable[..., Any]


@implements("tensorrt_llm.module")
class ModuleList(Module):
    def __init__(self, modules: Iterable[Module]) -> None:
        Module.__init__(self)
        for number, module in enumerate(modules):
            self._modules[str(number)] = module

    def __getitem__(self, idx: int) -> Any:
        return self._modules[str(range(len(self))[idx])]

    def __len__(self) -> int:
        return len(self._modules)
