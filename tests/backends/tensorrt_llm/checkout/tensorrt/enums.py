"""TensorRT 10.14's enums, with the members and values of NVIDIA's own bindings (`names_10_14.json`)."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Any

NAMES: dict[str, Any] = json.loads((Path(__file__).parent / "names_10_14.json").read_text())


class BoundEnum(enum.Enum):
    """Like an enum of the bindings: no int, but int() takes it."""

    def __int__(self) -> int:
        value: int = self.value
        return value

    __index__ = __int__


ENUMS: dict[str, Any] = {name: BoundEnum(name, members, module="tensorrt") for name, members in NAMES["enums"].items()}

DataType = ENUMS["DataType"]
GatherMode = ENUMS["GatherMode"]
LayerType = ENUMS["LayerType"]
NetworkDefinitionCreationFlag = ENUMS["NetworkDefinitionCreationFlag"]
PluginFieldType = ENUMS["PluginFieldType"]

# tensorrt.float16 and the like
DTYPE_ALIASES: dict[str, Any] = {alias: DataType[member] for alias, member in NAMES["dtype_aliases"].items()}
DTYPE_OF_ID: dict[int, Any] = {int(member): member for member in DataType}
FLOATS = (DataType.FLOAT, DataType.HALF, DataType.BF16, DataType.FP8)
