"""The file format: by the format's own library, by alignment, and when damaged."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trtllm_pt.errors import UsageError
from trtllm_pt.files.safetensors import ModelFiles, SafetensorsFile, SafetensorsWriter, TensorInfo

TENSORS = {
    "odd": torch.arange(3, dtype=torch.float16),
    "matrix": torch.randn(7, 32).bfloat16(),
    "scalar": torch.tensor(2.5),
    "wide": torch.randn(4, 16),
    "none": torch.zeros(0, 5),
}


def write(path: Path, tensors: dict[str, torch.Tensor] = TENSORS) -> Path:
    infos = {name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with SafetensorsWriter(path, infos, {"format": "pt"}) as writer:
        for name in reversed(tensors):  # any order, and in parts
            rows = tensors[name].split(2) if tensors[name].dim() else [tensors[name]]
            for part in rows:
                writer.append(name, part)
    return path


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors")
    got = load_file(path)
    assert got.keys() == TENSORS.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in TENSORS.items())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors", {"seed": "3"})
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert file.metadata == {"seed": "3"}
    for name, tensor in TENSORS.items():
        assert file.shape(name) == tensor.shape and file.dtype(name) == tensor.dtype
        assert torch.equal(file.get(name), tensor)


def test_alignment(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors")
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    header = json.loads(path.read_bytes()[8 : 8 + length])
    assert (8 + length) % 64 == 0
    for name in ("matrix", "wide"):  # their sizes are multiples of 64
        assert header[name]["data_offsets"][0] % 64 == 0
    assert header["odd"]["data_offsets"][0] % 2 == 0


def test_misaligned_files_of_others_are_read(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\x07" + struct.pack("<2f", 1.5, -2.0))
    assert SafetensorsFile(path).get("b").tolist() == [1.5, -2.0]


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), SafetensorsWriter(tmp_path / "a", {"x": TensorInfo(torch.float32, (2,))}):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def with_header(fields: object, data: bytes = b"") -> bytes:
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 a zip archive of torch.save",
        struct.pack("<Q", 1000) + b"{}",
        struct.pack("<Q", 4) + b"oops",
        with_header({"x": {"dtype": "F32"}}),
        with_header({"x": ENTRY}, b"1234"),
        with_header({"x": ENTRY}, b"123456789"),
        with_header({"x": ENTRY | {"shape": [3]}}, b"12345678"),
        with_header({"x": ENTRY | {"data_offsets": [4, 12]}}, b"123456781234"),
    ],
    ids="empty zip header json entry short long shape hole".split(),
)
def test_damaged_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="damaged, truncated, or not a safetensors file") as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "a.safetensors", {"x": TensorInfo(torch.float32, (1024, 1024))}) as writer:
        writer.append("x", torch.ones(1024, 1024))
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert file.get("x").data_ptr() == file.get("x").data_ptr()
    maps = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in maps if line.endswith("a.safetensors")]
    assert any(int(start, 16) <= file.get("x").data_ptr() < int(end, 16) for start, end in spans)


def test_folders_without_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no model.safetensors and no model.safetensors.index.json$"):
        ModelFiles(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UsageError, match=r"pytorch_model.bin is a pickle"):
        ModelFiles(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(UsageError, match="is not a JSON file with a weight_map"):
        ModelFiles(tmp_path)
    index.write_text(json.dumps({"weight_map": {"x": "model-1.safetensors"}}))
    with pytest.raises(UsageError, match=r"cannot read .*model-1.safetensors: No such file"):
        ModelFiles(tmp_path)
    write(tmp_path / "model-1.safetensors")
    with pytest.raises(UsageError, match=r"puts 'x' into model-1.safetensors, which does not have it"):
        ModelFiles(tmp_path)
