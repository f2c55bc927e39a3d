"""Write safetensors files tensor by tensor, and read them through a memory map.

A file consists of the header length (8 bytes), a JSON header padded with spaces, and the tensors. The data starts at a
multiple of 64 bytes. The format allows no gaps, so all tensors are 64-byte aligned only if all their sizes are
multiples of 64. The writer therefore sorts tensors by the power of two that divides their size, largest first: the few
tensors of odd sizes come last and misalign no others.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trtllm_pt.errors import UsageError
from trtllm_pt.files.atomic import PartialFile
from trtllm_pt.files.git_lfs import refuse_pointer

ALIGNMENT = 64
_CODES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_NAMES = {dtype: code for code, dtype in _CODES.items()}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The dtype and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsWriter:
    """Writes a file whose names, dtypes and shapes are known beforehand, without keeping tensors in memory.

    The data goes to a hidden file, which `close` renames to `path`. As a context manager, the writer is closed at the
    end of the block, and dropped if the block raises an exception.
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None = None
    ) -> None:
        self.path, self.tensors = path, dict(tensors)
        self._offsets = _offsets(self.tensors)
        self._written = dict.fromkeys(self.tensors, 0)
        header = _header(self.tensors, self._offsets, metadata)
        self._start = len(header)
        self._partial = PartialFile(path)
        self._file = open(self._partial.path, "wb")  # noqa: SIM115  closed by close or drop
        self._file.write(header)

    def append(self, name: str, tensor: Tensor) -> None:
        """Write the next elements of a tensor in row-major order: all of it, or some rows of its first axis."""
        info = self.tensors[name]
        data = tensor.contiguous().flatten().view(torch.uint8).numpy()
        done = self._written[name]
        assert tensor.dtype == info.dtype and done + data.nbytes <= info.nbytes, (name, tensor.dtype, tensor.shape)
        self._file.seek(self._start + self._offsets[name] + done)
        self._file.write(data.data)
        self._written[name] = done + data.nbytes

    def close(self) -> None:
        """Flush the file to disk and rename it to `path`. All tensors must be complete."""
        for name, info in self.tensors.items():
            assert self._written[name] == info.nbytes, f"{name}: {self._written[name]} of {info.nbytes} bytes written"
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.keep()

    def drop(self) -> None:
        """Close and remove the hidden file."""
        try:
            self._file.close()
        finally:  # on a full disk, closing fails too
            self._partial.drop()

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.drop()


def _offsets(tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Return the byte offset of each tensor in the data: most aligned sizes first, ties in the order given."""
    offsets, offset = {}, 0
    for name in sorted(tensors, key=lambda name: -math.gcd(tensors[name].nbytes, ALIGNMENT)):
        offsets[name] = offset
        offset += tensors[name].nbytes
    return offsets


def _header(tensors: Mapping[str, TensorInfo], offsets: Mapping[str, int], metadata: Mapping[str, str] | None) -> bytes:
    """Return the header preceded by its length, padded so that the data starts at a multiple of ALIGNMENT."""
    fields: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, start in offsets.items():
        info = tensors[name]
        span = [start, start + info.nbytes]
        fields[name] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape), "data_offsets": span}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


class SafetensorsFile:
    """A safetensors file that is read through a memory map, so that only the pages of used tensors are loaded.

    Raises UsageError, naming the file, if it cannot be read, is damaged, or has another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        refuse_pointer(path)
        try:
            self._file = safe_open(path, framework="pt")
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
        except SafetensorError as error:
            raise UsageError(f"{path} is damaged, truncated, or not a safetensors file: {error}") from None
        self.metadata: dict[str, str] = self._file.metadata() or {}
        self._slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118  (no mapping)

    def __contains__(self, name: object) -> bool:
        return name in self._slices

    def names(self) -> list[str]:
        return list(self._slices)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slices[name].get_shape())

    def dtype(self, name: str) -> torch.dtype | None:
        """Return the tensor's dtype, or None for a dtype that this package does not read."""
        return _CODES.get(self.dtype_name(name))

    def dtype_name(self, name: str) -> str:
        """Return the dtype's code in the file, such as "BF16"."""
        name_of_type: str = self._slices[name].get_dtype()
        return name_of_type

    def get(self, name: str) -> Tensor:
        """Return the tensor as a view of the file, which must not be written to. A misaligned tensor is copied."""
        tensor: Tensor = self._file.get_tensor(name)
        return tensor.clone() if tensor.data_ptr() % tensor.dtype.itemsize else tensor


class ModelFiles:
    """The weights of a model directory: `model.safetensors`, or the shards of `model.safetensors.index.json`.

    Raises UsageError if the directory has neither, or if the index does not match its shards.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = dict(_open_all(folder))

    def names(self) -> list[str]:
        return list(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def shape(self, name: str) -> tuple[int, ...]:
        return self._files[name].shape(name)

    def dtype(self, name: str) -> torch.dtype | None:
        """Return the tensor's dtype, or None for a dtype that this package does not read."""
        return self._files[name].dtype(name)

    def dtype_name(self, name: str) -> str:
        """Return the dtype's code in the file, such as "BF16"."""
        return self._files[name].dtype_name(name)

    def get(self, name: str) -> Tensor:
        """Return the tensor as a view of its mapped file, to be read only."""
        return self._files[name].get(name)


def _open_all(folder: Path) -> list[tuple[str, SafetensorsFile]]:
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        file = SafetensorsFile(whole)
        return [(name, file) for name in file.names()]
    if not index.exists():
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        hint = f"; {pickled[0]} is a pickle, save it as safetensors" if pickled else ""
        raise UsageError(f"{folder} has no model.safetensors and no model.safetensors.index.json{hint}")
    refuse_pointer(index)
    try:
        placed = dict(json.loads(index.read_text())["weight_map"])
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError):
        raise UsageError(f"{index} is not a JSON file with a weight_map") from None
    shards = {shard: SafetensorsFile(folder / shard) for shard in sorted(set(placed.values()))}
    for name, shard in placed.items():
        if name not in shards[shard]:
            raise UsageError(f"{index} puts {name!r} into {shard}, which does not have it")
    return [(name, shards[shard]) for name, shard in placed.items()]
