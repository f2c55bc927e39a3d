"""Safetensors files, written tensor by tensor and read through a memory map.

A file is eight bytes (header length), a JSON header padded with spaces, and the tensors. The data starts at a multiple
of 64. The format allows no holes, so every tensor lies at a multiple of 64 only where all sizes are multiples of 64;
to come as near as it allows, the writer puts tensors with the larger power of two in their size first, which leaves
the few odd ones at the end.
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
from torch import Tensor

from trtllm_pt.errors import UsageError
from trtllm_pt.files.atomic import PartialFile

ALIGNMENT = 64
_MAX_HEADER = 100 << 20  # the format's own limit, in bytes
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
    """A tensor's dtype and shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsWriter:
    """Writes a file whose names, dtypes and shapes are known beforehand, holding none of its tensors.

    The file appears under its name, complete, on `close`; until then there is a hidden one beside it. As a context
    manager: closed at the end, dropped on an exception.
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
        """The next elements of a tensor in row-major order: all of it, or some rows of its first axis."""
        info = self.tensors[name]
        data = tensor.contiguous().flatten().view(torch.uint8).numpy()
        done = self._written[name]
        assert tensor.dtype == info.dtype and done + data.nbytes <= info.nbytes, (name, tensor.dtype, tensor.shape)
        self._file.seek(self._start + self._offsets[name] + done)
        self._file.write(data.data)
        self._written[name] = done + data.nbytes

    def close(self) -> None:
        for name, info in self.tensors.items():
            assert self._written[name] == info.nbytes, f"{name}: {self._written[name]} of {info.nbytes} bytes written"
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.keep()

    def drop(self) -> None:
        """Leaves nothing behind."""
        try:
            self._file.close()
        finally:  # on a full disk closing fails too
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
    """Where each tensor starts in the data: most aligned sizes first, otherwise in the order given."""
    offsets, offset = {}, 0
    for name in sorted(tensors, key=lambda name: -math.gcd(tensors[name].nbytes, ALIGNMENT)):
        offsets[name] = offset
        offset += tensors[name].nbytes
    return offsets


def _header(tensors: Mapping[str, TensorInfo], offsets: Mapping[str, int], metadata: Mapping[str, str] | None) -> bytes:
    """The header with its length in front, padded so that the data starts at a multiple of ALIGNMENT."""
    fields: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, start in offsets.items():
        info = tensors[name]
        span = [start, start + info.nbytes]
        fields[name] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape), "data_offsets": span}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


@dataclass(frozen=True, slots=True)
class _Stored:
    code: str
    shape: tuple[int, ...]
    start: int  # bytes into the file
    stop: int


class SafetensorsFile:
    """A memory-mapped file. Raises UsageError, naming the file, where it is not a whole safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                header = _read_header(path, file.read(8), size)
                fields = _parse(path, file.read(header))
            self._bytes = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
        self.metadata: dict[str, str] = fields.pop("__metadata__", None) or {}
        self._stored = {name: _stored(path, name, field, 8 + header) for name, field in fields.items()}
        _check_extent(path, self._stored, 8 + header, size)

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def names(self) -> list[str]:
        return list(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored[name].shape

    def dtype(self, name: str) -> torch.dtype | None:
        """None: a kind of number that is not read here."""
        return _CODES.get(self._stored[name].code)

    def dtype_name(self, name: str) -> str:
        return self._stored[name].code

    def get(self, name: str) -> Tensor:
        """The tensor as a view of the file; only the pages that are touched are read. Not to be written to."""
        stored = self._stored[name]
        data = self._bytes[stored.start : stored.stop]
        dtype = _CODES[stored.code]
        if stored.start % dtype.itemsize:  # written by others
            data = data.clone()
        return data.view(dtype).view(stored.shape)


def _read_header(path: Path, first: bytes, size: int) -> int:
    """The header's length in bytes."""
    if len(first) < 8:
        raise UsageError(f"{path} is not a safetensors file: it has {size} bytes")
    length = int(struct.unpack("<Q", first)[0])
    if length > _MAX_HEADER:
        raise UsageError(f"{path} is not a safetensors file: its first 8 bytes are no header length")
    if 8 + length > size:
        raise UsageError(f"{path} is truncated: its header has {length} bytes, the file {size}")
    return length


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError):
        fields = None
    if not isinstance(fields, dict):
        raise UsageError(f"{path} is not a safetensors file: its header is not a JSON object")
    return fields


def _stored(path: Path, name: str, field: Any, data_start: int) -> _Stored:
    try:
        code, shape = str(field["dtype"]), tuple(int(size) for size in field["shape"])
        start, stop = (int(offset) for offset in field["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"{path} is not a safetensors file: bad entry for {name!r} in its header") from None
    if code in _CODES and stop - start != TensorInfo(_CODES[code], shape).nbytes:
        raise UsageError(f"{path} is damaged: {name!r} is {code} {list(shape)} in {stop - start} bytes")
    return _Stored(code, shape, data_start + start, data_start + stop)


def _check_extent(path: Path, stored: Mapping[str, _Stored], data_start: int, size: int) -> None:
    at = data_start
    for name, tensor in sorted(stored.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != at:
            raise UsageError(f"{path} is damaged: {name!r} starts at byte {tensor.start}, wanted {at}")
        at = tensor.stop
    if at > size:
        raise UsageError(f"{path} is truncated: its tensors end at byte {at}, the file at {size}")
    if at < size:
        raise UsageError(f"{path} is damaged: {size - at} bytes follow its last tensor")


class ModelFiles:
    """The weights of a model directory: `model.safetensors`, or the shards of `model.safetensors.index.json`."""

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
        return self._files[name].dtype(name)

    def dtype_name(self, name: str) -> str:
        return self._files[name].dtype_name(name)

    def get(self, name: str) -> Tensor:
        """The tensor as a view of its file."""
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
    try:
        placed = dict(json.loads(index.read_text())["weight_map"])
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError):
        raise UsageError(f"{index} is not a JSON file with a weight_map") from None
    shards = {shard: SafetensorsFile(folder / shard) for shard in sorted(set(placed.values()))}
    for name, shard in placed.items():
        if name not in shards[shard]:
            raise UsageError(f"{index} puts {name!r} into {shard}, which does not have it")
    return [(name, shards[shard]) for name, shard in placed.items()]
