"""The stand-in's classes have the names and parameters of the real bindings, which can be read without a GPU."""

from __future__ import annotations

import enum
import inspect
import re

import pytest
import torch

from tests.backends.tensorrt.standin import trt
from trtllm_pt.backends.tensorrt import gpu, nccl

real = pytest.importorskip("tensorrt_rtx")
CLASSES = [cls for cls in vars(trt).values() if inspect.isclass(cls) and cls.__module__ == trt.__name__]


def overloads(method: object) -> list[list[str]]:
    """The names of the parameters of each overload, as the bindings' docstring has them."""
    signatures = re.findall(r"^(?:\d+\. )?\w+\(([^\n]*)\) -> ", str(method.__doc__), re.MULTILINE)
    plain = [re.sub(r"\[[^]]*\]|<[^>]*>", "", signature) for signature in signatures]  # without types and defaults
    return [re.findall(r"(\w+): ", signature) for signature in plain]


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_class_is_the_real_ones(cls: type) -> None:
    theirs = getattr(real, cls.__name__)
    if issubclass(cls, enum.Enum):
        assert {member.name for member in cls} <= set(theirs.__members__)
        return
    for name, ours in vars(cls).items():
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(ours, property):
            assert isinstance(getattr(theirs, name), property)
        elif inspect.isfunction(ours) and name != "__init__":
            assert parameters(ours) in [["self", *rest] for _, *rest in overloads(getattr(theirs, name))], name


def test_how_the_runtime_is_made() -> None:
    assert parameters(trt.Runtime.__init__) in overloads(real.Runtime.__init__)
    assert isinstance(real.IRuntimeConfig.cuda_graph_strategy, property)


def test_signatures_are_read() -> None:
    """A test of the tests: one that is not there is not taken for one without parameters."""
    context = real.IExecutionContext
    assert overloads(context.set_tensor_address) == [["self", "name", "memory"]]
    assert overloads(context.set_input_shape) == [["self", "name", "shape"]] * 3
    assert overloads(context.engine) == []


def test_the_rest_of_the_seam_has_the_signatures_of_ours() -> None:
    from tests.backends.tensorrt.standin import collectives, cuda

    assert parameters(collectives.communicator) == parameters(nccl.communicator)
    assert parameters(cuda.visible) == parameters(gpu.visible)
    for name, ours in vars(gpu.Gpu).items():
        if inspect.isfunction(ours):
            assert parameters(getattr(cuda.Gpu, name)) == parameters(ours), name


def test_torch_has_what_the_gpu_needs() -> None:
    """Its calls themselves need a GPU."""
    graph = inspect.signature(torch.cuda.graph.__init__).parameters
    assert {"cuda_graph", "stream", "capture_error_mode"} <= set(graph)
    used = ("device_count", "get_device_capability", "get_device_name", "is_available", "mem_get_info", "set_device")
    assert all(callable(getattr(torch.cuda, name)) for name in (*used, "stream", "CUDAGraph"))
    assert issubclass(torch.OutOfMemoryError, RuntimeError) and hasattr(torch.cuda.Stream, "synchronize")
