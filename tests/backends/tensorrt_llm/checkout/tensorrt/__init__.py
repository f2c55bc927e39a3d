"""A recording stand-in for NVIDIA's `tensorrt` module, version 10.14: what TensorRT-LLM's graph builder calls.

Networks are recorded with their shapes and types, and refused where TensorRT would refuse them; nothing is compiled.
Under the name `tensorrt` this package is what `import tensorrt` finds (see stubs.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.backends.tensorrt_llm.checkout.tensorrt import builder, dimensions, graph, network, plugins
from tests.backends.tensorrt_llm.checkout.tensorrt.enums import DTYPE_ALIASES, ENUMS, NAMES

__version__ = NAMES["version"]

_NUMPY_TYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32}
_NUMPY_TYPES |= {"INT64": np.int64, "BOOL": np.bool_, "UINT8": np.uint8}
volume = dimensions.product


def nptype(dtype: Any) -> Any:
    return _NUMPY_TYPES[dtype.name]


class Runtime:
    def __init__(self, logger: Any) -> None:
        raise RuntimeError("this tensorrt only records networks: it cannot run engines")


def _classes() -> dict[str, Any]:
    """The bindings' classes: those defined here; of the others a layer's name stands for any layer."""
    defined = {"Runtime": Runtime, "PluginFieldCollection_": plugins.PluginFieldCollection}
    for module in (builder, graph, network, plugins):
        defined |= vars(module)
    return {name: defined.get(name) or _placeholder(name) for name in NAMES["classes"]}


def _placeholder(name: str) -> type:
    is_layer = name.startswith("I") and name.endswith("Layer")
    return type(name, (graph.ILayer,) if is_layer else (), {"__module__": "tensorrt"})


globals().update(_classes() | ENUMS | DTYPE_ALIASES)
get_plugin_registry, init_libnvinfer_plugins = plugins.get_plugin_registry, plugins.init_libnvinfer_plugins
