"""Makes TensorRT-LLM's own Python, read from a checkout, importable without its compiled parts.

For a process of its own: what is put into `sys.modules` here stays there.
"""

from __future__ import annotations

import enum
import importlib
import importlib.abc
import importlib.machinery
import os
import sys
import types
from pathlib import Path
from typing import Any

import torch

# Imported by the graph builder or by a model that is not used here; nothing of them runs. Not taken from the
# environment even where they are: TensorRT-LLM wants other versions.
INERT = (
    *("accelerate", "cuda", "datasets", "diffusers", "einops", "evaluate", "flashinfer", "h5py", "lark", "modelopt"),
    *("mpi4py", "nvtx", "onnx", "onnx_graphsurgeon", "openai", "optimum", "ordered_set", "peft", "PIL", "polygraphy"),
    *("pulp", "sentencepiece", "transformers", "zmq"),
    *("tensorrt_llm.bindings", "tensorrt_llm.libs", "tensorrt_llm.quantization.utils.fp8_utils"),
)
# Their __init__ imports the executor, the PyTorch backend, and so on.
NAMESPACES = ("tensorrt_llm", "tensorrt_llm.llmapi", "tensorrt_llm._torch")
COMPUTE_CAPABILITY = (9, 0)  # Hopper


def install(checkout: Path) -> None:
    """After this, `import tensorrt_llm.builder` and the like work."""
    os.environ["TRT_LLM_NO_LIB_INIT"] = "1"
    sys.modules["tensorrt"] = importlib.import_module("tests.backends.tensorrt_llm.checkout.tensorrt")
    sys.meta_path.insert(0, _InertFinder())
    for name in NAMESPACES:
        _add_namespace(name, checkout.joinpath(*name.split(".")))
    torch.compile = lambda *_, **__: lambda function: function  # of functions that are not called here
    importlib.import_module("torch.distributed.tensor")  # else imported on the way by the compiler
    _pretend_a_gpu()
    _single_process_mpi()
    _fill_bindings()
    importlib.import_module("tensorrt_llm.models")  # before `quantization`, which it imports in a circle


class _AnythingMeta(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _anything(name)


class _Anything(metaclass=_AnythingMeta):
    """Can be called, subclassed, entered and iterated, without effect."""

    def __init__(self, *_: Any, **fields: Any) -> None:
        self.__dict__.update(fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: 0

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self

    def __iter__(self) -> Any:
        return iter(())

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> bool:
        return False


def _anything(name: str) -> Any:
    return _AnythingMeta(name, (_Anything,), {"__module__": "inert"})


class _InertModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = sys.modules.get(f"{self.__name__}.{name}") or _anything(name)
        setattr(self, name, found)
        return found


class _InertFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        inert = any(name == prefix or name.startswith(f"{prefix}.") for prefix in INERT)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if inert else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _InertModule(spec.name)
        module.__path__, module.__version__ = [], "0.0"  # type: ignore[attr-defined]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _add_namespace(name: str, folder: Path) -> None:
    """A package whose __init__ is not run."""
    module = types.ModuleType(name)
    module.__path__ = [str(folder)]
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    sys.modules[name] = module
    parent, _, leaf = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], leaf, module)


def _pretend_a_gpu() -> None:
    major, minor = COMPUTE_CAPABILITY
    properties = types.SimpleNamespace(major=major, minor=minor, name="none")
    torch.cuda.get_device_properties = lambda *_: properties
    torch.cuda.device_count = lambda: 1
    torch.cuda.set_device = lambda _: None


class _Communicator:
    rank, size = 0, 1

    def __init__(self, *_: Any) -> None:
        pass

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 1

    def Split_type(self, *_: Any, **__: Any) -> _Communicator:
        return self

    def Barrier(self) -> None:
        pass


def _single_process_mpi() -> None:
    mpi = importlib.import_module("mpi4py.MPI")
    mpi.COMM_WORLD, mpi.COMM_TYPE_SHARED = _Communicator(), 0  # type: ignore[attr-defined]
    importlib.import_module("mpi4py.util.pkl5").Intracomm = _Communicator  # type: ignore[attr-defined]


class _RuntimeDefaults:
    """As nanobind's classes without state: it cannot be copied, pickled or written as JSON."""

    def __init__(self, max_attention_window: list[int] | None = None, sink_token_length: int | None = None) -> None:
        self.max_attention_window, self.sink_token_length = max_attention_window, sink_token_length

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("cannot pickle 'RuntimeDefaults' object")


def _fill_bindings() -> None:
    """What the graph builder uses of the compiled bindings for more than an annotation."""
    bindings: Any = importlib.import_module("tensorrt_llm.bindings")
    dtypes = "FLOAT HALF INT8 INT32 BOOL UINT8 FP8 BF16 INT64 INT4 NVFP4"
    bindings.DataType = enum.IntEnum("DataType", dtypes, start=0)
    bindings.LayerType = enum.IntEnum("LayerType", "ATTENTION RECURRENT LINEAR NOOP", start=0)
    bindings.KVCacheType = enum.IntEnum("KVCacheType", "CONTINUOUS PAGED DISABLED", start=0)
    executor: Any = importlib.import_module("tensorrt_llm.bindings.executor")
    executor.RuntimeDefaults = _RuntimeDefaults
    importlib.import_module("tensorrt_llm.bindings.BuildInfo").ENABLE_MULTI_DEVICE = True  # type: ignore[attr-defined]
